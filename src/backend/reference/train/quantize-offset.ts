/**
 * Reference grid with a real offset beside its scale, one of each per row, and its gradient. A group of channels is a row
 * here: row-major data of groups is that of more, shorter rows. Definition: src/backend/contract/training-kernels.ts.
 */
import type {
  FakeQuantizeOffsetArgs,
  FakeQuantizeOffsetBackwardArgs,
  RealArray,
} from "../../contract/training.js";
import { addToEqual, extremes, roundHalfEven, scalarClips, type Clips } from "./quantize.js";
import { optionalReals, reals } from "./views.js";

/** One row's grid. */
function offsetGrid(x: RealArray, start: number, cols: number, levels: number, clips: Clips) {
  const { max, min } = extremes(x, start, cols);
  const half = (max - min) / 2;
  const hi = max - half * (1 - clips.max);
  const lo = min + half * (1 - clips.min);
  const scale = (hi - lo) / levels;
  return { max, min, half, lo, scale: scale > 0 ? scale : 1, constant: !(scale > 0) };
}

/** Per row: out = lo + scale·clamp(round((x − lo)/scale + shift), 0, 2^b−1). */
export function fakeQuantizeOffset(args: FakeQuantizeOffsetArgs): void {
  const { rows, cols, bits } = args;
  const x = reals(args.x, rows * cols, "fakeQuantizeOffset x");
  const shift = optionalReals(args.shift, rows * cols, "fakeQuantizeOffset shift");
  const out = reals(args.out, rows * cols, "fakeQuantizeOffset out");
  const clips = scalarClips(args.clipMax, args.clipMin, "fakeQuantizeOffset");
  const levels = 2 ** bits - 1;
  for (let r = 0; r < rows; r++) {
    const { scale, lo } = offsetGrid(x, r * cols, cols, levels, clips);
    for (let i = r * cols; i < (r + 1) * cols; i++) {
      const level = roundHalfEven((x[i] - lo) / scale + (shift ? shift[i] : 0));
      out[i] = lo + scale * Math.min(levels, Math.max(0, level));
    }
  }
}

/**
 * Gradient of the above, rounding taken as the identity. With u = (x−lo)/s + shift: elements whose round(u) is within the
 * grid pass g to x and s·g to the shift; the others pass g to lo. ds = Σ g·(code − (x−lo)/s·[within]) is s's. Since
 * s = (hi−lo)/(2^b−1), hi receives ds/(2^b−1), and lo the same taken from what it has. hi = max − half·(1−σ) and
 * lo = min + half·(1−σ) hand these on.
 */
export function fakeQuantizeOffsetBackward(args: FakeQuantizeOffsetBackwardArgs): void {
  const { rows, cols, bits } = args;
  const what = "fakeQuantizeOffsetBackward";
  const x = reals(args.x, rows * cols, `${what} x`);
  const shift = optionalReals(args.shift, rows * cols, `${what} shift`);
  const grad = reals(args.grad, rows * cols, `${what} grad`);
  const gradX = reals(args.gradX, rows * cols, `${what} gradX`);
  const gradShift = optionalReals(args.gradShift, rows * cols, `${what} gradShift`);
  const clips = scalarClips(args.clipMax, args.clipMin, what);
  const levels = 2 ** bits - 1;
  const rowGrad = new Float64Array(cols);
  let sumHi = 0;
  let sumLo = 0;
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const { max, min, half, scale, lo, constant } = offsetGrid(x, start, cols, levels, clips);
    let gradScale = 0;
    let gradLo = 0;
    for (let c = 0; c < cols; c++) {
      const g = grad[start + c];
      const ratio = (x[start + c] - lo) / scale;
      const level = roundHalfEven(ratio + (shift ? shift[start + c] : 0));
      const within = level >= 0 && level <= levels;
      const code = Math.min(levels, Math.max(0, level));
      rowGrad[c] = within ? g : 0;
      if (gradShift) gradShift[start + c] = within ? scale * g : 0;
      gradScale += g * (code - (within ? ratio : 0));
      if (!within) gradLo += g;
    }
    if (!constant) {
      const toHi = gradScale / levels;
      const toLo = gradLo - gradScale / levels;
      sumHi += toHi * half;
      sumLo -= toLo * half;
      // What hi keeps of max it takes from min, and the other way round.
      const fromMax = (toHi * (1 + clips.max) + toLo * (1 - clips.min)) / 2;
      const fromMin = (toHi * (1 - clips.max) + toLo * (1 + clips.min)) / 2;
      addToEqual(x, start, cols, max, fromMax, rowGrad);
      addToEqual(x, start, cols, min, fromMin, rowGrad);
    }
    gradX.set(rowGrad, start);
  }
  if (args.gradClipMax)
    reals(args.gradClipMax, 1, `${what} gradClipMax`)[0] = sumHi * clips.max * (1 - clips.max);
  if (args.gradClipMin)
    reals(args.gradClipMin, 1, `${what} gradClipMin`)[0] = sumLo * clips.min * (1 - clips.min);
}
