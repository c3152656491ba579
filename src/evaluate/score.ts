/**
 * Log-likelihoods of continuations, many at once. Sequences go through the model as a tree (models/sequence-tree.ts), so what
 * several of them begin with is computed once, and logits are made only where a scored token is predicted.
 */

import type { Arena, Precision } from "../backend/contract/training.js";
import { PlanishError } from "../common/errors.js";
import type { LanguageModel } from "../models/language-model.js";
import { sequenceTree } from "../models/sequence-tree.js";
import { gatherRows, negativeLogLikelihood } from "../tensor/ops/index.js";
import { Graph, type Tensor } from "../tensor/tensor.js";
import type { EncodedPair } from "./encode-pair.js";

export interface ContinuationScore {
  /** Sum of the log-probabilities of the continuation's tokens, in nats. */
  readonly logLikelihood: number;
  /** Whether each of them is the likeliest token in its place; only where asked for. */
  readonly greedy?: boolean;
}

export interface ScoreOptions {
  readonly arena?: Arena;
  /** How large products are computed (default f32). */
  readonly precision?: Precision;
  readonly greedy?: boolean;
}

/** Rows of logits made at once: a vocabulary of 128k takes 131 MB for them. */
const HEAD_ROWS = 256;

interface ScoredToken {
  readonly pair: number;
  readonly target: number;
}

/**
 * Scores of pairs, in their order. A sequence longer than the model's positions loses its beginning.
 * @throws PlanishError for a continuation that alone is longer than the model's positions.
 */
export function scoreContinuations(
  model: LanguageModel,
  pairs: readonly EncodedPair[],
  options: ScoreOptions = {},
): ContinuationScore[] {
  const { maxPositions } = model.config;
  const sequences = pairs.map(({ context, continuation }) => {
    if (continuation.length > maxPositions)
      throw new PlanishError(
        `continuation of ${continuation.length} tokens is longer than the model's ${maxPositions} positions`,
      );
    // The last token is predicted and never read, so one more than the positions fits.
    return [...context, ...continuation].slice(-maxPositions - 1, -1);
  });
  const tree = sequenceTree(sequences);
  /** Scored tokens by the row that predicts them: options of one item begin at the same row. */
  const scored = new Map<number, ScoredToken[]>();
  for (const [p, { continuation }] of pairs.entries()) {
    const rows = tree.rowsOf[p].slice(-continuation.length);
    for (const [t, row] of rows.entries()) {
      const tokens = scored.get(row) ?? [];
      tokens.push({ pair: p, target: continuation[t] });
      scored.set(row, tokens);
    }
  }
  const logLikelihood = new Float64Array(pairs.length);
  const greedy = pairs.map(() => true);
  using g = new Graph(model.backend, { arena: options.arena, precision: options.precision });
  const hidden = model.hiddenOfTree(g, tree);
  const rows = [...scored.keys()];
  for (let first = 0; first < rows.length; first += HEAD_ROWS) {
    const some = rows.slice(first, first + HEAD_ROWS);
    using inner = g.nested();
    const states = gatherRows(inner, hidden, inner.indices(Int32Array.from(some)));
    const logits = model.logits(inner, states);
    // The first token that a row predicts is read off the logits as they are; rows are repeated for others only.
    const tokens = some.flatMap((row, place) =>
      (scored.get(row) ?? []).map((token, nth) => ({ ...token, place, nth })),
    );
    const firsts = tokens.filter(({ nth }) => nth === 0);
    const others = tokens.filter(({ nth }) => nth > 0);
    const places = Int32Array.from(others, ({ place }) => place);
    const losses = [
      ...tokenLosses(inner, logits, firsts),
      ...(others.length === 0
        ? []
        : tokenLosses(inner, gatherRows(inner, logits, inner.indices(places)), others)),
    ];
    const best = options.greedy ? rowMaxima(inner.read(logits), logits.cols) : undefined;
    for (const [i, { pair, target, place }] of [...firsts, ...others].entries()) {
      logLikelihood[pair] -= losses[i];
      if (best && best[place] !== target) greedy[pair] = false;
    }
  }
  return pairs.map((_, p) => ({
    logLikelihood: logLikelihood[p],
    ...(options.greedy ? { greedy: greedy[p] } : {}),
  }));
}

/** NLL of one token a row. */
function tokenLosses(
  g: Graph,
  logits: Tensor,
  tokens: readonly { readonly target: number }[],
): Float64Array | Float32Array {
  const targets = Int32Array.from(tokens, ({ target }) => target);
  return g.read(negativeLogLikelihood(g, logits, g.indices(targets)));
}

/** Column of each row's largest value, the first among equals. */
export function rowMaxima(values: ArrayLike<number>, cols: number): Int32Array {
  const best = new Int32Array(values.length / cols);
  for (let r = 0; r < best.length; r++) {
    const start = r * cols;
    let at = start;
    for (let i = start + 1; i < start + cols; i++) if (values[i] > values[at]) at = i;
    best[r] = at - start;
  }
  return best;
}
