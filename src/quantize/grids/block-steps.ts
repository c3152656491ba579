/**
 * Scales (and offsets) for the blocks of GGUF's types: of each group the ones whose grid lies closest to the weights, each
 * weight's error counting by its channel's importance. They are found as the file will hold them, halves and small integers,
 * and stand in the blocks' own bytes; `storedCodes` reads what grid they make.
 *
 * Our search: candidates around the group's extremes, each with the scale (and offset) that is best for the codes that it
 * gives, by least squares.
 */
import type { RealArray } from "../../backend/contract/buffer.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import { BLOCK_FORMATS, type WrittenType } from "../../checkpoint/gguf-blocks.js";
import { storedGrid } from "../../checkpoint/gguf-codes.js";
import {
  putHalf,
  putKScales,
  putSteps,
  type PlainBlockType,
} from "../../checkpoint/gguf-encode.js";
import { floatToHalfBits } from "../../common/half.js";

/** A group of weights, its importances, and where it begins in both. */
interface Group {
  readonly x: RealArray;
  readonly from: number;
  readonly size: number;
  readonly importance: RealArray;
  /** Of the group's first weight in `importance`. */
  readonly column: number;
}

const half = (value: number): number => halfFloats()[floatToHalfBits(value)];

/** Candidates lie between these shares of the scale that just reaches the group's extreme, in steps. */
const REACH = { from: 0.7, to: 1.2, steps: 26 };

/**
 * The scale, of either sign, for codes `low` to `high`: negative scales let an extreme above zero have the lower end, which
 * reaches one step further.
 */
function fitScale(group: Group, low: number, high: number): number {
  const { x, from, size, importance, column } = group;
  let extreme = 0;
  for (let i = 0; i < size; i++)
    if (Math.abs(x[from + i]) > Math.abs(extreme)) extreme = x[from + i];
  if (extreme === 0) return 0;
  let [best, bestGain] = [extreme / low, -Infinity];
  for (let c = 0; c <= REACH.steps; c++) {
    const share = REACH.from + ((REACH.to - REACH.from) * c) / REACH.steps;
    const inverse = low / (extreme * share);
    let [xq, qq] = [0, 0];
    for (let i = 0; i < size; i++) {
      const value = x[from + i];
      const code = Math.min(Math.max(Math.round(value * inverse), low), high);
      const weighed = importance[column + i] * code;
      xq += weighed * value;
      qq += weighed * code;
    }
    // With the best scale xq/qq the error is Σh·x² − xq²/qq.
    const gain = qq > 0 ? (xq * xq) / qq : 0;
    if (gain > bestGain) [best, bestGain] = [xq / qq, gain];
  }
  return best;
}

/** The scale and offset for codes 0 to `most`; `upTo`: the largest offset that the type can hold. */
function fitOffset(group: Group, most: number, upTo = Infinity): { scale: number; offset: number } {
  const { x, from, size, importance, column } = group;
  let [lo, hi] = [Infinity, -Infinity];
  for (let i = 0; i < size; i++) {
    lo = Math.min(lo, x[from + i]);
    hi = Math.max(hi, x[from + i]);
  }
  lo = Math.min(lo, upTo);
  if (hi <= lo) return { scale: 0, offset: lo };
  let best = { scale: (hi - lo) / most, offset: lo };
  let least = Infinity;
  for (let c = 0; c <= REACH.steps; c++) {
    const share = REACH.from + ((REACH.to - REACH.from) * c) / REACH.steps;
    const middle = (lo + hi) / 2;
    let [scale, offset] = [((hi - lo) / most) * share, middle - (middle - lo) * share];
    // The codes of a candidate have a better grid; its codes are those that count.
    for (let round = 0; round < 2; round++) {
      let [h, q, qq, xs, xq] = [0, 0, 0, 0, 0];
      for (let i = 0; i < size; i++) {
        const value = x[from + i];
        const code = Math.min(Math.max(Math.round((value - offset) / scale), 0), most);
        const weight = importance[column + i];
        h += weight;
        q += weight * code;
        qq += weight * code * code;
        xs += weight * value;
        xq += weight * value * code;
      }
      const determinant = h * qq - q * q;
      if (determinant <= 0) break;
      let [s, o] = [(h * xq - q * xs) / determinant, (qq * xs - q * xq) / determinant];
      if (o > upTo) [s, o] = [(xq - upTo * q) / qq, upTo];
      if (s <= 0) break;
      [scale, offset] = [s, o];
    }
    const error = errorOf(group, scale, offset, 0, most);
    if (error < least) [least, best] = [error, { scale, offset }];
  }
  return best;
}

