/**
 * How far a model strays from its full-precision original on a text: next-token distributions, first choices, and states
 * after each block. These move long before a task score does. Source: docs/evaluate.md, Divergence.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { LanguageModel } from "../models/language-model.js";
import { binary, gatherRows, negativeLogLikelihood } from "../tensor/ops/index.js";
import { Graph, type Tensor } from "../tensor/tensor.js";
import {
  summarizeWindows,
  textWindows,
  type PerplexityOptions,
  type PerplexityResult,
} from "./perplexity.js";
import { ReferenceStates } from "./reference.js";
import { rowMaxima } from "./score.js";
import { meanWithError, type Measure } from "./statistics.js";

export interface DivergenceResult {
  /** Mean over predicted tokens of KL(reference ‖ model), in nats; the error is over windows. */
  readonly kl: Measure;
  /** Share of predicted tokens where both models' likeliest token is the same; the error is over windows. */
  readonly topAgreement: Measure;
  /**
   * For each block, mean over tokens of ‖model − reference‖ / ‖reference‖ of the state it leaves, each model on its own
   * states: errors of earlier blocks are in it. Absent where the models' blocks do not correspond; over the first
   * windows only where the reference kept no more.
   */
  readonly blockErrors?: readonly number[];
  readonly windows: number;
  readonly seqLen: number;
  /** Perplexities on the same windows. */
  readonly model: PerplexityResult;
  readonly reference: PerplexityResult;
}

export type DivergenceOptions = Omit<PerplexityOptions, "progress" | "label"> & {
  readonly progress?: ProgressSink;
  readonly label?: string;
};

/** Rows of logits made at once, for both models. */
const HEAD_ROWS = 256;

/**
 * Runs two models on one backend over the same windows of a text; or one, beside what `captureReference` kept of the
 * other on that text (whose windows then count, not the options').
 * @throws PlanishError when the vocabularies differ, or the text is shorter than one window.
 */
export async function evaluateDivergence(
  model: LanguageModel,
  against: LanguageModel | ReferenceStates,
  tokens: Int32Array,
  options: DivergenceOptions = {},
): Promise<DivergenceResult> {
  const kept = against instanceof ReferenceStates ? against : undefined;
  const reference = against instanceof ReferenceStates ? against.model : against;
  if (model.config.vocabSize !== reference.config.vocabSize)
    throw new PlanishError(
      `distributions over ${model.config.vocabSize} and ${reference.config.vocabSize} tokens cannot be compared; ` +
        "give models with the same vocabulary",
    );
  if (model.backend !== reference.backend)
    throw new PlanishError("models to compare must be loaded on the same backend");
  const asked = kept ? { seqLen: kept.seqLen, limit: kept.windows } : options;
  const { seqLen, windows, perStep } = textWindows(model.config, tokens, asked);
  const comparable =
    model.layers.length === reference.layers.length &&
    model.config.hiddenSize === reference.config.hiddenSize;
  const task = (options.progress ?? silentProgress).task(options.label ?? "divergence", windows);
  using own = new Side(model);
  using other = new Side(reference);
  const kl: number[] = [];
  const agreement: number[] = [];
  const blockSums = new Float64Array(comparable ? model.layers.length : 0);
  let blockRows = 0;
  try {
    for (let first = 0; first < windows; first += perStep) {
      if (options.signal?.aborted)
        throw new InterruptedError(`stopped after ${first} of ${windows} windows`);
      const count = Math.min(perStep, windows - first);
      const ids = tokens.slice(first * seqLen, (first + count) * seqLen);
      const known = kept && { kept, first };
      const step = compareStep(own, other, ids, count, known, comparable ? blockSums : undefined);
      blockRows += step.blockRows;
      kl.push(...step.kl);
      agreement.push(...step.agreement);
      const mean = kl.reduce((a, b) => a + b, 0) / kl.length;
      task.advance(count, `KL so far ${mean.toPrecision(3)}`);
      await nextTurn();
    }
  } finally {
    task.done();
  }
  return {
    kl: meanWithError(kl),
    topAgreement: meanWithError(agreement),
    ...(blockRows > 0 ? { blockErrors: Array.from(blockSums, (sum) => sum / blockRows) } : {}),
    windows,
    seqLen,
    model: summarizeWindows(own.windowNll, seqLen, own.seconds),
    reference: kept?.perplexity ?? summarizeWindows(other.windowNll, seqLen, other.seconds),
  };
}

/** One of the two models, with memory of its own, so that both can be half-way through a pass. */
class Side implements Disposable {
  readonly windowNll: number[] = [];
  seconds = 0;
  private readonly arena;

  constructor(readonly model: LanguageModel) {
    this.arena = model.backend.arena();
  }

  graph(): Graph {
    return new Graph(this.model.backend, { arena: this.arena });
  }

  timed<T>(work: () => T): T {
    const started = performance.now();
    const result = work();
    this.seconds += (performance.now() - started) / 1000;
    return result;
  }

  [Symbol.dispose](): void {
    this.arena[Symbol.dispose]();
  }
}

/** Windows of a kept run, from `first` on. */
interface KeptWindows {
  readonly kept: ReferenceStates;
  readonly first: number;
}

