/** Small dense matrices in float64 on the host. */
import { PlanishError } from "../../common/errors.js";

/**
 * Inverse of a square matrix (row-major) by Gauss–Jordan elimination with partial pivoting, optionally transposed.
 * @throws PlanishError when the matrix is singular.
 */
export function invertMatrix(
  matrix: ArrayLike<number>,
  options: { transpose?: boolean } = {},
): Float64Array {
  const n = Math.sqrt(matrix.length);
  const a = Float64Array.from(matrix);
  const inverse = new Float64Array(n * n);
  for (let i = 0; i < n; i++) inverse[i * n + i] = 1;
  const swapRows = (m: Float64Array, r: number, s: number) => {
    for (let j = 0; j < n; j++) [m[r * n + j], m[s * n + j]] = [m[s * n + j], m[r * n + j]];
  };
  for (let col = 0; col < n; col++) {
    let pivot = col;
    for (let r = col + 1; r < n; r++)
      if (Math.abs(a[r * n + col]) > Math.abs(a[pivot * n + col])) pivot = r;
    if (a[pivot * n + col] === 0)
      throw new PlanishError(`a ${n}×${n} transform is singular and cannot be inverted`);
    if (pivot !== col) {
      swapRows(a, pivot, col);
      swapRows(inverse, pivot, col);
    }
    const scale = 1 / a[col * n + col];
    for (let j = 0; j < n; j++) {
      a[col * n + j] *= scale;
      inverse[col * n + j] *= scale;
    }
    for (let r = 0; r < n; r++) {
      const factor = a[r * n + col];
      if (r === col || factor === 0) continue;
      for (let j = 0; j < n; j++) {
        a[r * n + j] -= factor * a[col * n + j];
        inverse[r * n + j] -= factor * inverse[col * n + j];
      }
    }
  }
  if (!options.transpose) return inverse;
  const transposed = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < n; j++) transposed[j * n + i] = inverse[i * n + j];
  return transposed;
}
