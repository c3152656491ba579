/** Flatness and distributions of tensors on the host. */
import { CURVE_POINTS, curvePlace, type Distribution, type Magnitudes } from "./data.js";

/** Largest |value| of each column of a row-major matrix, folded into `into`. */
export function foldColumnMaxima(data: ArrayLike<number>, into: Float64Array): void {
  for (let i = 0, j = 0; i < data.length; i++) {
    const value = Math.abs(data[i]);
    if (value > into[j]) into[j] = value;
    if (++j === into.length) j = 0;
  }
}

/** Root mean square distance from the mean, over the mean. */
export function flatnessOf(values: ArrayLike<number>): number {
  const list = Array.from(values);
  const mean = list.reduce((a, b) => a + b, 0) / list.length;
  if (!(mean > 0)) return 0;
  const squares = list.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return Math.sqrt(squares / list.length) / mean;
}

export function magnitudes(maxima: Float64Array): Magnitudes {
  const sorted = Float64Array.from(maxima).sort().reverse();
  const mean = sorted.reduce((a, b) => a + b, 0) / sorted.length || 1;
  const channels = sorted.length;
  return {
    channels,
    flatness: short(flatnessOf(sorted)),
    curve: Array.from({ length: CURVE_POINTS }, (_, p) =>
      short(sorted[curvePlace(p, channels)] / mean),
    ),
  };
}

/** Counts values by where they lie on a grid: a symmetric one of `bits`, from −Q−1 to Q with Q = 2^(bits−1) − 1. */
export class GridCounter {
  private readonly counts: Float64Array;
  private readonly low: number;
  private readonly perStep: number;
  private total = 0;

  /** `rounded`: only whole positions will be added. */
  constructor(
    private readonly bits: number,
    rounded = false,
  ) {
    const levels = 2 ** bits;
    this.low = -(levels / 2) - 0.5;
    // Finer than the levels, so that what rounding takes away shows, while that is still to be seen.
    const finest = rounded ? 1 : 4;
    this.perStep = bits <= 4 ? finest : bits <= 6 ? 1 : 0.25;
    this.counts = new Float64Array(levels * this.perStep);
  }

  /** `position`: the value over its step. What lies beyond the grid counts at its end. */
  add(position: number): void {
    const bin = Math.floor((position - this.low) * this.perStep);
    this.counts[Math.min(Math.max(bin, 0), this.counts.length - 1)]++;
    this.total++;
  }

  distribution(): Distribution {
    const total = this.total || 1;
    return {
      bits: this.bits,
      shares: Array.from(this.counts, (count) => short(count / total)),
      range: [this.low, this.low + 2 ** this.bits],
    };
  }
}

/** Three significant digits: what a plot shows, at a third of the size. */
export function short(x: number): number {
  return Number(x.toPrecision(3));
}
