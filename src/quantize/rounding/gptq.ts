/**
 * GPTQ: codes of a weight matrix that keep its product with real activations, not the weights themselves. Columns are
 * rounded one after another; each column's error is made up for by the columns not yet rounded.
 * Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ" (ICLR 2023, arXiv 2210.17323), algorithm 1.
 *
 * Pure arithmetic in float64. The paper works with U, the upper Cholesky factor of H⁻¹ (H⁻¹ = UᵀU). Here H itself is
 * factored as R·Rᵀ with R upper triangular; then U = R⁻¹, and its feedback W[:,j] −= Σ_{i<j} e_i·U[i,j] is the same
 * number as W[:,j] + (1/R[j,j])·Σ_{i<j} (W − Q)[:,i]·R[i,j]. No inverse is formed, and rows are independent.
 *
 * What costs time, the factorization and the rounding, is a `GptqSolver`'s: plain loops here, which are the definition, and
 * native/kernels/gptq.h.
 */
import { PlanishError } from "../../common/errors.js";

export interface GptqOptions {
  /** Added to H's diagonal, as a share of its mean (default 0.01, as the paper). */
  readonly damping?: number;
  /** Round the columns with the largest second moments first (default false). */
  readonly actOrder?: boolean;
  /** Columns whose feedback is gathered at once; changes the speed, not the result (default 32). */
  readonly blockSize?: number;
}

export interface GptqProblem extends GptqOptions {
  /** [rows, cols], row-major. */
  readonly weight: ArrayLike<number>;
  readonly rows: number;
  readonly cols: number;
  /** Step of the grid: one per row, one for all, or with a group [rows, cols / group]. */
  readonly scale: ArrayLike<number>;
  /** Consecutive columns that share a step. */
  readonly group?: number;
  /** What code 0 stands for, beside each step; codes are then from 0. */
  readonly offset?: ArrayLike<number>;
  readonly bits: number;
  /** Second moment of the activations, Σ x·xᵀ times any positive factor: [cols, cols], symmetric. */
  readonly moment: Float64Array;
}

export interface GptqResult {
  /** Integers in [−2^(bits−1), 2^(bits−1) − 1], with an offset in [0, 2^bits − 1]; [rows, cols]. */
  readonly codes: Int8Array;
  /** The damping that was needed: more than asked when H could not be factored with that. */
  readonly damping: number;
}

const DEFAULT_DAMPING = 0.01;
const DEFAULT_BLOCK = 32;
/** Damping grows tenfold per failed factorisation; at this many means of the diagonal any second moment factors. */
const LARGEST_DAMPING = 1e4;

/** The two steps whose time grows with the third power of the sizes. */
export interface GptqSolver {
  /**
   * R of H + damp·I = R·Rᵀ, rows and columns of H taken in `order`, laid out as `round` wants it. Undefined when a pivot is
   * not positive.
   */
  factor(
    moment: Float64Array,
    cols: number,
    order: Int32Array,
    damp: number,
  ): Float64Array | undefined;
  /** Codes, [rows, cols]. */
  round(problem: RoundProblem, factor: Float64Array, order: Int32Array): Int8Array;
}

export type RoundProblem = Omit<GptqProblem, "moment" | "damping" | "actOrder">;

/** A second moment factored for rounding: shared by all linears that read the same activations. */
export interface FactoredMoment {
  /** [cols, cols], in the solver's layout. */
  readonly factor: Float64Array;
  /** Position → column. */
  readonly order: Int32Array;
  readonly damping: number;
  readonly solver: GptqSolver;
}

/**
 * Damps and factors a second moment [cols, cols].
 * @throws PlanishError when it has values that are not finite.
 */
