/**
 * AWQ's searches: which power of the activations' mean magnitude, as a factor per input channel, lets rounding change a
 * site's outputs least; and how far each row of weights should be clipped. Source: Lin et al., "AWQ" (MLSys 2024), section
 * 3.2, equations 4 and 5; the clipping as in the published code.
 */
import type { Backend, RealArray } from "../../../backend/contract/training.js";
import { binary, clipRows, matmul } from "../../../tensor/ops/index.js";
import { Graph, type Tensor } from "../../../tensor/tensor.js";
import { onGrid, WEIGHT_SCALE_FLOOR, type Grid } from "../../grids/groups.js";

/** Mean magnitudes below this count as this much. */
const FLOOR = 1e-4;

export interface SearchProblem {
  readonly backend: Backend;
  /** All weights that read the activation, [rows, cols] each. */
  readonly weights: readonly { readonly shape: readonly number[]; readonly data: RealArray }[];
  /** Mean |activation| by channel. */
  readonly mean: Float64Array;
  /** Σ x·xᵀ of the activations, [cols, cols]. */
  readonly moment: Float64Array;
  readonly grid: Grid;
  /** Exponents tried are 0, 1/steps, …, 1. */
  readonly steps: number;
}

export interface SearchResult {
  readonly exponent: number;
  /** s by channel: weights are multiplied with it before rounding, activations divided. */
  readonly scales: Float64Array;
  /** Σ over tokens and outputs of the squared error, for every exponent tried. */
  readonly errors: readonly number[];
}

/** mean^exponent, scaled so that its largest and smallest value multiply to one. */
export function channelScales(mean: Float64Array, exponent: number): Float64Array {
  const scales = Float64Array.from(mean, (x) => Math.max(x, FLOOR) ** exponent);
  const largest = scales.reduce((a, b) => Math.max(a, b));
  const smallest = scales.reduce((a, b) => Math.min(a, b));
  return scales.map((x) => x / Math.sqrt(largest * smallest));
}

/** The best of a grid of exponents; the smallest one where several are equally good. */
export function searchScales(problem: SearchProblem): SearchResult {
  const { mean, steps } = problem;
  const errors: number[] = [];
  let best = 0;
  for (let i = 0; i <= steps; i++) {
    errors.push(outputError(problem, channelScales(mean, i / steps)));
    if (errors[i] < errors[best]) best = i;
  }
  return { exponent: best / steps, scales: channelScales(mean, best / steps), errors };
}

function outputError(
  { backend, weights, moment, grid }: SearchProblem,
  scales: Float64Array,
): number {
  let sum = 0;
  for (const weight of weights)
    for (const error of rowErrors({ backend, weight, scales, moment, grid }, 1)) sum += error;
  return sum;
}

export interface ClipProblem extends Pick<SearchProblem, "backend" | "moment" | "grid"> {
  readonly weight: SearchProblem["weights"][number];
  /** s by channel, as the first search found them; ones where there are none. */
  readonly scales: Float64Array;
}

/** Ratios tried, from no clipping to half of the range, in steps of 5%. */
const CLIP_RATIOS = Array.from({ length: 11 }, (_, i) => 1 - i / 20);

/** For each row the part of its range, of `CLIP_RATIOS`, that rounding keeps the outputs closest with; the largest of equals. */
export function searchClips(problem: ClipProblem): Float64Array {
  const rows = problem.weight.shape[0];
  const best = new Float64Array(rows).fill(1);
  const least = new Float64Array(rows).fill(Infinity);
  for (const ratio of CLIP_RATIOS)
    for (const [row, error] of rowErrors(problem, ratio).entries())
      if (error < least[row]) {
        least[row] = error;
        best[row] = ratio;
      }
  return best;
}

/** The clipping logit of a ratio: σ(c) is the ratio, and 1 in float32 for 1 (docs/methods.md, Grids). */
export function clipLogit(ratio: number): number {
  return ratio >= 1 ? 20 : Math.log(ratio / (1 - ratio));
}

/** With E = Q(W·s)/s − W the squared error of x·Wᵀ, summed over tokens, is by row the sum of (E·Σxxᵀ) ⊙ E. */
function rowErrors(
  { backend, weight: { shape, data }, scales, moment, grid }: ClipProblem,
  ratio: number,
): Float64Array {
  const [rows, cols] = shape;
  using g = new Graph(backend);
  const factors = g.constant([cols], scales);
  const inverses = g.constant(
    [cols],
    scales.map((x) => 1 / x),
  );
  const products = g.constant([cols, cols], moment);
  const weight = g.constant(shape, data);
  let scaled: Tensor = binary(g, "mul", weight, factors, "row");
  if (ratio < 1) {
    const count = (rows * cols) / (grid.group ?? cols);
    const logits = g.constant([count], new Float64Array(count).fill(clipLogit(ratio)));
    scaled = clipRows(g, scaled, { max: logits, min: logits }, grid.group);
  }
  const rounded = onGrid(g, scaled, grid, { scaleFloor: WEIGHT_SCALE_FLOOR });
  const error = binary(g, "sub", binary(g, "mul", rounded, inverses, "row"), weight);
  const [e, weighted] = [g.read(error), g.read(matmul(g, error, products))];
  const errors = new Float64Array(rows);
  for (let i = 0; i < e.length; i++) errors[Math.floor(i / cols)] += e[i] * weighted[i];
  return errors;
}
