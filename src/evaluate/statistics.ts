/** Means with their standard errors. */

export interface Measure {
  readonly value: number;
  /** Standard error; absent where there is a single observation. */
  readonly stderr?: number;
}

/** Mean, and s/√n with the sample deviation s (n − 1 in its denominator). Throws RangeError without values. */
export function meanWithError(values: readonly number[]): Measure {
  const n = values.length;
  if (n === 0) throw new RangeError("the mean of no values is not defined");
  const value = values.reduce((sum, x) => sum + x, 0) / n;
  if (n === 1) return { value };
  const squares = values.reduce((sum, x) => sum + (x - value) ** 2, 0);
  return { value, stderr: Math.sqrt(squares / (n - 1) / n) };
}
