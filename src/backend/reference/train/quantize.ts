/**
 * Reference grids: symmetric per-row quantization, asymmetric fake quantization, learned clipping of rows, and
 * their gradients. Source: docs/methods.md, Grids; FlatQuant (arXiv 2410.09426), section 3.2.
 */

import type {
  Buffer,
  ClipRowsArgs,
  ClipRowsBackwardArgs,
  FakeQuantizeAsymArgs,
  FakeQuantizeAsymBackwardArgs,
  Kernels,
  QuantizeRowsArgs,
  QuantizeRowsBackwardArgs,
  RealArray,
} from "../../contract/training.js";
import { codes8, optionalReals, reals } from "./views.js";

/** Nearest integer, ties to the even one. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const fraction = x - floor;
  if (fraction < 0.5) return floor;
  if (fraction > 0.5) return floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

/** Largest and smallest element of a row. */
export function extremes(x: RealArray, start: number, cols: number): { max: number; min: number } {
  let max = -Infinity;
  let min = Infinity;
  for (let c = 0; c < cols; c++) {
    if (x[start + c] > max) max = x[start + c];
    if (x[start + c] < min) min = x[start + c];
  }
  return { max, min };
}

/** gradX += share/(number of ties) at every element of the row that equals `value`. */
export function addToEqual(
  x: RealArray,
  start: number,
  cols: number,
  value: number,
  share: number,
  gradX: Float64Array,
): void {
  let ties = 0;
  for (let c = 0; c < cols; c++) if (x[start + c] === value) ties++;
  for (let c = 0; c < cols; c++) if (x[start + c] === value) gradX[c] += share / ties;
}

export interface Clips {
  /** σ(clipMax), σ(clipMin); 1 without clips. */
  readonly max: number;
  readonly min: number;
}

export function scalarClips(
  clipMax: Buffer | undefined,
  clipMin: Buffer | undefined,
  what: string,
): Clips {
  if ((clipMax === undefined) !== (clipMin === undefined))
    throw new TypeError(`${what}: clipMax and clipMin go together`);
  if (clipMax === undefined || clipMin === undefined) return { max: 1, min: 1 };
  return {
    max: sigmoid(reals(clipMax, 1, `${what} clipMax`)[0]),
    min: sigmoid(reals(clipMin, 1, `${what} clipMin`)[0]),
  };
}

/** Range that a row's grid covers: hi = max(0, max x)·σ(clipMax), lo = min(0, min x)·σ(clipMin). */
function rowRange(x: RealArray, start: number, cols: number, clips: Clips) {
  const { max, min } = extremes(x, start, cols);
  const rowMax = Math.max(0, max);
  const rowMin = Math.min(0, min);
  return { rowMax, rowMin, hi: rowMax * clips.max, lo: rowMin * clips.min };
}

/**
 * Per row: scale = max(scaleFloor, max(|lo|, hi)/qmax), 1 for a zero row when the floor is 0;
 * code = clamp(round_half_even(x/scale + offset), −qmax−1, qmax), qmax = 2^(b−1) − 1.
 */
export function quantizeRows(args: QuantizeRowsArgs): void {
  const { rows, cols, bits } = args;
  const x = reals(args.x, rows * cols, "quantizeRows x");
  const offset = optionalReals(args.offset, rows * cols, "quantizeRows offset");
  const codes = codes8(args.codes, rows * cols, "quantizeRows codes");
  const scale = reals(args.scale, rows, "quantizeRows scale");
  const clips = scalarClips(args.clipMax, args.clipMin, "quantizeRows");
  const qmax = 2 ** (bits - 1) - 1;
  for (let r = 0; r < rows; r++) {
    const { hi, lo } = rowRange(x, r * cols, cols, clips);
    const wanted = Math.max(args.scaleFloor, Math.max(-lo, hi) / qmax);
    scale[r] = wanted === 0 ? 1 : wanted;
    for (let i = r * cols; i < (r + 1) * cols; i++) {
      const level = roundHalfEven(x[i] / scale[r] + (offset ? offset[i] : 0));
      codes[i] = Math.min(qmax, Math.max(-qmax - 1, level));
    }
  }
}

/**
 * Gradient of y = scale·code, rounding taken as the identity. With u = x/s + offset and in = [round(u) within the grid]:
 * gradX = g·in, gradOffset = s·g·in, and ds = Σ g·(code − in·x/s) flows through s = max(|lo|, hi)/qmax to the
 * larger side (half to each when |lo| = hi), there to σ(clip) and to the row's extreme element, equally among ties.
 * A floored scale, or the scale of a zero row, is a constant.
 */
