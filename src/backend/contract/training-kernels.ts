/**
 * The kernels of the device contract: one interface of arguments each, and the table that every backend fills.
 * Conventions (layout, overwriting, determinism) are stated in training.ts.
 */
import type { Buffer } from "./buffer.js";
import type {
  CausalConvArgs,
  CausalConvBackwardArgs,
  RecurrenceArgs,
  RecurrenceBackwardArgs,
} from "./recurrent-kernels.js";

/** How a matrix product is computed; accumulation is always at least f32. */
export type Precision = "f32" | "bf16";

/**
 * One side of a product. Stored matrix is rows×cols with `stride` (default: dense). For A (m×k) the stored
 * matrix is m×k, or k×m when `transposed`; for B (k×n) it is k×n, or n×k when `transposed`.
 * `i8` data are integer codes, converted exactly. `offset` and `batchStride` count elements.
 */
export interface MatmulOperand {
  readonly buffer: Buffer;
  readonly offset?: number;
  readonly stride?: number;
  readonly batchStride?: number;
  readonly transposed?: boolean;
}

export interface MatmulArgs {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Number of independent products (default 1); operands and output advance by their batchStride. */
  readonly batch?: number;
  readonly a: MatmulOperand;
  readonly b: MatmulOperand;
  readonly out: {
    readonly buffer: Buffer;
    readonly offset?: number;
    readonly stride?: number;
    readonly batchStride?: number;
  };
  /** Real vector of length k: A's column κ is multiplied by `kScale[κ]` before the product. */
  readonly kScale?: Buffer;
  /** Real vector of length n: output column j is multiplied by `nScale[j]`. */
  readonly nScale?: Buffer;
  /** Real vector of length n added to every output row (after nScale). */
  readonly bias?: Buffer;
  /** Multiplies the product (default 1). */
  readonly alpha?: number;
  /** Add into `out` instead of overwriting it. */
  readonly accumulate?: boolean;
  readonly precision: Precision;
}

/** out[m,n] = aScale[m]·bScale[n]·Σ_k a[m,k]·b[n,k] (+ bias[n]); the sum is exact in int32. */
export interface IntMatmulArgs {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** i8 [m,k]. */
  readonly a: Buffer;
  /** real [m]. */
  readonly aScale: Buffer;
  /** i8 [n,k]. */
  readonly b: Buffer;
  /** real [n]. */
  readonly bScale: Buffer;
  readonly bias?: Buffer;
  readonly out: Buffer;
}

/**
 * Symmetric grid, one scale per row: `scale = max(|lo|, hi) / qmax`, `code = clamp(round_half_even(x/scale + offset))`
 * in [−2^(b−1), 2^(b−1)−1].
 * With clips (activations): hi = max(0, max x)·σ(clipMax), lo = min(0, min x)·σ(clipMin).
 * Without: hi = max(0, max x), lo = min(0, min x). The scale is at least `scaleFloor`; a zero row gets scale 1 when
 * the floor is 0. Source: docs/methods.md, Grids.
 */
export interface QuantizeRowsArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  /** Real scalars (length 1): clipping logits. Both or neither. */
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
  readonly scaleFloor: number;
  /** Real [rows, cols], learned rounding: added to x/scale before rounding. */
  readonly offset?: Buffer;
  /** i8 [rows, cols]. */
  readonly codes: Buffer;
  /** Real [rows]. */
  readonly scale: Buffer;
}

/**
 * Static symmetric grid with one scale for the whole tensor, its large channels split over several columns. With
 * Q = 2^(b−1) − 1 and r = round_half_even(x[t,j]·factor[j] / step), column j < cols of `codes` is channel j's first copy,
 * clamp(r, −Q, Q), and column cols + e is copy p = part[e] of channel j = channel[e], what lies beyond p·Q steps:
 * clamp(r, −(p+1)Q, (p+1)Q) − clamp(r, −pQ, pQ). So a channel's copies 0 … m−1 add up to clamp(r, −mQ, mQ).
 * Source: docs/methods.md, flattenquant, Flattening.
 */
