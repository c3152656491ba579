/**
 * The kernels of inference one by one, on typed arrays: what they take, for tests, benches and whoever multiplies packed
 * weights outside an engine. `cpu` runs its own; `reference` states them.
 */
import type { CODES } from "./abi.js";
import type { QuantizedMatrix } from "./packed.js";

/** What a packed matrix holds and what it is multiplied with. */
export type PackedKind = (typeof CODES.PackedKind)[number];

/** Weights [n, k] in the order of the kernels; valid at the instruction-set level that packed them. */
export interface PackedArray {
  readonly kind: PackedKind;
  readonly n: number;
  readonly k: number;
  readonly bytes: Uint8Array;
}

export interface PackedProductArgs {
  readonly m: number;
  /** int8 codes for `int4` and `int8`, else f32; [m, k]. */
  readonly a: Int8Array | Float32Array;
  /** [m], with codes. */
  readonly aScale?: Float32Array;
  readonly weights: PackedArray;
  /** [n]. */
  readonly bScale?: Float32Array;
  readonly bias?: Float32Array;
  /** [m, n]. */
  readonly out: Float32Array;
  readonly accumulate?: boolean;
}

/** Weights [n, k] with a scale per group, in the order of the kernels; valid at the level that packed them. */
export interface PackedGroups {
  readonly kind: "int4" | "int8";
  readonly n: number;
  readonly k: number;
  readonly group: number;
  /** CONSTANTS.groupHalves, groupOffset, and from bit 8 on what is taken off codes. */
  readonly form: number;
  readonly bytes: Uint8Array;
}

export interface GroupProductArgs {
  readonly m: number;
  /** Codes [m, k]. */
  readonly a: Int8Array;
  /** Channels per scale of the activations: a multiple of the weights' group, or k. */
  readonly span: number;
  /** [m, k / span]; an activation is scale·code, or scale·code + offset. */
  readonly aScale: Float32Array;
  /** Only where span is less than k. */
  readonly aOffset?: Float32Array;
  readonly weights: PackedGroups;
  /** [n]. */
  readonly bias?: Float32Array;
  /** [m, n]. */
  readonly out: Float32Array;
  readonly accumulate?: boolean;
}

export interface SiteArgs {
  readonly input: (typeof CODES.SiteInput)[number];
  readonly activation?: (typeof CODES.UnaryOp)[number];
  /** [rows, nLeft·nRight]. */
  readonly x: Float32Array;
  /** The second factor of `gated`. */
  readonly x2?: Float32Array;
  readonly rows: number;
  readonly nLeft: number;
  readonly nRight: number;
  readonly gain?: Float32Array;
  readonly bias?: Float32Array;
  readonly epsilon?: number;
  readonly left?: Float32Array;
  readonly right?: Float32Array;
  /** 2 … 8, or 16 for transformed rows in `out`. */
  readonly bits: number;
  /** A pair of clipping logits (max, min) per set of codes; ∞ clips nothing. */
  readonly clips: readonly (readonly [number, number])[];
  /** Channels that share a scale; default: all of a row's. */
  readonly span?: number;
  /** [sets, rows, nLeft·nRight] */
  readonly codes?: Int8Array;
  /** [sets, rows, nLeft·nRight / span] */
  readonly scale?: Float32Array;
  /** As `scale`; given: a value is scale·code + offset, with signed codes on a grid that fits the group's range. */
  readonly offset?: Float32Array;
  readonly out?: Float32Array;
}

/** Consecutive rows of one sequence in a step. */
export interface CacheChunk {
  readonly row: number;
  readonly rows: number;
  readonly start: number;
  readonly pages: readonly number[];
}

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** A cache of one layer. */
export interface LayerCache {
  readonly bits: number;
  readonly pageBytes: number;
  readonly bytes: Uint8Array;
}

export interface CacheWriteArgs extends HeadShape {
  readonly chunks: readonly CacheChunk[];
  /** Prepared in place. */
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly qGain?: Float32Array;
  readonly kGain?: Float32Array;
  readonly epsilon?: number;
  /** [rows, headDim/2] each. */
  readonly cosine?: Float32Array;
  readonly sine?: Float32Array;
  readonly qMatrix?: Float32Array;
  readonly kMatrix?: Float32Array;
  /** Keys become (k − kShift)·kDiag before their matrix, queries q/kDiag: [kvHeads·headDim] each. */
  readonly kDiag?: Float32Array;
  readonly kShift?: Float32Array;
  readonly queryBits: number;
  /** Keys' max and min, values' max and min. */
  readonly clips: readonly [number, number, number, number];
  readonly cache: LayerCache;
}

export interface PagedAttentionArgs extends HeadShape {
  readonly chunks: readonly CacheChunk[];
  readonly window?: number;
  /** Queries see keys from the last multiple of it on. */
  readonly chunk?: number;
  /** [heads]: what scores gain with every position of a key. */
  readonly slopes?: Float32Array;
  /** Scores s become cap·tanh(s/cap). */
  readonly softcap?: number;
  readonly q: Float32Array;
  readonly cache: LayerCache;
  readonly out: Float32Array;
}

export interface EngineKernels {
  packWeights(
    kind: PackedKind,
    n: number,
    k: number,
    values: Int8Array | Float32Array,
  ): PackedArray;
  packedProduct(args: PackedProductArgs): void;
  /** Codes of 2 … 4 bits take 4 in memory, wider ones 8. `bits`: of the codes. */
  packGroups(n: number, k: number, bits: number, weights: QuantizedMatrix): PackedGroups;
  /** Rows of the matrix itself, [ids.length, k]. */
  groupRows(weights: PackedGroups, ids: Int32Array, out: Float32Array): void;
  groupProduct(args: GroupProductArgs): void;
  site(args: SiteArgs): void;
  layerCache(headDim: number, kvHeads: number, bits: number, pages: number): LayerCache;
  cacheWrite(args: CacheWriteArgs): void;
  pagedAttention(args: PagedAttentionArgs): void;
}