function errorOf(group: Group, scale: number, offset: number, low: number, high: number): number {
  const { x, from, size, importance, column } = group;
  let sum = 0;
  for (let i = 0; i < size; i++) {
    const value = x[from + i];
    const code = Math.min(Math.max(Math.round((value - offset) / scale), low), high);
    sum += importance[column + i] * (value - offset - scale * code) ** 2;
  }
  return sum;
}

/** Range of a type's codes. */
export function codeRange(type: WrittenType): { readonly low: number; readonly high: number } {
  const grid = storedGrid(type);
  if (!grid) throw new Error(`${type} has no codes`);
  const low = grid.offset ? 0 : -(2 ** (grid.bits - 1));
  return { low, high: low + 2 ** grid.bits - 1 };
}

/**
 * Blocks of `type` for weights [rows, cols] with scales and no codes yet (`putCodes`). `importance`: how much an error
 * counts, by column, above 0.
 */
export function fitBlocks(
  type: WrittenType,
  x: RealArray,
  cols: number,
  importance: RealArray,
): Uint8Array {
  const at = (from: number, size: number): Group => ({
    x,
    from,
    size,
    importance,
    column: from % cols,
  });
  if (type === "Q4_K" || type === "Q5_K") return fitSuperBlocks(type, x.length, at);
  if (type === "Q6_K") return fitSixBits(x.length, at);
  return fitPlain(type, x.length, at);
}

type GroupAt = (from: number, size: number) => Group;

function fitPlain(type: PlainBlockType, count: number, at: GroupAt): Uint8Array {
  const { low, high } = codeRange(type);
  const size = 32;
  const groups = count / size;
  const scale = new Float32Array(groups);
  const offset = low === 0 ? new Float32Array(groups) : undefined;
  for (let n = 0; n < groups; n++) {
    const group = at(n * size, size);
    if (offset) {
      const fitted = fitOffset(group, high);
      scale[n] = fitted.scale;
      offset[n] = fitted.offset;
    } else scale[n] = fitScale(group, low, high);
  }
  return putSteps(type, scale, offset);
}

/** 8 groups of 32 a block: 6-bit scales and minima in steps of two halves. */
function fitSuperBlocks(type: "Q4_K" | "Q5_K", count: number, at: GroupAt): Uint8Array {
  const { blockElements, blockBytes } = BLOCK_FORMATS[type];
  const { high } = codeRange(type);
  const bytes = new Uint8Array((count / blockElements) * blockBytes);
  const finest = 63;
  for (let block = 0; block < count / blockElements; block++) {
    const groups = Array.from({ length: 8 }, (_, j) => at(block * blockElements + 32 * j, 32));
    const fitted = groups.map((group) => fitOffset(group, high, 0));
    const d = half(Math.max(...fitted.map(({ scale }) => scale)) / finest);
    const dmin = half(Math.max(...fitted.map(({ offset }) => -offset)) / finest);
    const scales = new Uint8Array(8);
    const minima = new Uint8Array(8);
    groups.forEach((group, j) => {
      // Each step of the two may be rounded either way: the pair that serves best.
      const near = (value: number, step: number): number[] => {
        const exact = step > 0 ? value / step : 0;
        return [Math.floor(exact), Math.ceil(exact)].map((n) => Math.min(Math.max(n, 0), finest));
      };
      let least = Infinity;
      for (const s of near(fitted[j].scale, d))
        for (const m of near(-fitted[j].offset, dmin)) {
          const error = errorOf(group, d * s || 1, -dmin * m, 0, d * s > 0 ? high : 0);
          if (error < least) [least, scales[j], minima[j]] = [error, s, m];
        }
    });
    const start = block * blockBytes;
    putHalf(bytes, start, d);
    putHalf(bytes, start + 2, dmin);
    putKScales(bytes, start + 4, scales, minima);
  }
  return bytes;
}

/** 16 groups of 16 a block: 8-bit scales of either sign in steps of a half. */
function fitSixBits(count: number, at: GroupAt): Uint8Array {
  const { blockElements, blockBytes } = BLOCK_FORMATS.Q6_K;
  const { low, high } = codeRange("Q6_K");
  const bytes = new Uint8Array((count / blockElements) * blockBytes);
  for (let block = 0; block < count / blockElements; block++) {
    const scales = Array.from({ length: 16 }, (_, j) =>
      fitScale(at(block * blockElements + 16 * j, 16), low, high),
    );
    const extreme = scales.reduce((most, s) => (Math.abs(s) > Math.abs(most) ? s : most), 0);
    const d = half(extreme / -128);
    const start = block * blockBytes;
    scales.forEach((scale, j) => {
      const step = d === 0 ? 0 : Math.min(Math.max(Math.round(scale / d), -128), 127);
      bytes[start + 192 + j] = step & 255;
    });
    putHalf(bytes, start + 208, d);
  }
  return bytes;
}
