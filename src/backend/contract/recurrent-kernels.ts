/** Training kernels of the steps that carry a state (recurrent.ts). Conventions are stated in training.ts. */
import type { Buffer } from "./buffer.js";
import type { RecurrenceShape } from "./recurrent.js";

/** Of each of `batch` sequences of `time` rows: see ConvStep. */
export interface CausalConvArgs {
  readonly batch: number;
  readonly time: number;
  readonly channels: number;
  readonly taps: number;
  /** Real [batch·time, channels]. */
  readonly x: Buffer;
  /** Real [channels, taps]. */
  readonly weight: Buffer;
  /** Real [channels]. */
  readonly bias?: Buffer;
  /** Real [batch, taps − 1, channels]: the inputs before the first row, replaced by those before the row after the last. */
  readonly state?: Buffer;
  readonly out: Buffer;
}

/** The gradient of the input of sequences that begin with zeros; weights are not learned. */
export interface CausalConvBackwardArgs extends Pick<
  CausalConvArgs,
  "batch" | "time" | "channels" | "taps" | "weight"
> {
  readonly grad: Buffer;
  readonly gradX: Buffer;
}

/** Of each of `batch` sequences of `time` rows: see RecurrenceStep. */
export interface RecurrenceArgs extends RecurrenceShape {
  readonly batch: number;
  readonly time: number;
  /** Real [batch·time, width]. */
  readonly x: Buffer;
  /** Real [batch·time, heads]. */
  readonly step: Buffer;
  readonly beta?: Buffer;
  /** Real [heads]. */
  readonly rate: Buffer;
  readonly bias: Buffer;
  readonly skip?: Buffer;
  /** Real [batch, heads, keyDim, valueDim]: the state before the first row, replaced by that after the last. */
  readonly state?: Buffer;
  /** Real [batch·time, heads·valueDim]. */
  readonly out: Buffer;
}

/**
 * Gradients of sequences whose state begins with zeros; rate, bias and skip are not learned. From the last row to the first,
 * with D the gradient of the state after a row, S′ the state after decay and g that of out:
 *   D ← D + q·gᵀ;  dq = S·g;  dk = D·u;  e = Dᵀk;  with `beta` = b: dv = b·e, db = e·(v − S′ᵀk), dk −= b·S′e, D ← D − b·k·eᵀ;
 *   without: dv = Δ·e, dΔ = e·v. Then dγ·γ = ⟨D, S′⟩ and D ← γ·D.
 * At a limit of Δ its gradient ends.
 */
export interface RecurrenceBackwardArgs extends Omit<RecurrenceArgs, "state" | "out"> {
  readonly grad: Buffer;
  readonly gradX: Buffer;
  readonly gradStep: Buffer;
  /** Where there is `beta`. */
  readonly gradBeta?: Buffer;
}