export function factorMoment(
  moment: Float64Array,
  cols: number,
  options: GptqOptions = {},
  solver: GptqSolver = plainGptq,
): FactoredMoment {
  if (moment.length !== cols * cols)
    throw new PlanishError(
      `[gptq] second moment has ${moment.length} values; ${cols} columns need ${cols * cols}`,
    );
  if (!moment.every(Number.isFinite))
    throw new PlanishError(
      "[gptq] the activations' second moment is not finite: the model overflows on the calibration text",
    );
  const diagonal = Float64Array.from({ length: cols }, (_, i) => moment[i * cols + i]);
  if (diagonal.some((x) => x < 0))
    throw new PlanishError("[gptq] the activations' second moment has a negative diagonal");
  const order = Int32Array.from({ length: cols }, (_, i) => i);
  if (options.actOrder) order.sort((a, b) => diagonal[b] - diagonal[a] || a - b);
  // Activations that are all zero leave nothing to weigh by: any multiple of the identity is rounding to nearest.
  const mean = diagonal.reduce((sum, x) => sum + x, 0) / cols || 1;
  let damping = options.damping ?? DEFAULT_DAMPING;
  for (;;) {
    const factor = solver.factor(moment, cols, order, damping * mean);
    if (factor) return { factor, order, damping, solver };
    damping = Math.max(damping * 10, DEFAULT_DAMPING);
    if (damping > LARGEST_DAMPING)
      throw new PlanishError(
        "[gptq] the second moment cannot be factored however much it is damped: it is not one of real activations",
      );
  }
}

/**
 * R upper triangular with H + damp·I = R·Rᵀ (columns in `order`), kept transposed: row j of the result is column j of
 * R. Undefined when a pivot is not positive.
 */
function reverseCholesky(
  moment: Float64Array,
  n: number,
  order: Int32Array,
  damp: number,
): Float64Array | undefined {
  // Reversing both axes turns R·Rᵀ into the usual L·Lᵀ.
  const lower = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    const from = order[n - 1 - i] * n;
    for (let j = 0; j <= i; j++) lower[i * n + j] = moment[from + order[n - 1 - j]];
    lower[i * n + i] += damp;
  }
  if (!choleskyInPlace(lower, n)) return undefined;
  const factor = new Float64Array(n * n);
  for (let j = 0; j < n; j++)
    for (let i = 0; i <= j; i++) factor[j * n + i] = lower[(n - 1 - i) * n + (n - 1 - j)];
  return factor;
}

/** L of A = L·Lᵀ over A's lower triangle, row by row. False when a pivot is not positive. */
function choleskyInPlace(a: Float64Array, n: number): boolean {
  const sums = new Float64Array(4);
  for (let i = 0; i < n; i++) {
    const row = i * n;
    for (let j = 0; j < i; j += 4) {
      // Four columns' products over what is finished, then the few among themselves.
      const count = Math.min(4, i - j);
      if (count === 4) dotFour(a, j * n, n, a, row, j, sums);
      for (let c = 0; c < count; c++) {
        const other = (j + c) * n;
        const sum =
          count === 4 ? sums[c] + dot(a, row + j, a, other + j, c) : dot(a, row, a, other, j + c);
        a[row + j + c] = (a[row + j + c] - sum) / a[other + j + c];
      }
    }
    const pivot = a[row + i] - dot(a, row, a, row, i);
    // What is left of a dependent channel is rounding noise of the subtraction, of either sign.
    if (!(pivot > n * Number.EPSILON * a[row + i])) return false;
    a[row + i] = Math.sqrt(pivot);
  }
  return true;
}

function dot(a: Float64Array, at: number, b: Float64Array, bt: number, length: number): number {
  let sum = 0;
  for (let k = 0; k < length; k++) sum += a[at + k] * b[bt + k];
  return sum;
}

/** Products of four rows of `a` (at, at + stride, …) with one of `b`: one read of b serves four sums. */
function dotFour(
  a: Float64Array,
  at: number,
  stride: number,
  b: Float64Array,
  bt: number,
  length: number,
  out: Float64Array,
): void {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  const a1 = at + stride;
  const a2 = a1 + stride;
  const a3 = a2 + stride;
  for (let k = 0; k < length; k++) {
    const y = b[bt + k];
    s0 += a[at + k] * y;
    s1 += a[a1 + k] * y;
    s2 += a[a2 + k] * y;
    s3 += a[a3 + k] * y;
  }
  out[0] = s0;
  out[1] = s1;
  out[2] = s2;
  out[3] = s3;
}

