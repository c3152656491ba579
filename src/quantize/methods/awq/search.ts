/**
 * AWQ's search: which power of the activations' mean magnitude, as a factor per input channel, lets rounding change a
 * site's outputs least. Source: Lin et al., "AWQ" (MLSys 2024), section 3.2, equations 4 and 5.
 */
import type { Backend, RealArray } from "../../../backend/backend.js";
import { binary, matmul, quantizeRows } from "../../../tensor/ops/index.js";
import { Graph } from "../../../tensor/tensor.js";
import { WEIGHT_SCALE_FLOOR } from "../../simulated-block.js";

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
  readonly bits: number;
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

/** With E = Q(W·s)/s − W the squared error of x·Wᵀ, summed over tokens, is the sum of (E·Σxxᵀ) ⊙ E. */
function outputError(
  { backend, weights, moment, bits }: SearchProblem,
  scales: Float64Array,
): number {
  const cols = scales.length;
  using g = new Graph(backend);
  const factors = g.constant([cols], scales);
  const inverses = g.constant(
    [cols],
    scales.map((x) => 1 / x),
  );
  const products = g.constant([cols, cols], moment);
  let sum = 0;
  for (const { shape, data } of weights) {
    const weight = g.constant(shape, data);
    const scaled = binary(g, "mul", weight, factors, "row");
    const rounded = quantizeRows(g, scaled, { bits, scaleFloor: WEIGHT_SCALE_FLOOR });
    const error = binary(g, "sub", binary(g, "mul", rounded, inverses, "row"), weight);
    const [e, weighted] = [g.read(error), g.read(matmul(g, error, products))];
    for (let i = 0; i < e.length; i++) sum += e[i] * weighted[i];
  }
  return sum;
}
