/**
 * Choosing the next token from logits. In this order: mask, bias, penalties, temperature, top-k, top-p, min-p (the order of
 * Hugging Face transformers), then one draw.
 */

import { PlanishError } from "../common/errors.js";
import type { Random } from "../common/random.js";

/** How the next token is drawn; what is absent changes nothing. */
export interface DrawOptions {
  /** Divides the logits; 0 takes the likeliest token always. */
  readonly temperature: number;
  /** Draws from this many likeliest tokens; 0 or absent: all. Source: Fan et al. 2018, section 5.1. */
  readonly topK?: number;
  /**
   * Draws from the smallest set of likeliest tokens whose probabilities sum to at least this share of what top-k left,
   * in (0, 1]. Source: Holtzman et al. 2020, section 3.1.
   */
  readonly topP?: number;
  /** Leaves out tokens less likely than this fraction of the likeliest one. Source: Nguyen et al. 2024, section 3. */
  readonly minP?: number;
}

/** Changes to the logits that depend on the text so far. */
export interface PenaltyOptions {
  /**
   * Logits of tokens in the prompt or the output so far are divided by this where positive, multiplied where negative;
   * 1 or absent changes nothing. Source: Keskar et al. 2019, section 4.1.
   */
  readonly repetitionPenalty?: number;
  /** Subtracted once from the logit of every token in the output so far (OpenAI API reference). */
  readonly presencePenalty?: number;
  /** Subtracted from a token's logit for each time it is in the output so far (OpenAI API reference). */
  readonly frequencyPenalty?: number;
  /** Added to the logits, by token id. */
  readonly logitBias?: Readonly<Record<number, number>>;
}

export interface SamplingOptions extends DrawOptions, PenaltyOptions {}

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
  { temperature, topK = 0, topP = 1, minP = 0 }: DrawOptions,
  random: Random,
): number {
  const top = likeliest(logits);
  // Written so that NaN, which no schema lets through, takes the likeliest token too.
  if (!(temperature > 0)) return top;
  // Shifted by the maximum, so that the exponential cannot overflow; the likeliest token weighs 1. NaN weighs nothing.
  const weights = new Float64Array(logits.length);
  for (let i = 0; i < weights.length; i++) {
    const weight = Math.exp(below(logits[i], logits[top]) / temperature);
    weights[i] = weight >= minP ? weight : 0;
  }
  // Whatever min-p is: something must be left to draw from.
  weights[top] = 1;
  const u = random.uniform();
  const most = topK >= 1 && topK < weights.length ? Math.floor(topK) : weights.length;
  if (most === weights.length && topP >= 1) return draw(weights, undefined, u);
  return draw(weights, nucleus(weights, most, topP), u);
}

/** A logit's distance below the largest; 0 among infinite ones, whose difference is none. */
function below(logit: number, largest: number): number {
  return logit === largest ? 0 : logit - largest;
}

/** The token at share `u` of the weights' sum, in the order given (default: by id). Never one of weight 0. */
function draw(weights: Float64Array, order: readonly number[] | undefined, u: number): number {
  const length = order?.length ?? weights.length;
  let total = 0;
  for (let i = 0; i < length; i++) total += weights[order?.[i] ?? i];
  let rest = u * total;
  let last = -1;
  for (let i = 0; i < length; i++) {
    const token = order?.[i] ?? i;
    if (weights[token] === 0) continue;
    rest -= weights[token];
    if (rest < 0) return token;
    last = token;
  }
  // Rounding may leave a crumb after the last subtraction.
  return last;
}

/** The `topK` likeliest tokens, of those as few as hold the share `topP`, the likeliest first. */
function nucleus(weights: Float64Array, topK: number, topP: number): number[] {
  const kept = heaviest(weights, topK, topP).slice(0, topK);
  const total =
    topK < weights.length
      ? kept.reduce((sum, token) => sum + weights[token], 0)
      : weights.reduce((a, b) => a + b, 0);
  let mass = 0;
  let count = 0;
  while (count < kept.length && (count === 0 || mass < topP * total))
    mass += weights[kept[count++]];
  return kept.slice(0, count);
}

/**
 * Tokens in falling order of weight (ties by id), as many as top-k or, without it, top-p may need. Only tokens above a
 * threshold are sorted; it is lowered until they are enough, since sorting a whole vocabulary takes longer than a small
 * model's step.
 */
function heaviest(weights: Float64Array, topK: number, topP: number): number[] {
  const byCount = topK < weights.length;
  const goal = byCount ? topK : topP * weights.reduce((a, b) => a + b, 0);
  for (let threshold = Math.exp(-3); ; threshold *= threshold) {
    // Weights below the smallest normal number are not worth a further pass.
    const least = threshold < 1e-300 ? 0 : threshold;
    const found: number[] = [];
    let mass = 0;
    for (let token = 0; token < weights.length; token++) {
      if (weights[token] < least) continue;
      found.push(token);
      mass += weights[token];
    }
    if (least === 0 || (byCount ? found.length : mass) >= goal)
      return found.sort((a, b) => weights[b] - weights[a] || a - b);
  }
}