/** Rounds a weight with a moment that is factored already. */
export function roundWithFactor(
  problem: RoundProblem,
  { factor, order, damping, solver }: FactoredMoment,
): GptqResult {
  const { weight, rows, cols, scale, group, offset } = problem;
  const perRow = group === undefined ? 1 : cols / group;
  const scales = rows * perRow;
  if (weight.length !== rows * cols || (scale.length !== scales && scale.length !== 1))
    throw new PlanishError(
      `[gptq] ${weight.length} weights and ${scale.length} scales given for ${rows}×${cols}; accepted are ${rows * cols} weights and 1 or ${scales} scales`,
    );
  if (!Number.isInteger(perRow) || (offset && offset.length !== scales))
    throw new PlanishError(
      `[gptq] groups of ${group} columns with ${offset?.length ?? 0} offsets given for ${rows}×${cols}; a group divides the columns, and each has one offset or none has`,
    );
  if (factor.length !== cols * cols)
    throw new PlanishError(
      `[gptq] a factor of ${factor.length} values given for ${cols} columns, which need ${cols * cols}`,
    );
  return { codes: solver.round(problem, factor, order), damping };
}

/** `factor` lower triangular, row j holding R[0..j, j]. */
function roundColumns(
  { weight, rows, cols, scale, group, offset, bits, blockSize }: RoundProblem,
  factor: Float64Array,
  order: Int32Array,
): Int8Array {
  const lowest = offset ? 0 : -(2 ** (bits - 1));
  const highest = lowest + 2 ** bits - 1;
  const width = group ?? cols;
  const block = blockSize ?? DEFAULT_BLOCK;
  const codes = new Int8Array(rows * cols);
  /** W − Q by position, zero where not yet rounded. */
  const error = new Float64Array(rows * cols);
  const fed = new Float64Array(4);
  const roundOne = (r: number, j: number, feedback: number): void => {
    const at = r * cols + order[j];
    const own = scale.length === 1 ? 0 : Math.floor(at / width);
    const step = scale[own];
    const zero = offset ? offset[own] : 0;
    const wanted = (weight[at] + feedback / factor[j * cols + j] - zero) / step;
    const code = Math.min(Math.max(roundHalfEven(wanted), lowest), highest);
    codes[at] = code;
    error[r * cols + j] = weight[at] - zero - code * step;
  };
  for (let first = 0; first < cols; first += block) {
    const last = Math.min(first + block, cols);
    // Four rows at a time: they share the factor, and their sums do not wait for one another.
    for (let r = 0; r < rows; r += 4) {
      const count = Math.min(4, rows - r);
      for (let j = first; j < last; j++) {
        if (count === 4) {
          dotFour(error, r * cols, cols, factor, j * cols, j, fed);
          for (let c = 0; c < 4; c++) roundOne(r + c, j, fed[c]);
        } else
          for (let c = 0; c < count; c++)
            roundOne(r + c, j, dot(error, (r + c) * cols, factor, j * cols, j));
      }
    }
  }
  return codes;
}

/** GPTQ in plain loops. */
export const plainGptq: GptqSolver = { factor: reverseCholesky, round: roundColumns };

/** Codes of a weight on a given grid. @throws PlanishError for sizes that do not fit and moments that are not finite. */
export function gptqRound(problem: GptqProblem, solver: GptqSolver = plainGptq): GptqResult {
  return roundWithFactor(problem, factorMoment(problem.moment, problem.cols, problem, solver));
}

function roundHalfEven(x: number): number {
  const nearest = Math.round(x);
  return nearest - x === 0.5 && nearest % 2 !== 0 ? nearest - 1 : nearest;
}

/** Adds Σ x·xᵀ of [count, cols] activations to a second moment, in float64. */
export function addMoment(moment: Float64Array, x: ArrayLike<number>, cols: number): void {
  for (let t = 0; t < x.length; t += cols)
    for (let i = 0; i < cols; i++) {
      const value = x[t + i];
      if (value === 0) continue;
      for (let j = 0; j < cols; j++) moment[i * cols + j] += value * x[t + j];
    }
}
