/** Reference RMS and layer normalization of rows. Sources: Zhang & Sennrich 2019; Ba, Kiros & Hinton 2016. */

import type { NormArgs, NormBackwardArgs, RealArray } from "../../contract/training.js";
import { optionalReals, reals } from "./views.js";

/** mean (0 for RMS) and 1/√(mean (x−mean)² + ε) of one row. */
function moments(
  kind: "rms" | "layer",
  x: RealArray,
  start: number,
  cols: number,
  epsilon: number,
) {
  let mean = 0;
  if (kind === "layer") {
    for (let c = 0; c < cols; c++) mean += x[start + c];
    mean /= cols;
  }
  let square = 0;
  for (let c = 0; c < cols; c++) square += (x[start + c] - mean) ** 2;
  return { mean, inverse: 1 / Math.sqrt(square / cols + epsilon) };
}

/** out = (x − mean)·(mean (x−mean)² + ε)^(−½)·gain (+ bias); for "rms" the mean is taken as 0. */
export function norm(args: NormArgs): void {
  const { kind, rows, cols } = args;
  const x = reals(args.x, rows * cols, "norm x");
  const gain = reals(args.gain, cols, "norm gain");
  const bias = optionalReals(args.bias, cols, "norm bias");
  const out = reals(args.out, rows * cols, "norm out");
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const { mean, inverse } = moments(kind, x, start, cols, args.epsilon);
    for (let c = 0; c < cols; c++) {
      out[start + c] = (x[start + c] - mean) * inverse * gain[c] + (bias ? bias[c] : 0);
    }
  }
}

/**
 * With n = (x − mean)·inverse and d = g ⊙ gain: gradX = inverse·(d − n·mean(d ⊙ n) − mean(d)), the last term for
 * layer norm only; gradGain = Σ g ⊙ n and gradBias = Σ g over rows.
 */
export function normBackward(args: NormBackwardArgs): void {
  const { kind, rows, cols } = args;
  const x = reals(args.x, rows * cols, "normBackward x");
  const gain = reals(args.gain, cols, "normBackward gain");
  const grad = reals(args.grad, rows * cols, "normBackward grad");
  const gradX = optionalReals(args.gradX, rows * cols, "normBackward gradX");
  const sumGain = new Float64Array(cols);
  const sumBias = new Float64Array(cols);
  for (let r = 0; r < rows; r++) {
    const start = r * cols;
    const { mean, inverse } = moments(kind, x, start, cols, args.epsilon);
    let meanD = 0;
    let meanDN = 0;
    for (let c = 0; c < cols; c++) {
      const n = (x[start + c] - mean) * inverse;
      const g = grad[start + c];
      sumGain[c] += g * n;
      sumBias[c] += g;
      meanD += (g * gain[c]) / cols;
      meanDN += (g * gain[c] * n) / cols;
    }
    if (!gradX) continue;
    for (let c = 0; c < cols; c++) {
      const n = (x[start + c] - mean) * inverse;
      const centred = grad[start + c] * gain[c] - n * meanDN;
      gradX[start + c] = inverse * (kind === "layer" ? centred - meanD : centred);
    }
  }
  optionalReals(args.gradGain, cols, "normBackward gradGain")?.set(sumGain);
  optionalReals(args.gradBias, cols, "normBackward gradBias")?.set(sumBias);
}