export interface FlattenRowsArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  /** The grid's step, positive. */
  readonly step: number;
  /** Real [cols]; ones when absent. */
  readonly factor?: Buffer;
  /** Columns beyond the channels' own. */
  readonly extras: number;
  /** i32 [extras] each; needed when there are any. A channel or part that does not exist throws. */
  readonly channel?: Buffer;
  readonly part?: Buffer;
  /** Elements from one row of `codes` to the next, at least cols + extras; what is between is zeroed. */
  readonly stride: number;
  /** i8 [rows, stride]. */
  readonly codes: Buffer;
  /** Real [rows], all set to `step`. */
  readonly scale?: Buffer;
  /** i32 [rows]: how many channels of the row lie beyond the reach copies[j]·Q of their copies. Both or neither. */
  readonly clipped?: Buffer;
  /** i32 [cols]. */
  readonly copies?: Buffer;
}

/**
 * Gradient of `scale·code` with respect to x, clips and offset, straight-through rounding.
 * In-range elements (round(x/s + offset) within the grid) pass the gradient to x and s·gradient to the offset;
 * the scale receives Σ g·(code − x/s·[in range]); it flows to the larger of |lo| and hi (half to each when equal), there
 * to σ(clip) and to the row's extreme element (equally among ties); a floored scale and a zero row's receive none.
 */
export interface QuantizeRowsBackwardArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
  readonly scaleFloor: number;
  readonly offset?: Buffer;
  readonly codes: Buffer;
  readonly scale: Buffer;
  /** dL/d(scale·code), real [rows, cols]. */
  readonly grad: Buffer;
  readonly gradX?: Buffer;
  /** Real scalars, overwritten. */
  readonly gradClipMax?: Buffer;
  readonly gradClipMin?: Buffer;
  readonly gradOffset?: Buffer;
}

/**
 * Asymmetric grid, one scale and zero per row (KV cache): hi = max(0, max x)·σ(clipMax), lo = min(0, min x)·σ(clipMin)
 * (an all-zero row uses lo = −1, hi = 1), scale = (hi−lo)/(2^b−1), zero = round(−lo/scale),
 * out = scale·(clamp(round(x/scale) + zero, 0, 2^b−1) − zero).
 */
export interface FakeQuantizeAsymArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
  readonly out: Buffer;
}

/** Gradient of the above; the zero point is a constant, the scale is not. */
export interface FakeQuantizeAsymBackwardArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
  readonly grad: Buffer;
  readonly gradX: Buffer;
  readonly gradClipMax?: Buffer;
  readonly gradClipMin?: Buffer;
}

/**
 * Grid with a real offset, one scale and offset per row (of groups: a row is one group). With half = (max x − min x)/2,
 * hi = max x − half·(1 − σ(clipMax)) and lo = min x + half·(1 − σ(clipMin)) (without clips max x and min x themselves):
 * scale = (hi−lo)/(2^b−1), 1 when that is 0; out = lo + scale·clamp(round((x − lo)/scale + shift), 0, 2^b−1).
 * The row need not contain zero, so the range does not either.
 */
export interface FakeQuantizeOffsetArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  /** Real scalars (length 1): clipping logits. Both or neither. */
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
  /** Real [rows, cols], learned rounding. */
  readonly shift?: Buffer;
  readonly out: Buffer;
}

/**
 * Gradient of the above, straight-through rounding. Elements within the grid pass g to x and scale·g to the shift, those
 * beyond it pass g to lo; the scale receives Σ g·(code − (x−lo)/scale·[within]), which flows to hi and lo. These flow to
 * the row's extremes (equally among ties) and to the clips. A constant row passes g to x and nothing else.
 */
export interface FakeQuantizeOffsetBackwardArgs extends Omit<FakeQuantizeOffsetArgs, "out"> {
  readonly grad: Buffer;
  readonly gradX: Buffer;
  readonly gradClipMax?: Buffer;
  readonly gradClipMin?: Buffer;
  readonly gradShift?: Buffer;
}

/**
 * Per row r: out = min(max(x, min_r·σ(clipMin_r)), max_r·σ(clipMax_r)), min/max over the row (not including 0), so the
 * upper bound wins where the two cross (a one-sided row).
 */
