/**
 * Channel split ("flattening"): a channel that reaches beyond a threshold T is spread over several columns, none of which
 * does, and the other side's channel is repeated for each, so that the product stays the same while the tensor's largest
 * value drops to T. Source: docs/methods.md, flattenquant, Flattening.
 *
 * With copies p = 0, 1, …: copy p of x holds what lies between p·T and (p+1)·T on either side of zero,
 * clip(x, ±(p+1)T) − clip(x, ±pT). Where both sides of a channel are split, every pair of copies gets a column.
 * Columns 0 … K−1 are the channels' own (both first copies) in their order; all further pairs come after them, so that
 * most of a row is written straight through.
 */
import type { RealArray } from "../../backend/contract/training.js";

/** The columns beyond the channels' own. */
export interface ChannelSplit {
  /** Whose copy a column is. */
  readonly channel: Int32Array;
  /** Which copy of the activation's channel it takes, from 0. */
  readonly part: Int32Array;
  /** Which copy of the weight's channel it takes, from 0. */
  readonly weightPart: Int32Array;
}

export const NO_SPLIT: ChannelSplit = {
  channel: new Int32Array(),
  part: new Int32Array(),
  weightPart: new Int32Array(),
};

/** Copies that a channel with this largest magnitude needs: ⌈max / T⌉, at least one. */
export function copiesNeeded(maxima: ArrayLike<number>, threshold: number): Int32Array {
  return Int32Array.from(maxima, (max) => Math.max(1, Math.ceil(max / threshold)));
}

/** Columns of all pairs: Σ_j m^x_j·m^w_j. */
export function columnsNeeded(activation: Int32Array, weight: Int32Array): number {
  return activation.reduce((sum, copies, j) => sum + copies * weight[j], 0);
}

/** All pairs of copies but the first of each channel, channel by channel. */
export function splitChannels(activation: Int32Array, weight: Int32Array): ChannelSplit {
  const channel: number[] = [];
  const part: number[] = [];
  const weightPart: number[] = [];
  activation.forEach((copies, j) => {
    for (let p = 0; p < copies; p++)
      for (let q = 0; q < weight[j]; q++)
        if (p + q > 0) {
          channel.push(j);
          part.push(p);
          weightPart.push(q);
        }
  });
  return {
    channel: Int32Array.from(channel),
    part: Int32Array.from(part),
    weightPart: Int32Array.from(weightPart),
  };
}

/** How many copies each of `channels` channels has on the side whose parts are given. */
export function copiesOf(
  channels: number,
  channel: ArrayLike<number>,
  part: ArrayLike<number>,
): Int32Array {
  const copies = new Int32Array(channels).fill(1);
  for (let e = 0; e < channel.length; e++)
    copies[channel[e]] = Math.max(copies[channel[e]], part[e] + 1);
  return copies;
}

/**
 * Rows [rows, cols] with their channels split, unquantized: [rows, cols + extras]. A value beyond its last copy's reach
 * is cut there.
 */
export function splitRows(
  x: ArrayLike<number>,
  rows: number,
  cols: number,
  threshold: number,
  channel: ArrayLike<number>,
  part: ArrayLike<number>,
): Float64Array {
  const width = cols + channel.length;
  const out = new Float64Array(rows * width);
  const piece = (value: number, p: number): number => {
    const size = Math.min(Math.max(Math.abs(value) - p * threshold, 0), threshold);
    return value < 0 ? -size : size;
  };
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < cols; j++) out[r * width + j] = piece(x[r * cols + j], 0);
    for (let e = 0; e < channel.length; e++)
      out[r * width + cols + e] = piece(x[r * cols + channel[e]], part[e]);
  }
  return out;
}

/** Largest magnitude per column of a matrix [rows, cols]. */
export function columnMaxima(x: RealArray, cols: number): Float64Array {
  const maxima = new Float64Array(cols);
  for (let i = 0, j = 0; i < x.length; i++) {
    const size = Math.abs(x[i]);
    if (size > maxima[j]) maxima[j] = size;
    if (++j === cols) j = 0;
  }
  return maxima;
}
