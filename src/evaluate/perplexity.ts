/** Perplexity over consecutive, non-overlapping windows of a tokenized text. Source: docs/evaluate.md, Perplexity. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { defaultSequenceLength, refuseLongWindows, type ModelConfig } from "../models/config.js";
import type { LanguageModel } from "../models/language-model.js";
import { negativeLogLikelihood } from "../tensor/ops/index.js";
import { Graph } from "../tensor/tensor.js";

export interface PerplexityOptions {
  /** Tokens per window (default: `defaultSequenceLength`). */
  readonly seqLen?: number;
  /** Score only the first windows. */
  readonly limit?: number;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
  readonly label?: string;
}

export interface PerplexityResult {
  readonly perplexity: number;
  /** Mean over windows of the mean token NLL inside the window, in nats. */
  readonly meanNll: number;
  readonly windows: number;
  readonly seqLen: number;
  /** Mean NLL of each window, in order. */
  readonly windowNll: readonly number[];
  readonly seconds: number;
}

/** Tokens run through the model at once: enough to keep large products efficient, small enough for memory. */
const TOKENS_PER_STEP = 2048;

/** How a text is cut: the first `windows` runs of `seqLen` tokens, `perStep` of them at once. */
export interface TextWindows {
  readonly seqLen: number;
  readonly windows: number;
  readonly perStep: number;
}

/** @throws PlanishError when the text has fewer tokens than one window, or the model fewer positions. */
export function textWindows(
  config: Pick<ModelConfig, "maxPositions">,
  tokens: Int32Array,
  options: Pick<PerplexityOptions, "seqLen" | "limit"> = {},
): TextWindows {
  const seqLen = options.seqLen ?? defaultSequenceLength(config);
  refuseLongWindows(seqLen, config);
  const available = Math.floor(tokens.length / seqLen);
  if (available === 0)
    throw new PlanishError(
      `text has ${tokens.length} tokens; perplexity needs at least one window of ${seqLen}`,
    );
  return {
    seqLen,
    windows: Math.min(available, options.limit ?? available),
    perStep: Math.max(1, Math.floor(TOKENS_PER_STEP / seqLen)),
  };
}

/** The result of windows whose mean NLLs are known. */
export function summarizeWindows(
  windowNll: readonly number[],
  seqLen: number,
  seconds: number,
): PerplexityResult {
  const meanNll = windowNll.reduce((a, b) => a + b, 0) / windowNll.length;
  const windows = windowNll.length;
  return { perplexity: Math.exp(meanNll), meanNll, windows, seqLen, windowNll, seconds };
}

/**
 * exp(mean over windows of the mean token NLL); each window's first token is not predicted and a last partial
 * window is dropped.
 * @throws PlanishError when the text has fewer tokens than one window.
 */
export async function evaluatePerplexity(
  model: LanguageModel,
  tokens: Int32Array,
  options: PerplexityOptions = {},
): Promise<PerplexityResult> {
  const { seqLen, windows, perStep } = textWindows(model.config, tokens, options);
  const task = (options.progress ?? silentProgress).task(options.label ?? "perplexity", windows);
  const started = performance.now();
  const windowNll: number[] = [];
  using arena = model.backend.arena();
  for (let first = 0; first < windows; first += perStep) {
    if (options.signal?.aborted)
      throw new InterruptedError(`stopped after ${first} of ${windows} windows`);
    const count = Math.min(perStep, windows - first);
    const ids = tokens.slice(first * seqLen, (first + count) * seqLen);
    using g = new Graph(model.backend, { arena });
    const logits = model.logits(g, model.hidden(g, ids, { batch: count }));
    const nll = g.read(negativeLogLikelihood(g, logits, g.indices(nextTokens(ids, seqLen))));
    for (let w = 0; w < count; w++) {
      let sum = 0;
      for (let t = 0; t < seqLen - 1; t++) sum += nll[w * seqLen + t];
      windowNll.push(sum / (seqLen - 1));
    }
    const mean = windowNll.reduce((a, b) => a + b, 0) / windowNll.length;
    task.advance(count, `perplexity so far ${Math.exp(mean).toFixed(2)}`);
    await nextTurn();
  }
  task.done();
  return summarizeWindows(windowNll, seqLen, (performance.now() - started) / 1000);
}

/** Target of each position: the next token of its own window; −1 for the window's last. */
function nextTokens(ids: Int32Array, seqLen: number): Int32Array {
  return Int32Array.from(ids, (_, i) => ((i + 1) % seqLen === 0 ? -1 : ids[i + 1]));
}