export interface ClipRowsArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  /** Real [rows], logits. */
  readonly clipMax: Buffer;
  readonly clipMin: Buffer;
  readonly out: Buffer;
}

/** Clamped elements pass their gradient to the bound, which is part of the graph (through σ and the row's extreme). */
export interface ClipRowsBackwardArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly clipMax: Buffer;
  readonly clipMin: Buffer;
  readonly grad: Buffer;
  readonly gradX: Buffer;
  readonly gradClipMax?: Buffer;
  readonly gradClipMin?: Buffer;
}

/**
 * Per row: x as nLeft×nRight (row-major), out = leftᵀ·(x ⊙ diag)·right. An absent matrix is the identity;
 * an absent diag is ones. Source: docs/methods.md, Kronecker transform.
 */
export interface KroneckerArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly nLeft: number;
  readonly nRight: number;
  readonly left?: Buffer;
  readonly right?: Buffer;
  readonly diag?: Buffer;
  readonly out: Buffer;
  readonly precision: Precision;
}

export interface KroneckerBackwardArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly nLeft: number;
  readonly nRight: number;
  readonly left?: Buffer;
  readonly right?: Buffer;
  readonly diag?: Buffer;
  readonly grad: Buffer;
  readonly gradX?: Buffer;
  readonly gradLeft?: Buffer;
  readonly gradRight?: Buffer;
  readonly gradDiag?: Buffer;
  readonly precision: Precision;
}

export interface NormArgs {
  readonly kind: "rms" | "layer";
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly gain: Buffer;
  /** Layer norm only. */
  readonly bias?: Buffer;
  readonly epsilon: number;
  readonly out: Buffer;
}

export interface NormBackwardArgs {
  readonly kind: "rms" | "layer";
  readonly x: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly gain: Buffer;
  readonly epsilon: number;
  readonly grad: Buffer;
  readonly gradX?: Buffer;
  readonly gradGain?: Buffer;
  readonly gradBias?: Buffer;
}

/**
 * Rotary embedding, "rotate half" form: for i < D/2,
 * out_i = x_i·cos[t,i] − x_{i+D/2}·sin[t,i], out_{i+D/2} = x_{i+D/2}·cos[t,i] + x_i·sin[t,i].
 * x is [rows, heads, headDim]; row r has position index `r mod period` into the tables [period, headDim/2].
 * `inverse` rotates the other way, which is also the gradient.
 */
export interface RopeArgs {
  readonly x: Buffer;
  readonly rows: number;
  readonly heads: number;
  readonly headDim: number;
  readonly period: number;
  readonly cos: Buffer;
  readonly sin: Buffer;
  readonly inverse: boolean;
  readonly out: Buffer;
}

/** Element strides of a [batch, time, head, dim] tensor whose dim is contiguous. */
export interface HeadLayout {
  readonly batchStride: number;
  readonly timeStride: number;
  readonly headStride: number;
}

/**
 * Scaled dot-product attention with grouped KV heads (head h reads KV head ⌊h·kvHeads/heads⌋).
 * Causal: query t sees keys 0 … t + (keyLength − queryLength). `window` > 0 limits it to the last `window` keys, `chunk` > 0 to
 * those from the last multiple of `chunk` on.
 * No T×T matrix is kept: `logSumExp` [batch, heads, queryLength] is what the backward pass needs.
 */
export interface AttentionArgs {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly queryLength: number;
  readonly keyLength: number;
  readonly causal: boolean;
  readonly window?: number;
  readonly chunk?: number;
  /** Multiplies the scores, customarily 1/√headDim. */
  readonly scale: number;
  /** Scores s, after `scale`, become cap·tanh(s/cap); absent: they stay. */
  readonly softcap?: number;
  /** [heads]: the score of key j for the query at position p gains slope·(j − p). Not beside a soft cap. */
  readonly slopes?: Buffer;
  readonly precision: Precision;
  readonly q: Buffer;
  readonly qLayout: HeadLayout;
  readonly k: Buffer;
  readonly v: Buffer;
  /** Shared by k and v. */
  readonly kvLayout: HeadLayout;
  readonly out: Buffer;
  /** Shared by out with q's sizes. */
  readonly outLayout: HeadLayout;
  readonly logSumExp?: Buffer;
}

