/**
 * How fast the engine runs a model beside the original: one prompt computed at once, then one token after the other.
 * Both stand in memory and take turns, so that what else the machine does hits both; medians are told, with their spread.
 */
import { PlanishError } from "../../common/errors.js";
import type { Executor } from "../../backend/contract/inference.js";
import { openIntegerExecutor } from "../../engine/processor.js";

/** Tokens per second: median over rounds, and the smallest and largest. */
export interface Rate {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export interface Speed {
  readonly prefill: Rate;
  readonly decode: Rate;
  /** Times as fast as the original in the same run: medians over rounds of the ratio within a round. */
  readonly prefillRatio: number;
  readonly decodeRatio: number;
}

export interface SpeedOptions {
  /** Tokens of the prompt, and tokens decoded after it. */
  readonly promptTokens?: number;
  readonly decodedTokens?: number;
  readonly rounds?: number;
  readonly threads?: number;
}

interface Round {
  readonly prefill: number;
  readonly decode: number;
}

/**
 * Speed of the model at `path` beside the one at `original` (the same path: it is the original).
 * @throws PlanishError when either has no kernels in the engine, or the text is too short.
 */
export async function measureSpeed(
  path: string,
  original: string,
  tokens: Int32Array,
  options: SpeedOptions = {},
): Promise<Speed> {
  const { promptTokens = 256, decodedTokens = 32, rounds = 5, threads } = options;
  if (tokens.length < promptTokens + decodedTokens)
    throw new PlanishError(
      `text has ${tokens.length} tokens; measuring speed takes ${promptTokens + decodedTokens}`,
    );
  using own = openIntegerExecutor(path, { threads });
  using other = path === original ? undefined : openIntegerExecutor(original, { threads });
  const sides = [own, ...(other ? [other] : [])];
  for (const side of sides) {
    side.reserve(Math.ceil((promptTokens + decodedTokens) / side.pageTokens));
    // The first steps make room for what later ones reuse.
    await runOnce(side, tokens, promptTokens, 2);
  }
  const found: Round[][] = sides.map(() => []);
  for (let round = 0; round < rounds; round++)
    for (const [i, side] of sides.entries())
      found[i].push(await runOnce(side, tokens, promptTokens, decodedTokens));
  const [mine, reference = mine] = found;
  const ratio = (key: keyof Round): number =>
    median(mine.map((round, i) => round[key] / reference[i][key]));
  return {
    prefill: rate(mine.map(({ prefill }) => prefill)),
    decode: rate(mine.map(({ decode }) => decode)),
    prefillRatio: ratio("prefill"),
    decodeRatio: ratio("decode"),
  };
}

/** Tokens per second of a prompt in one step, and of tokens after it in a step each. */
async function runOnce(
  executor: Executor,
  tokens: Int32Array,
  promptTokens: number,
  decodedTokens: number,
): Promise<Round> {
  const pages = Int32Array.from(
    { length: Math.ceil((promptTokens + decodedTokens) / executor.pageTokens) },
    (_, page) => page,
  );
  const seconds = async (first: number, count: number): Promise<number> => {
    const started = performance.now();
    await executor.step([
      { tokens: tokens.slice(first, first + count), start: first, pages, logits: "last" },
    ]);
    return (performance.now() - started) / 1000;
  };
  const prefill = promptTokens / (await seconds(0, promptTokens));
  let sum = 0;
  for (let t = 0; t < decodedTokens; t++) sum += await seconds(promptTokens + t, 1);
  return { prefill, decode: decodedTokens / sum };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function rate(values: readonly number[]): Rate {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}