export function quantizeRowsBackward(args: QuantizeRowsBackwardArgs): void {
  const { rows, cols, bits } = args;
  const x = reals(args.x, rows * cols, "quantizeRowsBackward x");
  const offset = optionalReals(args.offset, rows * cols, "quantizeRowsBackward offset");
  const codes = codes8(args.codes, rows * cols, "quantizeRowsBackward codes");
  const scale = reals(args.scale, rows, "quantizeRowsBackward scale");
  const grad = reals(args.grad, rows * cols, "quantizeRowsBackward grad");
  const gradX = optionalReals(args.gradX, rows * cols, "quantizeRowsBackward gradX");
  const gradOffset = optionalReals(args.gradOffset, rows * cols, "quantizeRowsBackward gradOffset");
  const clips = scalarClips(args.clipMax, args.clipMin, "quantizeRowsBackward");
  const qmax = 2 ** (bits - 1) - 1;
  const rowGrad = new Float64Array(cols);
  let sumHi = 0;
  let sumLo = 0;
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const s = scale[r];
    let gradScale = 0;
    for (let c = 0; c < cols; c++) {
      const ratio = x[start + c] / s;
      const level = roundHalfEven(ratio + (offset ? offset[start + c] : 0));
      const inRange = level >= -qmax - 1 && level <= qmax;
      const g = grad[start + c];
      rowGrad[c] = inRange ? g : 0;
      if (gradOffset) gradOffset[start + c] = inRange ? s * g : 0;
      gradScale += g * (codes[start + c] - (inRange ? ratio : 0));
    }
    const { rowMax, rowMin, hi, lo } = rowRange(x, start, cols, clips);
    const reach = Math.max(-lo, hi);
    if (reach > 0 && reach / qmax >= args.scaleFloor) {
      const share = -lo === hi ? 0.5 : 1;
      if (hi === reach) {
        const gradHi = (share * gradScale) / qmax;
        sumHi += gradHi * rowMax;
        addToEqual(x, start, cols, rowMax, gradHi * clips.max, rowGrad);
      }
      if (-lo === reach) {
        const gradLo = (-share * gradScale) / qmax;
        sumLo += gradLo * rowMin;
        addToEqual(x, start, cols, rowMin, gradLo * clips.min, rowGrad);
      }
    }
    gradX?.set(rowGrad, start);
  }
  if (args.gradClipMax)
    reals(args.gradClipMax, 1, "quantizeRowsBackward gradClipMax")[0] =
      sumHi * clips.max * (1 - clips.max);
  if (args.gradClipMin)
    reals(args.gradClipMin, 1, "quantizeRowsBackward gradClipMin")[0] =
      sumLo * clips.min * (1 - clips.min);
}

/** out[r,c] = scale[r]·codes[r,c]. */
export function dequantizeRows(args: Parameters<Kernels["dequantizeRows"]>[0]): void {
  const { rows, cols } = args;
  const codes = codes8(args.codes, rows * cols, "dequantizeRows codes");
  const scale = reals(args.scale, rows, "dequantizeRows scale");
  const out = reals(args.out, rows * cols, "dequantizeRows out");
  for (let r = 0; r < rows; r++) {
    for (let i = r * cols; i < (r + 1) * cols; i++) out[i] = scale[r] * codes[i];
  }
}

/** One row's asymmetric grid: scale = (hi−lo)/(2^b−1), zero = round(−lo/scale); an all-zero row spans −1 … 1. */
function asymGrid(x: RealArray, start: number, cols: number, levels: number, clips: Clips) {
  const range = rowRange(x, start, cols, clips);
  const empty = range.rowMax === 0 && range.rowMin === 0;
  const hi = empty ? 1 : range.hi;
  const lo = empty ? -1 : range.lo;
  const scale = (hi - lo) / levels;
  return { ...range, empty, scale, zero: roundHalfEven(-lo / scale) };
}

/** Per row: out = scale·(clamp(round(x/scale) + zero, 0, 2^b−1) − zero). */
export function fakeQuantizeAsym(args: FakeQuantizeAsymArgs): void {
  const { rows, cols, bits } = args;
  const x = reals(args.x, rows * cols, "fakeQuantizeAsym x");
  const out = reals(args.out, rows * cols, "fakeQuantizeAsym out");
  const clips = scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsym");
  const levels = 2 ** bits - 1;
  for (let r = 0; r < rows; r++) {
    const { scale, zero } = asymGrid(x, r * cols, cols, levels, clips);
    for (let i = r * cols; i < (r + 1) * cols; i++) {
      const code = Math.min(levels, Math.max(0, roundHalfEven(x[i] / scale) + zero));
      out[i] = scale * (code - zero);
    }
  }
}

/**
 * Gradient of the above, rounding taken as the identity and the zero point as a constant. Elements whose code was
 * not clamped pass g to x; the scale receives ds = Σ g·(code − zero − x/s·[not clamped]), which flows as
 * ds/(2^b−1) to hi and its negative to lo, there to σ(clip) and to the row's extreme elements, equally among ties.
 */