export interface AttentionBackwardArgs extends Omit<AttentionArgs, "logSumExp"> {
  readonly logSumExp: Buffer;
  /** dL/dout, in outLayout. */
  readonly grad: Buffer;
  /** In q's and k's layouts, overwritten. */
  readonly gradQ: Buffer;
  readonly gradK: Buffer;
  readonly gradV: Buffer;
}

export type UnaryOp =
  "sigmoid" | "silu" | "relu" | "gelu" | "geluTanh" | "reciprocal" | "negate" | "relu2";
export type BinaryOp = "add" | "sub" | "mul";

/** out_i = f(x_i), i < length. */
export interface UnaryArgs {
  readonly op: UnaryOp;
  readonly x: Buffer;
  readonly length: number;
  readonly out: Buffer;
}

/** gradX_i = f'(x_i)·grad_i. */
export interface UnaryBackwardArgs {
  readonly op: UnaryOp;
  readonly x: Buffer;
  readonly length: number;
  readonly grad: Buffer;
  readonly gradX: Buffer;
}

/**
 * out[r,c] = a[r,c] ∘ b: b is [rows, cols] ("full"), [cols] ("row": the same row everywhere),
 * [rows] ("column": one number per row) or [1] ("scalar").
 */
export interface BinaryArgs {
  readonly op: BinaryOp;
  readonly rows: number;
  readonly cols: number;
  readonly a: Buffer;
  readonly b: Buffer;
  readonly broadcast: "full" | "row" | "column" | "scalar";
  /** May be `a` itself. */
  readonly out: Buffer;
}

/** out = alpha·Σ x[r,c] (∘ y[r,c] when present) over rows ("row": out is [cols]), columns ("column": [rows]) or all ("scalar"). */
export interface ReduceArgs {
  readonly rows: number;
  readonly cols: number;
  readonly x: Buffer;
  readonly y?: Buffer;
  readonly keep: "row" | "column" | "scalar";
  readonly alpha: number;
  readonly out: Buffer;
}

/** out[c] = max(out[c], max over rows of |x[r,c]|): adds to the maxima that are there, so start from zeros. */
export interface ColumnMaximaArgs {
  readonly rows: number;
  readonly cols: number;
  readonly x: Buffer;
  readonly out: Buffer;
}

/** y_i = alpha·x_i (+ y_i when accumulate). */
export interface ScaleArgs {
  readonly x: Buffer;
  readonly length: number;
  readonly alpha: number;
  readonly accumulate: boolean;
  readonly out: Buffer;
}

/** out = silu(gate)·up, elementwise. */
export interface SiluMulArgs {
  readonly gate: Buffer;
  readonly up: Buffer;
  readonly length: number;
  readonly out: Buffer;
}

export interface SiluMulBackwardArgs {
  readonly gate: Buffer;
  readonly up: Buffer;
  readonly length: number;
  readonly grad: Buffer;
  readonly gradGate: Buffer;
  readonly gradUp: Buffer;
}

/** loss[0] = mean (a−b)². Its gradient is composed of `binary` and `scale`. */
export interface MseArgs {
  readonly a: Buffer;
  readonly b: Buffer;
  readonly length: number;
  readonly loss: Buffer;
}

/** nll[r] = logsumexp(logits[r,:]) − logits[r, target_r]; rows with target −1 get 0; any other target outside the row throws. */
export interface NllArgs {
  readonly logits: Buffer;
  readonly rows: number;
  readonly cols: number;
  /** i32 [rows]. */
  readonly targets: Buffer;
  readonly nll: Buffer;
}

/** kl[r] = KL(softmax teacher_r ‖ softmax student_r); gradStudent = gradScale·(softmax student − softmax teacher). */
export interface SoftmaxKlArgs {
  readonly teacher: Buffer;
  readonly student: Buffer;
  readonly rows: number;
  readonly cols: number;
  readonly kl: Buffer;
  readonly gradStudent?: Buffer;
  readonly gradScale: number;
}

