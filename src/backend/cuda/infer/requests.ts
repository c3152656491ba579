/** What the launches of the engine's CUDA kernels are given (kernels.ts). */
import type { DevicePointer } from "../driver.js";
import type { DecodeWishes } from "./attention-launch.js";
import type { GroupSize } from "../../contract/scheme.js";
import type { CacheShape, FeatureOrder, SiteGrid, SiteShape } from "./layout.js";

/**
 * How products are computed without wgmma: matrix units of 4-bit codes (Ampere, Ada) or of 8-bit ones, or dot products of
 * four bytes (before Ampere).
 */
export type PlainProduct = "mma-s4" | "mma-s8" | "dp4a";

/** Scales of groups of columns, and what offsets of weights take (native/cuda/engine/gemm_group.cuh). */
export interface ProductGroups {
  /** Columns that share a weight's scale; absent: the row. */
  readonly weights?: GroupSize;
  /** Columns that share an activation's scale; absent: the token. */
  readonly activations?: GroupSize;
  /** Scales and offsets of weights are halves, else f32. */
  readonly halves?: boolean;
  /** Of weights' groups, as `featureScale`. */
  readonly offset?: DevicePointer;
  /** What was taken from weights' codes beside offsets. */
  readonly shift?: number;
  /** Sums of activations' codes for so many columns, which offsets need. */
  readonly sums?: { readonly columns: GroupSize; readonly at: DevicePointer };
}

export interface GemmRequest {
  readonly weights: DevicePointer;
  readonly bits: 4 | 8;
  /** Bits of the activations' codes, which lie in bytes; 8 when absent. With 4 or fewer, 4-bit matrix units suffice. */
  readonly activationBits?: number;
  readonly order: FeatureOrder;
  readonly columns: number;
  readonly codes: DevicePointer;
  readonly tokenScale: DevicePointer;
  /** Ordered as `orderFeatures` does; of weights in groups, as `orderGroups` does. */
  readonly featureScale: DevicePointer;
  readonly bias?: DevicePointer;
  readonly groups?: ProductGroups;
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
  /** Blocks of threads per tile, which share its columns; chosen when absent. */
  readonly split?: number;
  /** Instead of what suits the GPU, for comparison. */
  readonly plain?: PlainProduct;
  /** Tokens of a tile: 8, 16, … 128; chosen when absent. */
  readonly tile?: number;
  /** With groups: the kernel of many tokens however few there are; the bits are the same. */
  readonly wide?: boolean;
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
  /** Scales of groups, and sums of codes. */
  readonly grid?: SiteGrid;
  /** [sets][sum][capacity], where the grid has sums. */
  readonly sums?: DevicePointer;
  /** Rows as sums of two halves: as good as f32. */
  readonly precise: boolean;
  /** One block of threads per row, however few there are; the bits are the same. */
  readonly alone?: boolean;
}

/** Of keys before their matrix, [kvHeads·headDim] f32 each: what is taken off, the factor, and 1/factor for queries. */
export interface PlacedBalance {
  readonly shift: DevicePointer;
  readonly diag: DevicePointer;
  readonly inverse: DevicePointer;
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
  readonly balance?: PlacedBalance;
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
  /** Multiplies the scores. */
  readonly scale: number;
  readonly cache: DevicePointer;
  readonly pageBytes: number;
}

/** What decoding's attention takes beside that; ways of doing it that are not given are chosen. */
export interface DecodeRequest extends DecodeWishes {
  readonly sequences: DevicePointer;
  readonly count: number;
  /** Pieces that each sequence is cut into. */
  readonly splits: number;
  readonly partial: DevicePointer;
  /** Blocks of threads that share a sequence's pieces. */
  readonly shares?: number;
}
