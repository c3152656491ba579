/**
 * How far a 4-bit grid reaches (ours). Thresholds made of largest values leave few levels to the many small ones: at 4 bits
 * a normal distribution is rounded best when it is cut at some 2.5 standard deviations. The search shrinks a threshold,
 * with the copies as they are, to where the summed squared error of the linear's output is least: rounding and clipping of
 * one side, weighted channel by channel with the other side's power.
 */
import type { RealArray } from "../../../backend/contract/training.js";

/** Shares of the threshold that are tried. */
const SHARES = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4];

/** Rows of an activation that the search looks at. */
export const SEARCH_ROWS = 256;

export interface ReachProblem {
  /** [rows, channels]. */
  readonly values: ArrayLike<number>;
  /** Multiplies each channel first. */
  readonly factor?: ArrayLike<number>;
  /** Copies of each channel. */
  readonly copies: Int32Array;
  readonly threshold: number;
  /** Power of what each channel is multiplied with. */
  readonly power: ArrayLike<number>;
  readonly bits: number;
}

/** The share of the threshold with the least error; the largest where several are equal. */
export function searchReach(problem: ReachProblem): number {
  let best = SHARES[0];
  let least = Infinity;
  for (const share of SHARES) {
    const error = outputError(problem, share);
    if (error < least) [best, least] = [share, error];
  }
  return best;
}

function outputError(
  { values, factor, copies, threshold, power, bits }: ReachProblem,
  share: number,
): number {
  const top = 2 ** (bits - 1) - 1;
  const step = (share * threshold) / top;
  const channels = copies.length;
  let sum = 0;
  for (let i = 0, j = 0; i < values.length; i++) {
    const size = Math.abs(factor ? values[i] * factor[j] : values[i]);
    const rounded = Math.min(Math.round(size / step), copies[j] * top) * step;
    sum += power[j] * (size - rounded) ** 2;
    if (++j === channels) j = 0;
  }
  return sum;
}

/** Σ over rows of the squares of each column. */
export function columnPower(x: ArrayLike<number>, cols: number): Float64Array {
  const power = new Float64Array(cols);
  for (let i = 0, j = 0; i < x.length; i++) {
    power[j] += x[i] ** 2;
    if (++j === cols) j = 0;
  }
  return power;
}

/** Rows of activations spread evenly over all that pass by. */
export class RowSample {
  private readonly rows: Float32Array[] = [];
  private seen = 0;

  constructor(
    private readonly channels: number,
    private readonly every: number,
  ) {}

  add(data: ArrayLike<number>): void {
    for (let at = 0; at < data.length; at += this.channels)
      if (this.seen++ % this.every === 0)
        this.rows.push(Float32Array.from({ length: this.channels }, (_, j) => data[at + j]));
  }

  values(): RealArray {
    const all = new Float32Array(this.rows.length * this.channels);
    this.rows.forEach((row, r) => {
      all.set(row, r * this.channels);
    });
    return all;
  }
}