/** Rows of a table: out[r,:] = table[ids[r],:]; an id outside the table throws. */
export interface GatherRowsArgs {
  readonly table: Buffer;
  readonly cols: number;
  /** i32 [rows]. */
  readonly ids: Buffer;
  readonly rows: number;
  readonly out: Buffer;
}

/** Decoupled weight decay Adam; `step` counts from 1. Source: Loshchilov & Hutter 2019, algorithm 2. */
export interface AdamWArgs {
  readonly param: Buffer;
  readonly grad: Buffer;
  readonly moment1: Buffer;
  readonly moment2: Buffer;
  readonly length: number;
  readonly step: number;
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** Every gradient is multiplied by this first (loss scaling). */
  readonly gradScale: number;
  /** When present, the updated parameter is clamped to ±bound. */
  readonly bound?: number;
}

/** Q = (I − A/2)⁻¹(I + A/2), A = tril(seed) − tril(seed)ᵀ, strict; n×n. Computed in float64 on every backend. */
export interface CayleyArgs {
  readonly seed: Buffer;
  readonly n: number;
  readonly out: Buffer;
}

export interface CayleyBackwardArgs {
  readonly seed: Buffer;
  readonly n: number;
  /** The forward result Q. */
  readonly out: Buffer;
  readonly grad: Buffer;
  readonly gradSeed: Buffer;
}

/** out = x⁻¹ by LU with partial pivoting in float64. Throws on a singular matrix. */
export interface InverseArgs {
  readonly x: Buffer;
  readonly n: number;
  readonly out: Buffer;
}

/** Every kernel a device must offer. Backward kernels stand beside their forward ones. */
export interface Kernels {
  matmul(args: MatmulArgs): void;
  intMatmul(args: IntMatmulArgs): void;
  quantizeRows(args: QuantizeRowsArgs): void;
  quantizeRowsBackward(args: QuantizeRowsBackwardArgs): void;
  /** out[r,c] = scale[r]·codes[r,c]. */
  dequantizeRows(args: {
    codes: Buffer;
    scale: Buffer;
    rows: number;
    cols: number;
    out: Buffer;
  }): void;
  flattenRows(args: FlattenRowsArgs): void;
  fakeQuantizeAsym(args: FakeQuantizeAsymArgs): void;
  fakeQuantizeAsymBackward(args: FakeQuantizeAsymBackwardArgs): void;
  fakeQuantizeOffset(args: FakeQuantizeOffsetArgs): void;
  fakeQuantizeOffsetBackward(args: FakeQuantizeOffsetBackwardArgs): void;
  clipRows(args: ClipRowsArgs): void;
  clipRowsBackward(args: ClipRowsBackwardArgs): void;
  kronecker(args: KroneckerArgs): void;
  kroneckerBackward(args: KroneckerBackwardArgs): void;
  norm(args: NormArgs): void;
  normBackward(args: NormBackwardArgs): void;
  rope(args: RopeArgs): void;
  attention(args: AttentionArgs): void;
  attentionBackward(args: AttentionBackwardArgs): void;
  unary(args: UnaryArgs): void;
  unaryBackward(args: UnaryBackwardArgs): void;
  binary(args: BinaryArgs): void;
  reduce(args: ReduceArgs): void;
  columnMaxima(args: ColumnMaximaArgs): void;
  scale(args: ScaleArgs): void;
  siluMul(args: SiluMulArgs): void;
  siluMulBackward(args: SiluMulBackwardArgs): void;
  mse(args: MseArgs): void;
  nll(args: NllArgs): void;
  softmaxKl(args: SoftmaxKlArgs): void;
  gatherRows(args: GatherRowsArgs): void;
  causalConv(args: CausalConvArgs): void;
  causalConvBackward(args: CausalConvBackwardArgs): void;
  recurrence(args: RecurrenceArgs): void;
  recurrenceBackward(args: RecurrenceBackwardArgs): void;
  adamW(args: AdamWArgs): void;
  cayley(args: CayleyArgs): void;
  cayleyBackward(args: CayleyBackwardArgs): void;
  inverse(args: InverseArgs): void;
}
