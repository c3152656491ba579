/**
 * Training of one block's parameters against its own full-precision output, for any method whose parameters the
 * simulated block understands; and the measurement alone, for methods that learn nothing.
 * Source: docs/methods.md, flatquant.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Arena, Backend, Buffer, RealArray } from "../../backend/contract/training.js";
import { InterruptedError } from "../../common/errors.js";
import { runBlock, type BlockWeights } from "../../models/interpret.js";
import { meanSquaredError } from "../../tensor/ops/index.js";
import { freeTensor, frozen, Graph, parameter, Tensor } from "../../tensor/tensor.js";
import { BatchFeed, type Batch, type Share } from "../calibration/feed.js";
import type { ParameterValues } from "../schema/parameters.js";
import type { BlockJob, BlockOutcome } from "../schema/method.js";
import { bindSimulated, type BlockDescription } from "./simulated-block.js";
import { AdamW, trainStep, type ParameterRule } from "./training.js";
import { pooledParameters, PooledTensors } from "./pooling.js";
import { isFixedParameter, type Parameters } from "../transforms/affine.js";

/** Windows on which the report's errors are measured. */
const REPORT_WINDOWS = 16;

/** How a block is trained. */
export interface BlockTraining {
  readonly epochs: number;
  /** Windows per step. */
  readonly batch: number;
  readonly precision: "bf16" | "f32";
  /** Cosine schedule ends here. */
  readonly finalLearningRate: number;
  /** Learning rate and decay by parameter name. */
  readonly rule: (name: string) => ParameterRule;
}

function onBackend(g: Graph, shape: readonly number[], data: RealArray | Buffer): Tensor {
  return "dtype" in data ? new Tensor(shape, data, false) : g.constant(shape, data);
}

export interface BlockTrainerOptions extends Pick<
  BlockTraining,
  "precision" | "finalLearningRate" | "rule"
> {
  readonly backend: Backend;
  readonly block: BlockDescription;
  readonly weights: BlockWeights;
  /** What is learned. */
  readonly params: Parameters;
  /** Every parameter of a step's graph, where it is not what is learned itself. */
  readonly bind?: (g: Graph) => Parameters;
  readonly totalSteps: number;
  readonly layer: number;
  /** Channels of the hidden states. */
  readonly hidden: number;
}

export class BlockTrainer implements Disposable {
  private readonly optimizer: AdamW;
  private readonly arena: Arena;

  constructor(private readonly options: BlockTrainerOptions) {
    const { backend, params, rule, totalSteps, finalLearningRate } = options;
    this.arena = backend.arena();
    this.optimizer = new AdamW(backend, params, rule, { totalSteps, finalLearningRate });
  }

  /** One step; returns the batch's mean squared error before the update. */
  step(batch: Batch): number {
    const { backend, precision } = this.options;
    return trainStep(backend, this.optimizer, { precision, arena: this.arena }, (g) => {
      const out = this.forward(g, batch.input, batch.sequences);
      return meanSquaredError(g, out, onBackend(g, out.shape, batch.target));
    });
  }

  /** Error of the quantized block's output for host activations, against a target. */
  evaluate(batch: Batch): number {
    const { backend, precision } = this.options;
    using g = new Graph(backend, { precision, arena: this.arena });
    const out = this.forward(g, batch.input, batch.sequences);
    return g.scalar(meanSquaredError(g, out, onBackend(g, out.shape, batch.target)));
  }

  private forward(g: Graph, input: Batch["input"], sequences: number): Tensor {
    const { block, weights, params, bind, layer, hidden } = this.options;
    const hooks = bindSimulated(g, block, weights, bind ? bind(g) : params);
    const x = onBackend(g, [input.length / hidden, hidden], input);
    return runBlock(g, block.program, weights, hooks, x, { layer, batch: sequences });
  }

  /** Peak bytes of activations and gradients so far. */
  get peakBytes(): number {
    return this.arena.peakBytes;
  }

  [Symbol.dispose](): void {
    this.optimizer[Symbol.dispose]();
    this.arena[Symbol.dispose]();
  }
}

/**
 * Trains a block from `start`, and measures it before, after, and rounded to nearest without parameters.
 * @throws InterruptedError on the job's signal.
 */
