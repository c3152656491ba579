/** Choosing the next token from logits: greedy, or by temperature and nucleus. */

import { PlanishError } from "../common/errors.js";
import type { Random } from "../common/random.js";

export interface SamplingOptions {
  /** Divides the logits; 0 takes the likeliest token always. */
  readonly temperature: number;
  /**
   * Draws from the smallest set of likeliest tokens whose probabilities sum to at least this, in (0, 1].
   * Source: Holtzman et al. 2020, section 3.1.
   */
  readonly topP: number;
}

/** Index of the largest logit; of equal ones, the first. @throws PlanishError when there is none (all NaN). */
export function likeliest(logits: ArrayLike<number>): number {
  let best = -1;
  let bestValue = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    if (logits[i] > bestValue) {
      best = i;
      bestValue = logits[i];
    }
  }
  if (best < 0)
    throw new PlanishError("the model's logits are not numbers; the weights may be damaged");
  return best;
}

/**
 * Draws a token; the same `random` state gives the same token.
 * @throws PlanishError when the logits are not numbers.
 */
export function sampleToken(
  logits: ArrayLike<number>,
  { temperature, topP }: SamplingOptions,
  random: Random,
): number {
  const top = likeliest(logits);
  if (temperature === 0) return top;
  // Shifted by the maximum, so that the exponential cannot overflow.
  const weights = Float64Array.from(logits, (logit) =>
    Math.exp((logit - logits[top]) / temperature),
  );
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]);
  const total = weights.reduce((a, b) => a + b, 0);
  let kept = 0;
  let nucleus = 0;
  while (kept < order.length && (kept === 0 || nucleus < topP * total)) {
    nucleus += weights[order[kept]];
    kept += 1;
  }
  let rest = random.uniform() * nucleus;
  for (let i = 0; i < kept; i++) {
    rest -= weights[order[i]];
    if (rest < 0) return order[i];
  }
  // Rounding may leave a crumb after the last subtraction.
  return order[kept - 1];
}
