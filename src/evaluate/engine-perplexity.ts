/**
 * Perplexity through an engine's executor: the same windows as `evaluatePerplexity`, on the engine's own kernels and
 * paged cache. Source: docs/evaluate.md, Perplexity.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../backend/contract/training.js";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { silentProgress } from "../common/progress.js";
import type { Executor } from "../backend/contract/inference.js";
import { negativeLogLikelihood } from "../tensor/ops/index.js";
import { Graph } from "../tensor/tensor.js";
import {
  summarizeWindows,
  textWindows,
  type PerplexityOptions,
  type PerplexityResult,
} from "./perplexity.js";

/** Rows of logits of one step: a vocabulary of 49k takes 50 MB for them. A multiple of any executor's page. */
const ROWS_PER_STEP = 256;

/**
 * exp(mean over windows of the mean token NLL). Windows go through one sequence's pages one after another, in chunks.
 * @param backend Computes the NLLs of the executor's logits, as it does those of the model that is compared with: a
 * vocabulary's exponentials take JavaScript longer than the whole step takes a GPU.
 * @throws PlanishError when the text has fewer tokens than one window, or a window is longer than the model's positions.
 */
export async function evaluateEnginePerplexity(
  executor: Executor,
  backend: Backend,
  tokens: Int32Array,
  options: PerplexityOptions = {},
): Promise<PerplexityResult> {
  const { shape, pageTokens } = executor;
  const { seqLen, windows } = textWindows(shape, tokens, options);
  if (seqLen > shape.maxPositions)
    throw new PlanishError(
      `windows of ${seqLen} tokens are longer than the model's ${shape.maxPositions} positions`,
    );
  const task = (options.progress ?? silentProgress).task(options.label ?? "engine", windows);
  const started = performance.now();
  const pages = Int32Array.from({ length: Math.ceil(seqLen / pageTokens) }, (_, i) => i);
  executor.reserve(pages.length);
  const windowNll: number[] = [];
  using arena = backend.arena();
  for (let window = 0; window < windows; window++) {
    const ids = tokens.subarray(window * seqLen, (window + 1) * seqLen);
    let sum = 0;
    for (let start = 0; start < seqLen - 1; start += ROWS_PER_STEP) {
      if (options.signal?.aborted)
        throw new InterruptedError(`stopped after ${window} of ${windows} windows`);
      const end = Math.min(start + ROWS_PER_STEP, seqLen - 1);
      const [logits] = await executor.step([
        { tokens: ids.slice(start, end), start, pages, logits: "all" },
      ]);
      if (!logits) throw new PlanishError("the executor gave no logits");
      using g = new Graph(backend, { arena });
      const rows = g.constant([end - start, shape.vocabSize], logits);
      const targets = g.indices(ids.slice(start + 1, end + 1));
      for (const nll of g.read(negativeLogLikelihood(g, rows, targets))) sum += nll;
      await nextTurn();
    }
    windowNll.push(sum / (seqLen - 1));
    const mean = windowNll.reduce((a, b) => a + b, 0) / windowNll.length;
    task.advance(1, `perplexity so far ${Math.exp(mean).toFixed(2)}`);
  }
  task.done();
  return summarizeWindows(windowNll, seqLen, (performance.now() - started) / 1000);
}
