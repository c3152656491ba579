/** Reference elementwise maps, broadcasts and sums. */

import type {
  BinaryArgs,
  ColumnMaximaArgs,
  ReduceArgs,
  ScaleArgs,
  SiluMulArgs,
  SiluMulBackwardArgs,
  UnaryArgs,
  UnaryBackwardArgs,
  UnaryOp,
} from "../../contract/training.js";
import { optionalReals, reals } from "./views.js";
import { sigmoid } from "./quantize.js";

const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);
/** Cubic term of the tanh approximation of GELU (Hendrycks & Gimpel 2016). */
const GELU_CUBIC = 0.044715;

/** Error function to about 1e-15: its Maclaurin series up to |x| = 2.5, then the continued fraction of erfc. */
export function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z <= 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = z;
  for (let n = 120; n >= 1; n--) fraction = z + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-z * z) / (fraction * Math.sqrt(Math.PI)));
}

/** The functions that UnaryOp names, and their derivatives. */
const UNARY: Readonly<
  Record<UnaryOp, { value: (x: number) => number; slope: (x: number) => number }>
> = {
  sigmoid: { value: sigmoid, slope: (x) => sigmoid(x) * (1 - sigmoid(x)) },
  silu: { value: (x) => x * sigmoid(x), slope: siluSlope },
  // At 0 the derivative is taken as 0.
  relu: { value: (x) => (x > 0 ? x : 0), slope: (x) => (x > 0 ? 1 : 0) },
  gelu: {
    value: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    slope: (x) =>
      0.5 * (1 + erf(x / Math.SQRT2)) + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI),
  },
  geluTanh: {
    value: (x) => 0.5 * x * (1 + Math.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x ** 3))),
    slope: (x) => {
      const t = Math.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x ** 3));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x);
    },
  },
  reciprocal: { value: (x) => 1 / x, slope: (x) => -1 / (x * x) },
  negate: { value: (x) => -x, slope: () => -1 },
  relu2: { value: (x) => (x > 0 ? x * x : 0), slope: (x) => (x > 0 ? 2 * x : 0) },
};

/** d/dx x·σ(x) = σ(x)·(1 + x·(1 − σ(x))). */
function siluSlope(x: number): number {
  const s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

/** out_i = f(x_i). */
export function unary(args: UnaryArgs): void {
  const x = reals(args.x, args.length, "unary x");
  const out = reals(args.out, args.length, "unary out");
  const { value } = UNARY[args.op];
  for (let i = 0; i < args.length; i++) out[i] = value(x[i]);
}

/** gradX_i = f'(x_i)·grad_i. */
export function unaryBackward(args: UnaryBackwardArgs): void {
  const x = reals(args.x, args.length, "unaryBackward x");
  const grad = reals(args.grad, args.length, "unaryBackward grad");
  const gradX = reals(args.gradX, args.length, "unaryBackward gradX");
  const { slope } = UNARY[args.op];
  for (let i = 0; i < args.length; i++) gradX[i] = slope(x[i]) * grad[i];
}

/** out[r,c] = a[r,c] ∘ b, with b's element at (r,c), c, r or 0 as `broadcast` says. */
export function binary(args: BinaryArgs): void {
  const { op, rows, cols, broadcast } = args;
  const lengths = { full: rows * cols, row: cols, column: rows, scalar: 1 } as const;
  const a = reals(args.a, rows * cols, "binary a");
  const b = reals(args.b, lengths[broadcast], "binary b");
  const out = reals(args.out, rows * cols, "binary out");
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const i = r * cols + c;
      const other =
        b[broadcast === "full" ? i : broadcast === "row" ? c : broadcast === "column" ? r : 0];
      out[i] = op === "add" ? a[i] + other : op === "sub" ? a[i] - other : a[i] * other;
    }
  }
}

/** out = alpha·Σ x[r,c]·y[r,c] (y taken as ones when absent) over all indices but the one kept. */
export function reduce(args: ReduceArgs): void {
  const { rows, cols, keep } = args;
  const x = reals(args.x, rows * cols, "reduce x");
  const y = optionalReals(args.y, rows * cols, "reduce y");
  const length = keep === "row" ? cols : keep === "column" ? rows : 1;
  const out = reals(args.out, length, "reduce out");
  const sums = new Float64Array(length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const i = r * cols + c;
      sums[keep === "row" ? c : keep === "column" ? r : 0] += y ? x[i] * y[i] : x[i];
    }
  }
  for (let i = 0; i < length; i++) out[i] = args.alpha * sums[i];
}

/** out[c] = max(out[c], max_r |x[r,c]|). */
export function columnMaxima(args: ColumnMaximaArgs): void {
  const { rows, cols } = args;
  const x = reals(args.x, rows * cols, "columnMaxima x");
  const out = reals(args.out, cols, "columnMaxima out");
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) out[c] = Math.max(out[c], Math.abs(x[r * cols + c]));
}

/** out_i = alpha·x_i, plus the previous out_i when accumulating. `out` may be `x`. */
export function scale(args: ScaleArgs): void {
  const x = reals(args.x, args.length, "scale x");
  const out = reals(args.out, args.length, "scale out");
  for (let i = 0; i < args.length; i++) out[i] = args.alpha * x[i] + (args.accumulate ? out[i] : 0);
}

/** out = silu(gate)·up. */
export function siluMul(args: SiluMulArgs): void {
  const gate = reals(args.gate, args.length, "siluMul gate");
  const up = reals(args.up, args.length, "siluMul up");
  const out = reals(args.out, args.length, "siluMul out");
  for (let i = 0; i < args.length; i++) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

/** gradGate = silu'(gate)·up·grad, gradUp = silu(gate)·grad. */
export function siluMulBackward(args: SiluMulBackwardArgs): void {
  const gate = reals(args.gate, args.length, "siluMulBackward gate");
  const up = reals(args.up, args.length, "siluMulBackward up");
  const grad = reals(args.grad, args.length, "siluMulBackward grad");
  const gradGate = reals(args.gradGate, args.length, "siluMulBackward gradGate");
  const gradUp = reals(args.gradUp, args.length, "siluMulBackward gradUp");
  for (let i = 0; i < args.length; i++) {
    const g = grad[i];
    const value = gate[i];
    const other = up[i];
    gradGate[i] = siluSlope(value) * other * g;
    gradUp[i] = value * sigmoid(value) * g;
  }
}