function compareStep(
  own: Side,
  other: Side,
  ids: Int32Array,
  batch: number,
  known: KeptWindows | undefined,
  blockSums: Float64Array | undefined,
): { kl: number[]; agreement: number[]; blockRows: number } {
  const seqLen = ids.length / batch;
  using ownGraph = own.graph();
  using otherGraph = other.graph();
  const ownStates = own.model.blockStates(ownGraph, ids, { batch });
  const otherStates = known ? undefined : other.model.blockStates(otherGraph, ids, { batch });
  let x: Tensor | undefined;
  let y: Tensor | undefined;
  let blockRows = 0;
  for (let layer = 0; layer < own.model.layers.length; layer++) {
    x = own.timed(() => ownStates.next().value ?? undefined) ?? x;
    y = other.timed(() => otherStates?.next().value ?? undefined) ?? y;
    const expected = known ? blocksOf(known, layer, batch) : y;
    if (!blockSums || !x || !expected) continue;
    blockSums[layer] += relativeErrors(ownGraph, x, expected);
    blockRows = ids.length;
  }
  if (!known) for (const state of otherStates ?? []) y = state;
  if (!x) throw new PlanishError("model has no blocks");
  const ownHidden = own.timed(() => own.model.finalNorm(ownGraph, x));
  const otherHidden = other.timed(() => keptOrNormed(other, otherGraph, known, batch, y));

  const sums = { kl: new Float64Array(batch), same: new Float64Array(batch) };
  const nlls = [new Float64Array(batch), new Float64Array(batch)];
  // The last position of a window predicts nothing of the window.
  const rows = Int32Array.from(ids.keys()).filter((row) => (row + 1) % seqLen !== 0);
  for (let first = 0; first < rows.length; first += HEAD_ROWS) {
    const some = rows.slice(first, first + HEAD_ROWS);
    const targets = some.map((row) => ids[row + 1]);
    using g1 = ownGraph.nested();
    using g2 = otherGraph.nested();
    const predict = (side: Side, g: Graph, hidden: Tensor) =>
      side.timed(() => {
        const logits = side.model.logits(g, gatherRows(g, hidden, g.indices(some)));
        return { logits, nll: g.read(negativeLogLikelihood(g, logits, g.indices(targets))) };
      });
    const a = predict(own, g1, ownHidden);
    const b = predict(other, g2, otherHidden);
    const kl = divergences(g1, b.logits, a.logits);
    const best = [a, b].map(({ logits }) => rowMaxima(g1.read(logits), logits.cols));
    for (const [i, row] of some.entries()) {
      const window = Math.floor(row / seqLen);
      sums.kl[window] += kl[i];
      sums.same[window] += Number(best[0][i] === best[1][i]);
      nlls[0][window] += a.nll[i];
      nlls[1][window] += b.nll[i];
    }
  }
  const predicted = seqLen - 1;
  own.windowNll.push(...nlls[0].map((sum) => sum / predicted));
  other.windowNll.push(...nlls[1].map((sum) => sum / predicted));
  return {
    blockRows,
    kl: Array.from(sums.kl, (sum) => sum / predicted),
    agreement: Array.from(sums.same, (sum) => sum / predicted),
  };
}

/** States that left a block in the kept run; undefined where the windows are not all kept. */
function blocksOf(
  { kept, first }: KeptWindows,
  layer: number,
  batch: number,
): Float32Array | undefined {
  const windows = kept.blocks.slice(first, first + batch).map((blocks) => blocks[layer]);
  return windows.length === batch ? joined(windows) : undefined;
}

function keptOrNormed(
  { model }: Side,
  g: Graph,
  known: KeptWindows | undefined,
  batch: number,
  last: Tensor | undefined,
): Tensor {
  if (known) {
    const data = joined(known.kept.hidden.slice(known.first, known.first + batch));
    const rows = batch * known.kept.seqLen;
    return g.constant([rows, data.length / rows], data);
  }
  if (!last) throw new PlanishError("model has no blocks");
  return model.finalNorm(g, last);
}

function joined(parts: readonly Float32Array[]): Float32Array {
  if (parts.length === 1) return parts[0];
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let filled = 0;
  for (const part of parts) {
    all.set(part, filled);
    filled += part.length;
  }
  return all;
}

/** KL(softmax teacher ‖ softmax student) of each row. */
function divergences(g: Graph, teacher: Tensor, student: Tensor): ArrayLike<number> {
  const { rows, cols } = student;
  const kl = g.real(rows);
  g.kernels.softmaxKl({
    teacher: g.values(teacher),
    student: g.values(student),
    rows,
    cols,
    kl,
    gradScale: 1,
  });
  return g.backend.read(kl);
}

/** Sum over rows of ‖x − y‖ / ‖y‖; `expected` may lie on the host. */
function relativeErrors(graph: Graph, x: Tensor, expected: Tensor | Float32Array): number {
  using g = graph.nested();
  const y = expected instanceof Float32Array ? g.constant(x.shape, expected) : expected;
  const squares = (t: Tensor): ArrayLike<number> => {
    const out = g.real(t.rows);
    const values = g.values(t);
    const shape = { rows: t.rows, cols: t.cols };
    g.kernels.reduce({ ...shape, x: values, y: values, keep: "column", alpha: 1, out });
    return g.backend.read(out);
  };
  const errors = squares(binary(g, "sub", x, y));
  const norms = squares(y);
  let sum = 0;
  for (let r = 0; r < y.rows; r++) if (norms[r] > 0) sum += Math.sqrt(errors[r] / norms[r]);
  return sum;
}