export async function trainBlock(
  job: BlockJob<unknown>,
  start: ParameterValues,
  training: BlockTraining,
): Promise<BlockOutcome> {
  const { backend, program, weights, scheme, layer, inputs, targets } = job;
  const uploaded = uploadParameters(backend, start);
  // Experts learn in part together; what nobody learns stays as it was found.
  const pooled =
    job.expertTokens && training.epochs > 0
      ? PooledTensors.upload(backend, uploaded, pooledParameters(program, start, job.expertTokens))
      : undefined;
  const params = pooled?.learned ?? uploaded;
  const batches = Math.ceil(inputs.samples / training.batch);
  const trainerFor = (p: ReadonlyMap<string, Tensor>, bind?: (g: Graph) => Parameters) =>
    new BlockTrainer({
      ...training,
      backend,
      block: { program, scheme },
      weights,
      params: p,
      bind,
      totalSteps: training.epochs * batches,
      layer,
      hidden: inputs.hidden,
    });
  using feed = new BatchFeed(backend, inputs, targets);
  const shareAt = (index: number): Share => {
    const first = index * training.batch;
    return { first, sequences: Math.min(training.batch, inputs.samples - first) };
  };
  // After the last of `count` batches comes the first again: of the next epoch, or of a measurement.
  const batchAt = (index: number, count: number): Batch =>
    feed.take(shareAt(index), shareAt((index + 1) % count));
  const measured = Math.min(batches, Math.max(1, Math.floor(REPORT_WINDOWS / training.batch)));
  const errorOf = (trainer: BlockTrainer): number => {
    let sum = 0;
    for (let i = 0; i < measured; i++) sum += trainer.evaluate(batchAt(i, measured));
    return sum / measured;
  };

  using rounded = trainerFor(new Map());
  const errorRounded = errorOf(rounded);
  using trainer = trainerFor(params, pooled && ((g) => pooled.bind(g)));
  const errorInitial = errorOf(trainer);
  const epochLoss: number[] = [];
  for (let epoch = 0; epoch < training.epochs; epoch++) {
    let sum = 0;
    for (let i = 0; i < batches; i++) {
      refuseAborted(job);
      const loss = trainer.step(batchAt(i, batches));
      sum += loss;
      job.progress.advance(
        1,
        `block ${layer} epoch ${epoch + 1}/${training.epochs} loss ${loss.toPrecision(3)}`,
      );
      await nextTurn();
    }
    epochLoss.push(sum / batches);
  }
  const errorFinal = training.epochs > 0 ? errorOf(trainer) : errorInitial;
  const parameters = downloadParameters(backend, pooled ?? params);
  for (const p of params.values()) freeTensor(backend, p);
  return {
    parameters,
    report: {
      errorRounded,
      errorInitial,
      errorFinal,
      epochLoss,
      moved: relativeChange(start, parameters),
      notes: [],
    },
  };
}

/**
 * A block whose parameters are settled already: measures it, as one step of progress.
 * @throws InterruptedError on the job's signal.
 */
export async function measureBlock(
  job: BlockJob<unknown>,
  parameters: ParameterValues,
): Promise<BlockOutcome> {
  refuseAborted(job);
  const outcome = await trainBlock(job, parameters, {
    epochs: 0,
    batch: 1,
    precision: "f32",
    finalLearningRate: 0,
    rule: () => ({ learningRate: 0, weightDecay: 0 }),
  });
  job.progress.advance(1, `block ${job.layer}`);
  await nextTurn();
  return { ...outcome, report: { ...outcome.report, moved: {} } };
}

function refuseAborted({ signal, layer }: BlockJob<unknown>): void {
  if (signal?.aborted) throw new InterruptedError(`stopped in block ${layer}`);
}

function uploadParameters(backend: Backend, values: ParameterValues): Map<string, Tensor> {
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of values)
    params.set(name, (isFixedParameter(name) ? frozen : parameter)(backend, shape, data));
  return params;
}

function downloadParameters(
  backend: Backend,
  learned: ReadonlyMap<string, Tensor> | PooledTensors,
): ParameterValues {
  const values = new Map<string, { shape: readonly number[]; data: RealArray }>();
  using g = new Graph(backend);
  const params = learned instanceof PooledTensors ? learned.bind(g) : learned;
  for (const [name, p] of params)
    if (p.buffer) values.set(name, { shape: p.shape, data: backend.read(p.buffer) as RealArray });
  return values;
}

function relativeChange(start: ParameterValues, end: ParameterValues): Record<string, number> {
  const moved: Record<string, number> = {};
  for (const [name, { data }] of end) {
    const from = start.get(name)?.data;
    let difference = 0;
    let norm = 0;
    for (let i = 0; i < data.length; i++) {
      difference += (data[i] - (from?.[i] ?? 0)) ** 2;
      norm += (from?.[i] ?? 0) ** 2;
    }
    moved[name] = Math.sqrt(norm > 0 ? difference / norm : difference);
  }
  return moved;
}
