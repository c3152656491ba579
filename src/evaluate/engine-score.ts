/**
 * Log-likelihoods of continuations through an engine's executor: a context that several continuations share is computed
 * once into pages of the cache, and every continuation reads those pages. One step runs the contexts of many items, a
 * second one all of their continuations. In models with recurrent layers a continuation goes on from a copy of its context's
 * state; states are large, so that few items run at once.
 */
import { PlanishError } from "../common/errors.js";
import type { Chunk, Executor } from "../backend/contract/inference.js";
import type { EncodedPair } from "./encode-pair.js";
import type { ContinuationScore } from "./score.js";

export interface EngineScoreOptions {
  /** Also tell whether each token is the likeliest in its place. */
  readonly greedy?: boolean;
}

/** Continuations of one context. */
interface Group {
  readonly context: Int32Array;
  readonly members: { readonly pair: number; readonly continuation: readonly number[] }[];
}

/** Rows of logits of one step: a vocabulary of 49k takes 100 MB for them. */
const ROWS_PER_STEP = 512;
/** States of recurrent layers of one step. */
const STATES_PER_STEP = 64;

/**
 * Scores of pairs, in their order. Neighbouring pairs with the same context share it.
 * @throws PlanishError for a sequence longer than the model's positions.
 */
export async function scoreWithExecutor(
  executor: Executor,
  pairs: readonly EncodedPair[],
  options: EngineScoreOptions = {},
): Promise<ContinuationScore[]> {
  const { maxPositions } = executor.shape;
  const groups: Group[] = [];
  let rows = 0;
  let states = 0;
  const scores = pairs.map(() => ({ logLikelihood: 0, greedy: true }));
  const flush = async (): Promise<void> => {
    if (groups.length > 0) await runGroups(executor, groups, scores, options.greedy ?? false);
    groups.length = 0;
    rows = 0;
    states = 0;
  };
  let last: readonly number[] | undefined;
  for (const [pair, { context, continuation }] of pairs.entries()) {
    if (context.length + continuation.length - 1 > maxPositions)
      throw new PlanishError(
        `sequence of ${context.length + continuation.length} tokens is longer than the model's ${maxPositions} positions`,
      );
    const same = last?.length === context.length && last.every((id, i) => id === context[i]);
    const full = executor.bytesPerState !== undefined && states >= STATES_PER_STEP;
    if (!same || full) {
      if (full || rows > ROWS_PER_STEP) await flush();
      groups.push({ context: Int32Array.from(context), members: [] });
      states += 1;
    }
    groups[groups.length - 1].members.push({ pair, continuation });
    rows += continuation.length;
    states += 1;
    last = context;
  }
  await flush();
  return scores.map(({ logLikelihood, greedy }) =>
    options.greedy ? { logLikelihood, greedy } : { logLikelihood },
  );
}

async function runGroups(
  executor: Executor,
  groups: readonly Group[],
  scores: { logLikelihood: number; greedy: boolean }[],
  greedy: boolean,
): Promise<void> {
  const { pageTokens } = executor;
  const { vocabSize } = executor.shape;
  let pages = 0;
  const take = (count: number): Int32Array => Int32Array.from({ length: count }, () => pages++);
  const contextPages = groups.map(({ context }) => take(Math.ceil(context.length / pageTokens)));
  const branches = groups.map(({ context, members }, i) =>
    members.map(({ continuation }) => {
      // Whole pages of the context are read where they are; one that is begun is copied and continued.
      const whole = Math.floor(context.length / pageTokens);
      const total = Math.ceil((context.length + continuation.length - 1) / pageTokens);
      const own = take(Math.max(0, total - whole));
      return { own, whole, all: Int32Array.from([...contextPages[i].slice(0, whole), ...own]) };
    }),
  );
  // Of contexts, then of continuations.
  const recurrent = executor.bytesPerState !== undefined;
  let states = groups.length;
  executor.reserve(
    pages,
    groups.reduce((sum, { members }) => sum + members.length, states),
  );
  const firsts = await executor.step(
    groups.map(({ context }, i): Chunk => ({
      tokens: context,
      start: 0,
      pages: contextPages[i],
      state: i,
      logits: "last",
    })),
  );
  const chunks: Chunk[] = [];
  const owners: number[] = [];
  for (const [i, { context, members }] of groups.entries())
    for (const [m, { pair, continuation }] of members.entries()) {
      count(scores[pair], firsts[i], 0, vocabSize, continuation[0], greedy);
      if (continuation.length === 1) continue;
      const { own, whole, all } = branches[i][m];
      if (context.length % pageTokens > 0) executor.copyPage(contextPages[i][whole], own[0]);
      const state = states++;
      if (recurrent) executor.copyState?.(i, state);
      chunks.push({
        tokens: Int32Array.from(continuation.slice(0, -1)),
        start: context.length,
        pages: all,
        state,
        logits: "all",
      });
      owners.push(pair);
    }
  if (chunks.length === 0) return;
  const found = await executor.step(chunks);
  const continuations = new Map(
    groups.flatMap(({ members }) => members.map(({ pair, continuation }) => [pair, continuation])),
  );
  for (const [c, pair] of owners.entries())
    for (const [t, token] of (continuations.get(pair) ?? []).slice(1).entries())
      count(scores[pair], found[c], t, vocabSize, token, greedy);
}

/** Adds the log-probability of a token in a row of logits. */
function count(
  score: { logLikelihood: number; greedy: boolean },
  logits: Float32Array | undefined,
  row: number,
  width: number,
  token: number,
  greedy: boolean,
): void {
  if (!logits) throw new PlanishError("the engine gave no logits where they were asked for");
  const values = logits.subarray(row * width, (row + 1) * width);
  let best = 0;
  for (let i = 1; i < width; i++) if (values[i] > values[best]) best = i;
  const top = values[best];
  let sum = 0;
  for (let i = 0; i < width; i++) sum += Math.exp(values[i] - top);
  score.logLikelihood += values[token] - top - Math.log(sum);
  if (greedy && best !== token) score.greedy = false;
}