export function fakeQuantizeAsymBackward(args: FakeQuantizeAsymBackwardArgs): void {
  const { rows, cols, bits } = args;
  const x = reals(args.x, rows * cols, "fakeQuantizeAsymBackward x");
  const grad = reals(args.grad, rows * cols, "fakeQuantizeAsymBackward grad");
  const gradX = reals(args.gradX, rows * cols, "fakeQuantizeAsymBackward gradX");
  const clips = scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsymBackward");
  const levels = 2 ** bits - 1;
  const rowGrad = new Float64Array(cols);
  let sumHi = 0;
  let sumLo = 0;
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const { scale, zero, empty, rowMax, rowMin } = asymGrid(x, start, cols, levels, clips);
    let gradScale = 0;
    for (let c = 0; c < cols; c++) {
      const ratio = x[start + c] / scale;
      const level = roundHalfEven(ratio) + zero;
      const inRange = level >= 0 && level <= levels;
      const code = Math.min(levels, Math.max(0, level));
      rowGrad[c] = inRange ? grad[start + c] : 0;
      gradScale += grad[start + c] * (code - zero - (inRange ? ratio : 0));
    }
    if (!empty) {
      const gradHi = gradScale / levels;
      const gradLo = -gradScale / levels;
      sumHi += gradHi * rowMax;
      sumLo += gradLo * rowMin;
      // A side that the row does not reach (rowMax = 0 of an all-negative row) is the constant 0.
      if (rowMax > 0) addToEqual(x, start, cols, rowMax, gradHi * clips.max, rowGrad);
      if (rowMin < 0) addToEqual(x, start, cols, rowMin, gradLo * clips.min, rowGrad);
    }
    gradX.set(rowGrad, start);
  }
  const gradClipMax = optionalReals(args.gradClipMax, 1, "fakeQuantizeAsymBackward gradClipMax");
  const gradClipMin = optionalReals(args.gradClipMin, 1, "fakeQuantizeAsymBackward gradClipMin");
  if (gradClipMax) gradClipMax[0] = sumHi * clips.max * (1 - clips.max);
  if (gradClipMin) gradClipMin[0] = sumLo * clips.min * (1 - clips.min);
}

/** Per row r: out = min(max(x, min_r·σ(clipMin_r)), max_r·σ(clipMax_r)), so the upper bound wins where they cross. */
export function clipRows(args: ClipRowsArgs): void {
  const { rows, cols } = args;
  const x = reals(args.x, rows * cols, "clipRows x");
  const clipMax = reals(args.clipMax, rows, "clipRows clipMax");
  const clipMin = reals(args.clipMin, rows, "clipRows clipMin");
  const out = reals(args.out, rows * cols, "clipRows out");
  for (let r = 0; r < rows; r++) {
    const { max, min } = extremes(x, r * cols, cols);
    const upper = max * sigmoid(clipMax[r]);
    const lower = min * sigmoid(clipMin[r]);
    for (let i = r * cols; i < (r + 1) * cols; i++) out[i] = Math.min(Math.max(x[i], lower), upper);
  }
}

/**
 * Elements strictly inside or on the bounds pass their gradient to x. The others pass it to their bound, where the
 * sum G flows on: σ(clip)·G to the row's extreme element (equally among ties), extreme·σ'(clip)·G to the clip.
 */
export function clipRowsBackward(args: ClipRowsBackwardArgs): void {
  const { rows, cols } = args;
  const x = reals(args.x, rows * cols, "clipRowsBackward x");
  const clipMax = reals(args.clipMax, rows, "clipRowsBackward clipMax");
  const clipMin = reals(args.clipMin, rows, "clipRowsBackward clipMin");
  const grad = reals(args.grad, rows * cols, "clipRowsBackward grad");
  const gradX = reals(args.gradX, rows * cols, "clipRowsBackward gradX");
  const gradClipMax = optionalReals(args.gradClipMax, rows, "clipRowsBackward gradClipMax");
  const gradClipMin = optionalReals(args.gradClipMin, rows, "clipRowsBackward gradClipMin");
  const rowGrad = new Float64Array(cols);
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const { max, min } = extremes(x, start, cols);
    const sMax = sigmoid(clipMax[r]);
    const sMin = sigmoid(clipMin[r]);
    const upper = max * sMax;
    const lower = min * sMin;
    let gradUpper = 0;
    let gradLower = 0;
    for (let c = 0; c < cols; c++) {
      const g = grad[start + c];
      const above = Math.max(x[start + c], lower) > upper;
      const below = !above && x[start + c] < lower;
      rowGrad[c] = above || below ? 0 : g;
      if (above) gradUpper += g;
      if (below) gradLower += g;
    }
    addToEqual(x, start, cols, max, gradUpper * sMax, rowGrad);
    addToEqual(x, start, cols, min, gradLower * sMin, rowGrad);
    gradX.set(rowGrad, start);
    if (gradClipMax) gradClipMax[r] = gradUpper * max * sMax * (1 - sMax);
    if (gradClipMin) gradClipMin[r] = gradLower * min * sMin * (1 - sMin);
  }
}
