/**
 * Small dense linear algebra in float64: Cayley's orthogonal matrices and the inverse, by LU with partial pivoting.
 * Other backends may call the functions on plain arrays; they are no slower than any other float64 code for n of a few hundred.
 * Source: Golub & Van Loan, Matrix Computations, algorithm 3.4.1; docs/methods.md, flatquant.
 */

import type {
  CayleyArgs,
  CayleyBackwardArgs,
  InverseArgs,
  RealArray,
} from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { reals } from "./views.js";

/**
 * Solves M·X = B for n×n M and n×cols B, both row-major; returns X and leaves its arguments alone.
 * Throws PlanishError when M is singular (a pivot of zero, or not a number).
 */
export function solveDense(
  matrix: Float64Array,
  rhs: Float64Array,
  n: number,
  cols: number,
): Float64Array {
  const m = Float64Array.from(matrix);
  const x = Float64Array.from(rhs);
  const swap = (array: Float64Array, width: number, a: number, b: number) => {
    const row = array.slice(a * width, (a + 1) * width);
    array.copyWithin(a * width, b * width, (b + 1) * width);
    array.set(row, b * width);
  };
  for (let p = 0; p < n; p++) {
    let best = p;
    for (let i = p + 1; i < n; i++)
      if (Math.abs(m[i * n + p]) > Math.abs(m[best * n + p])) best = i;
    const pivot = m[best * n + p];
    if (!(Math.abs(pivot) > 0) || !Number.isFinite(pivot)) {
      throw new PlanishError(
        `a ${n}×${n} matrix has no inverse (pivot ${p} is ${pivot}); start again from an invertible matrix, or use the Cayley parametrisation`,
      );
    }
    if (best !== p) {
      swap(m, n, p, best);
      swap(x, cols, p, best);
    }
    for (let i = p + 1; i < n; i++) {
      const factor = m[i * n + p] / pivot;
      if (factor === 0) continue;
      for (let j = p + 1; j < n; j++) m[i * n + j] -= factor * m[p * n + j];
      for (let j = 0; j < cols; j++) x[i * cols + j] -= factor * x[p * cols + j];
    }
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let kk = i + 1; kk < n; kk++) {
      const factor = m[i * n + kk];
      for (let j = 0; j < cols; j++) x[i * cols + j] -= factor * x[kk * cols + j];
    }
    for (let j = 0; j < cols; j++) x[i * cols + j] /= m[i * n + i];
  }
  return x;
}

/** I + sign·A/2 with A = tril(seed) − tril(seed)ᵀ (the diagonal of the seed has no effect). */
function identityPlusHalfSkew(seed: RealArray, n: number, sign: 1 | -1): Float64Array {
  const m = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    m[i * n + i] = 1;
    for (let j = 0; j < i; j++) {
      m[i * n + j] = (sign * seed[i * n + j]) / 2;
      m[j * n + i] = -m[i * n + j];
    }
  }
  return m;
}

/** Q = (I − A/2)⁻¹(I + A/2). */
export function cayley(args: CayleyArgs): void {
  const { n } = args;
  const seed = reals(args.seed, n * n, "cayley seed");
  const out = reals(args.out, n * n, "cayley out");
  out.set(solveDense(identityPlusHalfSkew(seed, n, -1), identityPlusHalfSkew(seed, n, 1), n, n));
}

/**
 * From (I − A/2)·dQ = ½·dA·(I + Q): dA = ½·Y·(I + Q)ᵀ with (I − A/2)ᵀ·Y = grad, (I − A/2)ᵀ = I + A/2;
 * gradSeed[i,j] = dA[i,j] − dA[j,i] below the diagonal and 0 elsewhere.
 */
export function cayleyBackward(args: CayleyBackwardArgs): void {
  const { n } = args;
  const seed = reals(args.seed, n * n, "cayleyBackward seed");
  const q = reals(args.out, n * n, "cayleyBackward out");
  const grad = reals(args.grad, n * n, "cayleyBackward grad");
  const gradSeed = reals(args.gradSeed, n * n, "cayleyBackward gradSeed");
  const y = solveDense(
    identityPlusHalfSkew(seed, n, 1),
    Float64Array.from(grad.subarray(0, n * n)),
    n,
    n,
  );
  const dA = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      let sum = y[i * n + j];
      for (let c = 0; c < n; c++) sum += y[i * n + c] * q[j * n + c];
      dA[i * n + j] = sum / 2;
    }
  }
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) gradSeed[i * n + j] = j < i ? dA[i * n + j] - dA[j * n + i] : 0;
  }
}

/** out = x⁻¹. Throws PlanishError when x is singular. */
export function inverse(args: InverseArgs): void {
  const { n } = args;
  const x = Float64Array.from(reals(args.x, n * n, "inverse x").subarray(0, n * n));
  const identity = new Float64Array(n * n);
  for (let i = 0; i < n; i++) identity[i * n + i] = 1;
  reals(args.out, n * n, "inverse out").set(solveDense(x, identity, n, n));
}
