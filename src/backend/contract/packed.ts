/**
 * Weights of blocks in host memory: as a checkpoint has them, and as a quantized block is kept and run (integer weights,
 * the small run-time transforms, clipping logits).
 */
import type { RealArray } from "./buffer.js";
import type { NarrowBits } from "./scheme.js";
import type { KeptName, LinearName, LinearSite, NormName } from "./program.js";

/** A weight before it is put on a device. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly data: RealArray;
}

export interface HostLinear {
  /** Path inside the block, e.g. "self_attn.q_proj". */
  readonly path: string;
  readonly weight: HostTensor;
  readonly bias?: HostTensor;
}

export interface HostNorm {
  readonly path: string;
  readonly gain: HostTensor;
  readonly bias?: HostTensor;
}

/** Clipping logits of one grid. */
export interface ClipLogits {
  readonly max: number;
  readonly min: number;
}

/**
 * A static grid with one step for the whole activation, some channels split over further columns
 * (`src/quantize/transforms/split.ts`); the weight's codes have the same columns.
 */
export interface PackedGrid {
  readonly activationBits: number;
  /** Width of this linear's own codes, whatever the scheme says. */
  readonly weightBits: number;
  /** Step of the activation's grid. */
  readonly step: number;
  /** Of the columns beyond the channels' own: channel, and which copy of it. */
  readonly channel: Int32Array;
  readonly part: Int32Array;
  /** Multiplies the activation's channels before they are rounded, [in]. */
  readonly factor?: Float32Array;
}

/**
 * Integer codes with their scales, of a weight or a table [rows, columns]. Without a group there is one scale a row; with
 * one, scale (and offset) are row-major [rows, columns / group], and an entry is scale·code, or scale·code + offset.
 */
export interface QuantizedMatrix {
  /** Row-major; −2^(b−1) … 2^(b−1)−1, or 0 … 2^b−1 where there are offsets. */
  readonly codes: Int8Array;
  readonly scale: Float32Array;
  /** Consecutive columns that share a scale. */
  readonly group?: number;
  /** Of each group, beside its scale. */
  readonly offset?: Float32Array;
  /** Width of these codes, where it differs from the scheme's. */
  readonly bits?: number;
}

export interface PackedLinear {
  /** Path inside the block, e.g. "self_attn.q_proj". */
  readonly path: string;
  readonly shape: readonly [number, number];
  /**
   * Codes [out, in] with a scale per output row or group; absent when weights stay at 16 bits. With a grid, codes have
   * its further columns too, and all scales are equal.
   */
  readonly quantized?: QuantizedMatrix;
  /** 16-bit weights, when not quantized. */
  readonly weight?: Float32Array;
  readonly bias?: Float32Array;
  readonly activationClip?: ClipLogits;
  /** Absent: the activation's scale is found per token. */
  readonly grid?: PackedGrid;
}

/** Run-time transform of a site: Kronecker factors (either may be absent) or one matrix. Row-major squares. */
export interface PackedTransform {
  readonly left?: Float32Array;
  readonly right?: Float32Array;
}

/**
 * What keys go through on their way into the cache, after rotary embedding, and queries so that scores stay what they are:
 * k′ = ((k − shift) ∘ diag) · P and q′ = (q ∘ 1/diag) · P⁻ᵀ. One shift for all keys moves all scores of a query alike.
 */
export interface KeyTransform {
  /** P [headDim, headDim], row-major. */
  readonly matrix: Float32Array;
  /** P⁻ᵀ. */
  readonly inverseT: Float32Array;
  /** Both [kvHeads·headDim], or neither. */
  readonly balance?: KeyBalance;
}

export interface KeyBalance {
  readonly diag: Float32Array;
  readonly shift: Float32Array;
}

export interface PackedBlock {
  readonly norms: Readonly<Record<NormName, HostNorm>>;
  readonly linears: Readonly<Record<LinearName, PackedLinear>>;
  /** Bits of a site's activation, where they are not the scheme's. */
  readonly activationBits?: Readonly<Partial<Record<LinearSite, NarrowBits>>>;
  /** In full precision. */
  readonly kept: Readonly<Record<KeptName, HostTensor>>;
  /** The matrix at attention's output acts over heads and is its `left`. */
  readonly transforms: Readonly<Partial<Record<LinearSite, PackedTransform>>>;
  readonly keyTransform?: KeyTransform;
  readonly keyClip?: ClipLogits;
  readonly valueClip?: ClipLogits;
}
