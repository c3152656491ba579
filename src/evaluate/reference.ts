/**
 * What a full-precision model makes of a text, computed once and kept on the host, so that any number of models can be
 * compared with it. Kept are the states that the head reads (logits follow from them by one product) and, as far as a
 * budget allows, the states after every block.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { silentProgress } from "../common/progress.js";
import { stateWidth } from "../models/config.js";
import { endLayerTensors, type LanguageModel } from "../models/language-model.js";
import { freeBlock } from "../models/weights.js";
import { gatherRows, negativeLogLikelihood } from "../tensor/ops/index.js";
import { freeTensor, Graph, type Tensor } from "../tensor/tensor.js";
import {
  summarizeWindows,
  textWindows,
  type PerplexityOptions,
  type PerplexityResult,
} from "./perplexity.js";

/** Rows of logits made at once. */
const HEAD_ROWS = 256;
const DEFAULT_BUDGET = 512e6;

export interface CaptureOptions extends PerplexityOptions {
  /** Memory for states after blocks, in bytes (default 512 MB): the first windows are kept, as many as fit. */
  readonly budgetBytes?: number;
}

/** The kept run of one model over the first windows of one text. */
export class ReferenceStates implements Disposable {
  /** By window: what the head reads, [seqLen, width]. */
  readonly hidden: Float32Array[] = [];
  /** By window and block: [seqLen, hidden]; for the first windows only. */
  readonly blocks: Float32Array[][] = [];
  perplexity: PerplexityResult;

  /** Owns `model`: its blocks are freed once the text went through. */
  constructor(
    readonly model: LanguageModel,
    readonly seqLen: number,
    readonly windows: number,
  ) {
    this.perplexity = summarizeWindows([], seqLen, 0);
  }

  [Symbol.dispose](): void {
    for (const t of endLayerTensors(this.model.endLayers)) freeTensor(this.model.backend, t);
  }
}

/**
 * Runs a model over a text and keeps what comparisons need. Takes the model over: its blocks are freed at the end, the
 * rest with the result.
 * @throws PlanishError when the text is shorter than one window; InterruptedError on the signal.
 */
export async function captureReference(
  model: LanguageModel,
  tokens: Int32Array,
  options: CaptureOptions = {},
): Promise<ReferenceStates> {
  const { seqLen, windows } = textWindows(model.config, tokens, options);
  const kept = new ReferenceStates(model, seqLen, windows);
  const task = (options.progress ?? silentProgress).task(options.label ?? "reference", windows);
  const windowBytes = model.layers.length * seqLen * stateWidth(model.config) * 4;
  const keptWindows = Math.floor((options.budgetBytes ?? DEFAULT_BUDGET) / windowBytes);
  const windowNll: number[] = [];
  const started = performance.now();
  using arena = model.backend.arena();
  for (let w = 0; w < windows; w++) {
    if (options.signal?.aborted)
      throw new InterruptedError(`stopped after ${w} of ${windows} windows`);
    const ids = tokens.slice(w * seqLen, (w + 1) * seqLen);
    using g = new Graph(model.backend, { arena });
    const blocks: Float32Array[] = [];
    let last: Tensor | undefined;
    for (const state of model.blockStates(g, ids)) {
      if (w < keptWindows) blocks.push(Float32Array.from(g.read(state)));
      last = state;
    }
    if (!last) throw new PlanishError("model has no blocks");
    const hidden = model.finalNorm(g, last);
    kept.hidden.push(Float32Array.from(g.read(hidden)));
    if (w < keptWindows) kept.blocks.push(blocks);
    windowNll.push(windowLoss(model, g, hidden, ids));
    task.advance();
    await nextTurn();
  }
  task.done();
  const seconds = (performance.now() - started) / 1000;
  kept.perplexity = summarizeWindows(windowNll, seqLen, seconds);
  for (const { weights } of model.layers) freeBlock(model.backend, weights);
  return kept;
}

/** Mean NLL of a window's tokens, its first not predicted. */
function windowLoss(model: LanguageModel, graph: Graph, hidden: Tensor, ids: Int32Array): number {
  let sum = 0;
  for (let first = 0; first < ids.length - 1; first += HEAD_ROWS) {
    using g = graph.nested();
    const count = Math.min(HEAD_ROWS, ids.length - 1 - first);
    const rows = Int32Array.from({ length: count }, (_, i) => first + i);
    const logits = model.logits(g, gatherRows(g, hidden, g.indices(rows)));
    const targets = g.indices(rows.map((row) => ids[row + 1]));
    for (const nll of g.read(negativeLogLikelihood(g, logits, targets))) sum += nll;
  }
  return sum / (ids.length - 1);
}
