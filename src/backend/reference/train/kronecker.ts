/** Reference Kronecker transform of rows and its gradient. Source: docs/methods.md, Kronecker transform. */

import type { KroneckerArgs, KroneckerBackwardArgs, RealArray } from "../../contract/training.js";
import { optionalReals, reals } from "./views.js";

/**
 * c[i,j] = Σ_κ a[i,κ]·b[κ,j] for small dense matrices, either read as its transpose. Four columns at once: weights are
 * folded here in float64, and one chain of sums would wait for its own additions.
 */
function product(
  a: Float64Array,
  b: Float64Array,
  m: number,
  k: number,
  n: number,
  aTransposed: boolean,
  bTransposed: boolean,
): Float64Array {
  const c = new Float64Array(m * n);
  const [aRow, aCol] = aTransposed ? [1, m] : [k, 1];
  const [bRow, bCol] = bTransposed ? [1, k] : [n, 1];
  for (let i = 0; i < m; i++) {
    let j = 0;
    for (; j + 4 <= n; j += 4) {
      let [c0, c1, c2, c3] = [0, 0, 0, 0];
      for (let kk = 0, at = j * bCol; kk < k; kk++, at += bRow) {
        const aik = a[i * aRow + kk * aCol];
        c0 += aik * b[at];
        c1 += aik * b[at + bCol];
        c2 += aik * b[at + 2 * bCol];
        c3 += aik * b[at + 3 * bCol];
      }
      c[i * n + j] = c0;
      c[i * n + j + 1] = c1;
      c[i * n + j + 2] = c2;
      c[i * n + j + 3] = c3;
    }
    for (; j < n; j++)
      for (let kk = 0; kk < k; kk++)
        c[i * n + j] += a[i * aRow + kk * aCol] * b[kk * bRow + j * bCol];
  }
  return c;
}

function matrixOrIdentity(matrix: RealArray | undefined, n: number): Float64Array {
  if (matrix) return Float64Array.from(matrix.subarray(0, n * n));
  const identity = new Float64Array(n * n);
  for (let i = 0; i < n; i++) identity[i * n + i] = 1;
  return identity;
}

function scaledRow(
  x: RealArray,
  start: number,
  width: number,
  diag: RealArray | undefined,
): Float64Array {
  const row = Float64Array.from(x.subarray(start, start + width));
  if (diag) for (let c = 0; c < width; c++) row[c] *= diag[c];
  return row;
}

/** Per row: X = reshape(x ⊙ diag, nLeft, nRight); out = leftᵀ·X·right. Absent matrices are identities. */
export function kronecker(args: KroneckerArgs): void {
  const { rows, nLeft, nRight } = args;
  const width = nLeft * nRight;
  const x = reals(args.x, rows * width, "kronecker x");
  const out = reals(args.out, rows * width, "kronecker out");
  const diag = optionalReals(args.diag, width, "kronecker diag");
  const left = matrixOrIdentity(optionalReals(args.left, nLeft * nLeft, "kronecker left"), nLeft);
  const right = matrixOrIdentity(
    optionalReals(args.right, nRight * nRight, "kronecker right"),
    nRight,
  );
  for (let r = 0; r < rows; r++) {
    const row = scaledRow(x, r * width, width, diag);
    const leftProduct = args.left ? product(left, row, nLeft, nLeft, nRight, true, false) : row;
    out.set(
      args.right ? product(leftProduct, right, nLeft, nRight, nRight, false, false) : leftProduct,
      r * width,
    );
  }
}

/**
 * With X as above and G the row's gradient: gradLeft = Σ (X·right)·Gᵀ, gradRight = Σ (leftᵀ·X)ᵀ·G,
 * dX = left·G·rightᵀ, gradX = dX ⊙ diag, gradDiag = Σ dX ⊙ x; sums over rows. All outputs are overwritten.
 */
export function kroneckerBackward(args: KroneckerBackwardArgs): void {
  const { rows, nLeft, nRight } = args;
  const width = nLeft * nRight;
  const x = reals(args.x, rows * width, "kroneckerBackward x");
  const grad = reals(args.grad, rows * width, "kroneckerBackward grad");
  const diag = optionalReals(args.diag, width, "kroneckerBackward diag");
  const left = matrixOrIdentity(
    optionalReals(args.left, nLeft * nLeft, "kroneckerBackward left"),
    nLeft,
  );
  const right = matrixOrIdentity(
    optionalReals(args.right, nRight * nRight, "kroneckerBackward right"),
    nRight,
  );
  const gradX = optionalReals(args.gradX, rows * width, "kroneckerBackward gradX");
  const gradLeft = optionalReals(args.gradLeft, nLeft * nLeft, "kroneckerBackward gradLeft");
  const gradRight = optionalReals(args.gradRight, nRight * nRight, "kroneckerBackward gradRight");
  const gradDiag = optionalReals(args.gradDiag, width, "kroneckerBackward gradDiag");
  const sumLeft = new Float64Array(nLeft * nLeft);
  const sumRight = new Float64Array(nRight * nRight);
  const sumDiag = new Float64Array(width);
  for (let r = 0; r < rows; r++) {
    const row = scaledRow(x, r * width, width, diag);
    const g = Float64Array.from(grad.subarray(r * width, (r + 1) * width));
    if (gradLeft) {
      const rightProduct = product(row, right, nLeft, nRight, nRight, false, false);
      product(rightProduct, g, nLeft, nRight, nLeft, false, true).forEach(
        (v, i) => (sumLeft[i] += v),
      );
    }
    if (gradRight) {
      const leftProduct = product(left, row, nLeft, nLeft, nRight, true, false);
      product(leftProduct, g, nRight, nLeft, nRight, true, false).forEach(
        (v, i) => (sumRight[i] += v),
      );
    }
    if (gradX || gradDiag) {
      const leftGrad = product(left, g, nLeft, nLeft, nRight, false, false);
      const dX = product(leftGrad, right, nLeft, nRight, nRight, false, true);
      for (let c = 0; c < width; c++) {
        sumDiag[c] += dX[c] * x[r * width + c];
        if (gradX) gradX[r * width + c] = dX[c] * (diag ? diag[c] : 1);
      }
    }
  }
  gradLeft?.set(sumLeft);
  gradRight?.set(sumRight);
  gradDiag?.set(sumDiag);
}
