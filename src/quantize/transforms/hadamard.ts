/**
 * Randomized Hadamard matrices, for sizes that are not powers of two too.
 * Source: Sylvester's construction; random signs as in QuaRot (Ashkboos et al., NeurIPS 2024, section 3).
 */
import { PlanishError } from "../../common/errors.js";
import { randomOrthogonal, type Random } from "../../common/random.js";

/** The Hadamard matrix of ±1 with n rows, n a power of two: H[i][j] = (−1)^(number of ones in i AND j). */
export function sylvesterHadamard(n: number): Float64Array {
  if (!Number.isInteger(n) || n < 1 || powerOfTwoPart(n) !== n)
    throw new PlanishError(`a Sylvester Hadamard matrix has a power of two of rows, not ${n}`);
  const matrix = new Float64Array(n * n);
  matrix[0] = 1;
  for (let half = 1; half < n; half *= 2)
    for (let i = 0; i < half; i++)
      for (let j = 0; j < half; j++) {
        const value = matrix[i * n + j];
        matrix[i * n + j + half] = value;
        matrix[(i + half) * n + j] = value;
        matrix[(i + half) * n + j + half] = -value;
      }
  return matrix;
}

/** The largest power of two that divides n. */
export function powerOfTwoPart(n: number): number {
  let part = 1;
  while (n % (2 * part) === 0) part *= 2;
  return part;
}

/**
 * An orthogonal n×n matrix, row-major: diag(±1)·(H/√m ⊗ Q) with m the power of two in n and Q a random orthogonal
 * matrix of the odd rest, which is 1 for powers of two. A row vector times it has its signs flipped, then mixed.
 */
export function randomizedHadamard(n: number, random: Random): Float64Array {
  const even = powerOfTwoPart(n);
  const odd = n / even;
  const hadamard = sylvesterHadamard(even);
  const rest = odd === 1 ? Float64Array.of(1) : randomOrthogonal(odd, random);
  const scale = 1 / Math.sqrt(even);
  const matrix = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    const sign = random.below(2) === 0 ? scale : -scale;
    const [iEven, iOdd] = [Math.floor(i / odd), i % odd];
    for (let j = 0; j < n; j++)
      matrix[i * n + j] =
        sign * hadamard[iEven * even + Math.floor(j / odd)] * rest[iOdd * odd + (j % odd)];
  }
  return matrix;
}