/** What one generation's choices depend on besides the logits: its random stream and the tokens so far. */
export class Sampler {
  private readonly seen: Set<number>;
  private readonly counts = new Map<number, number>();

  /** `candidates`: ids that may be chosen are below it (a vocabulary may be padded beyond the tokenizer's ids). */
  constructor(
    private readonly options: SamplingOptions,
    private readonly random: Random,
    private readonly candidates: number,
    prompt: Iterable<number>,
  ) {
    this.seen = new Set(isOne(options.repetitionPenalty) ? [] : prompt);
  }

  /**
   * The next token after one row of logits, which are left as they are. With a mask (bit i % 32 of element i / 32) only
   * tokens whose bit is set can come.
   */
  next(logits: Float32Array | Float64Array, mask?: Int32Array): number {
    const token = sampleToken(this.adjusted(logits, mask), this.options, this.random);
    if (!isOne(this.options.repetitionPenalty)) this.seen.add(token);
    this.counts.set(token, (this.counts.get(token) ?? 0) + 1);
    return token;
  }

  /** The logits after mask, bias and penalties. */
  private adjusted(
    logits: Float32Array | Float64Array,
    mask: Int32Array | undefined,
  ): Float32Array | Float64Array {
    const possible = logits.subarray(0, this.candidates);
    const {
      logitBias,
      repetitionPenalty = 1,
      presencePenalty = 0,
      frequencyPenalty = 0,
    } = this.options;
    const penalized = presencePenalty !== 0 || frequencyPenalty !== 0;
    const isChanged = logitBias !== undefined || repetitionPenalty !== 1 || penalized;
    if (!isChanged && mask === undefined) return possible;
    const values = possible.slice();
    if (mask !== undefined) exclude(values, mask);
    for (const [id, bias] of Object.entries(logitBias ?? {}))
      change(values, Number(id), (value) => value + bias);
    for (const id of this.seen)
      change(values, id, (value) =>
        value > 0 ? value / repetitionPenalty : value * repetitionPenalty,
      );
    if (penalized)
      for (const [id, count] of this.counts)
        change(values, id, (value) => value - (presencePenalty + count * frequencyPenalty));
    return values;
  }
}

/** Makes tokens without a bit in the mask impossible, in place. */
function exclude(values: Float32Array | Float64Array, mask: Int32Array): void {
  for (let from = 0; from < values.length; from += 32) {
    // Beyond the mask there are no tokens that it could be about.
    const word = mask[from >> 5] ?? 0;
    if (word === -1) continue;
    if (word === 0) {
      values.fill(-Infinity, from, from + 32);
      continue;
    }
    const end = Math.min(from + 32, values.length);
    for (let token = from; token < end; token++)
      if (((word >>> (token & 31)) & 1) === 0) values[token] = -Infinity;
  }
}

const LARGEST_LOGIT = 3.4028234663852886e38;

/** Changes a logit, which stays below infinity; an excluded token (-Infinity, or NaN) stays excluded. */
function change(
  values: Float32Array | Float64Array,
  id: number,
  rule: (value: number) => number,
): void {
  const value = values[id];
  if (value > -Infinity) values[id] = Math.min(rule(value), LARGEST_LOGIT);
}

function isOne(value: number | undefined): boolean {
  return value === undefined || value === 1;
}

export interface LogProbability {
  readonly token: number;
  /** Natural logarithm of the token's probability, at least `LEAST_LOGPROB`. */
  readonly logprob: number;
}

/** Stands for impossible tokens, whose logarithm JSON cannot write (as in OpenAI's API). */
export const LEAST_LOGPROB = -9999;

/**
 * Log-probabilities that the model itself gives (no bias, penalty or temperature): the chosen token's, and those of the
 * `count` likeliest tokens, the likeliest first.
 */
export function logProbabilities(
  logits: ArrayLike<number>,
  chosen: number,
  count: number,
): { logprob: number; top: LogProbability[] } {
  const largest = logits[likeliest(logits)];
  let sum = 0;
  for (let i = 0; i < logits.length; i++) {
    const weight = Math.exp(below(logits[i], largest));
    // A logit that is not a number belongs to a token that is never drawn.
    if (weight > 0) sum += weight;
  }
  const normalizer = Math.log(sum);
  const logprobOf = (token: number): number => {
    const logprob = below(logits[token], largest) - normalizer;
    return logprob > LEAST_LOGPROB ? logprob : LEAST_LOGPROB;
  };
  const top: LogProbability[] = [];
  for (let token = 0; count > 0 && token < logits.length; token++) {
    const logprob = logprobOf(token);
    if (top.length === count && !(logprob > top[count - 1].logprob)) continue;
    // Few are kept: insertion is cheapest.
    let at = top.length;
    while (at > 0 && top[at - 1].logprob < logprob) at -= 1;
    top.splice(at, 0, { token, logprob });
    if (top.length > count) top.pop();
  }
  return { logprob: logprobOf(chosen), top };
}
