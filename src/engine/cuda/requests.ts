/** What the launches of the engine's CUDA kernels are given (kernels.ts). */
import type { DevicePointer } from "../../backend/cuda/driver.js";
import type { FeatureOrder, SiteShape } from "./layout.js";

export interface GemmRequest {
  readonly weights: DevicePointer;
  readonly bits: 4 | 8;
  readonly order: FeatureOrder;
  readonly columns: number;
  readonly codes: DevicePointer;
  readonly tokenScale: DevicePointer;
  /** Ordered as `orderFeatures` does. */
  readonly featureScale: DevicePointer;
  readonly bias?: DevicePointer;
  readonly out: DevicePointer;
  readonly outStride: number;
  /** Halves instead of f32. */
  readonly halves?: boolean;
  /** Adds to `out`, in f32. */
  readonly accumulate?: boolean;
  readonly tokens: number;
  /** Rows that codes have room for, a multiple of 128 (or of 8, up to 64 tokens). */
  readonly capacity: number;
  /** First tiles that read the second and third set of codes. */
  readonly setTiles?: readonly [number, number];
  /** Blocks that share a tile's columns; chosen when absent. */
  readonly split?: number;
  /** mma.sync instead of wgmma; before Hopper always. */
  readonly plain?: boolean;
}

export interface SiteRequest {
  readonly shape: SiteShape;
  readonly input: "plain" | "rms" | "gated" | "splits";
  readonly x: DevicePointer;
  readonly x2?: DevicePointer;
  /** The inputs are halves. */
  readonly halves?: boolean;
  readonly tokens: number;
  readonly stride: number;
  readonly gain?: DevicePointer;
  readonly epsilon?: number;
  /** Padded halves (`paddedHalves`). */
  readonly left?: DevicePointer;
  readonly right?: DevicePointer;
  /** Factors σ(c), [sets][2]. */
  readonly clips: DevicePointer;
  readonly sets: number;
  readonly capacity: number;
  readonly codes: DevicePointer;
  readonly scales: DevicePointer;
  readonly splits?: number;
  readonly bits: number;
  /** Rows as sums of two halves: as good as f32. */
  readonly precise: boolean;
  /** One block of threads per row, however few there are; the bits are the same. */
  readonly alone?: boolean;
}

export interface CacheShape {
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Bits kept: 4, or 16 for halves. */
  readonly kept: 4 | 16;
}

export interface HeadsRequest extends CacheShape {
  /** {first row, rows} of each task. */
  readonly tasks: DevicePointer;
  readonly taskCount: number;
  readonly pageOf: DevicePointer;
  readonly slotOf: DevicePointer;
  readonly q: DevicePointer;
  readonly qStride: number;
  readonly k: DevicePointer;
  readonly v: DevicePointer;
  readonly kvStride: number;
  readonly halves: boolean;
  readonly qGain?: DevicePointer;
  readonly kGain?: DevicePointer;
  readonly epsilon?: number;
  readonly cosine?: DevicePointer;
  readonly sine?: DevicePointer;
  /** P_k⁻ᵀ and P_k, padded halves; both or neither. */
  readonly qMatrix?: DevicePointer;
  readonly kMatrix?: DevicePointer;
  /** σ(c) of keys' max and min, values' max and min. */
  readonly factors: DevicePointer;
  /** Highest code: 2^bits − 1. */
  readonly levels: number;
  readonly out: DevicePointer;
  readonly outHalves: boolean;
  readonly cache: DevicePointer;
  readonly pageBytes: number;
  /** Rows of the longest task; 64 when absent. */
  readonly taskRows?: number;
}

export interface AttentionRequest extends CacheShape {
  readonly q: DevicePointer;
  readonly pages: DevicePointer;
  readonly window: number;
  readonly cache: DevicePointer;
  readonly pageBytes: number;
}
