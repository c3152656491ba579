/**
 * End-to-end distillation: all blocks' parameters together, KL of the quantized model's next-token distribution to
 * the full-precision one's. Source: docs/methods.md, flatquant, Distillation.
 *
 * Activations of the whole model are never held for the backward pass: a step keeps each block's input, then goes
 * back block by block, running each again with a tape. A block is updated as soon as its own gradients are known;
 * earlier blocks do not depend on it.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Arena, Backend, Buffer, RealArray } from "../../../backend/contract/training.js";
import { InterruptedError } from "../../../common/errors.js";
import { Random } from "../../../common/random.js";
import { runBlock, type BlockWeights } from "../../../models/interpret.js";
import { schemeOfBlock } from "../../../backend/contract/scheme.js";
import { blockProgram } from "../../../models/architectures/index.js";
import { stateWidth, type ModelConfig } from "../../../models/config.js";
import {
  embed,
  finalNorm,
  headLogits,
  type EndLayerWeights,
} from "../../../models/language-model.js";
import { freeBlock, uploadBlock } from "../../../models/weights.js";
import { freeTensor, frozen, Graph, parameter, Tensor } from "../../../tensor/tensor.js";
import { parameterOf, type ParameterValues } from "../../schema/parameters.js";
import type { RefineJob, RefineOutcome, RefineState } from "../../schema/method.js";
import { bindSimulated, type BlockDescription } from "../../block/simulated-block.js";
import { AdamW, type ParameterRule } from "../../block/training.js";
import { isFixedParameter } from "../../transforms/affine.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** Rows of logits formed at once: a large vocabulary's logits would not fit in memory together. */
const LOGIT_ROWS = 1024;
/** Steps between savings of the state. */
const KEEP_EVERY = 32;

interface Student {
  readonly weights: BlockWeights;
  readonly description: BlockDescription;
  readonly params: Map<string, Tensor>;
  readonly optimizer: AdamW;
}

export async function distill(job: RefineJob<FlatQuantRecipe>): Promise<RefineOutcome> {
  const { backend, recipe } = job;
  const total = recipe.distillation.steps;
  if (total === 0) return { parameters: job.parameters, losses: [] };
  const students = job.parameters.map((values, layer) => makeStudent(job, values, layer, total));
  if (job.resume) restore(backend, students, job.resume);
  const losses = [...(job.resume?.losses ?? [])];
  job.progress.advance(losses.length);
  using work = backend.arena();
  using inputs = backend.arena();
  for (let step = job.resume?.step ?? 0; step < total; step++) {
    if (job.signal?.aborted) {
      await job.keep(stateOf(backend, students, step, losses));
      throw new InterruptedError(`stopped in distillation at step ${step} of ${total}`);
    }
    const loss = distillStep(job, students, step, work, inputs);
    losses.push(loss);
    job.progress.advance(1, `distillation KL ${loss.toPrecision(3)}`);
    if ((step + 1) % KEEP_EVERY === 0 && step + 1 < total)
      await job.keep(stateOf(backend, students, step + 1, losses));
    await nextTurn();
  }
  const parameters = students.map((s) => values(backend, s.params));
  for (const s of students) {
    s.optimizer[Symbol.dispose]();
    freeBlock(backend, s.weights);
    for (const p of s.params.values()) freeTensor(backend, p);
  }
  return { parameters, losses };
}

function makeStudent(
  job: RefineJob<FlatQuantRecipe>,
  start: ParameterValues,
  layer: number,
  total: number,
): Student {
  const { backend, config, scheme, recipe } = job;
  const host = job.readBlock(layer);
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of start)
    params.set(name, (isFixedParameter(name) ? frozen : parameter)(backend, shape, data));
  const {
    learningRate,
    clipLearningRate = learningRate,
    roundingLearningRate,
    roundingBound: bound = 0.5,
  } = recipe.distillation;
  const rule = (name: string): ParameterRule => {
    const { kind } = parameterOf(name);
    if (kind === "round") return { learningRate: roundingLearningRate, weightDecay: 0, bound };
    return {
      learningRate: kind === "clip" ? clipLearningRate : learningRate,
      weightDecay: recipe.weightDecay,
    };
  };
  return {
    weights: uploadBlock(backend, host),
    description: { program: blockProgram(config, layer), scheme: schemeOfBlock(scheme, layer) },
    params,
    optimizer: new AdamW(backend, params, rule, {
      totalSteps: total,
      finalLearningRate: recipe.finalLearningRate,
    }),
  };
}

/** Windows of a step: passes over the calibration set, each in an order of its own. */
function windowsOf(step: number, batch: number, samples: number, seed: number): number[] {
  const order = (pass: number): Int32Array => {
    const indices = Int32Array.from({ length: samples }, (_, i) => i);
    Random.for(seed, "distill", pass).shuffle(indices);
    return indices;
  };
  return Array.from({ length: batch }, (_, i) => {
    const position = step * batch + i;
    return order(Math.floor(position / samples))[position % samples];
  });
}

function distillStep(
  job: RefineJob<FlatQuantRecipe>,
  students: readonly Student[],
  step: number,
  work: Arena,
  inputs: Arena,
): number {
  const { backend, config, recipe, windows, teacher, endLayers } = job;
  const { precision } = recipe;
  const chosen = windowsOf(
    step,
    Math.min(recipe.distillation.batch, windows.samples),
    windows.samples,
    job.seed,
  );
  const { time, hidden } = teacher;
  const batch = chosen.length;
  const ids = new Int32Array(batch * time);
  const teacherHidden = new Float32Array(batch * time * hidden);
  for (const [i, s] of chosen.entries()) {
    ids.set(windows.ids.subarray(s * time, (s + 1) * time), i * time);
    teacherHidden.set(
      teacher.data.subarray(s * time * hidden, (s + 1) * time * hidden),
      i * time * hidden,
    );
  }

  // Forward without a tape, keeping each block's input.
  using kept = new Graph(backend, { arena: inputs, precision });
  const blockInputs: Tensor[] = [];
  const keep = (g: Graph, x: Tensor): Tensor => {
    const copy = kept.real(x.size);
    backend.copy(g.values(x), copy, x.size);
    return new Tensor(x.shape, copy, true);
  };
  {
    using g = new Graph(backend, { arena: work, precision });
    blockInputs.push(keep(g, embed(g, config, endLayers, ids, batch)));
  }
  for (const [layer, student] of students.entries()) {
    using g = new Graph(backend, { arena: work, precision });
    blockInputs.push(keep(g, studentForward(g, student, blockInputs[layer], layer, batch)));
  }

  const { loss, gradient } = headLoss(
    backend,
    config,
    endLayers,
    blockInputs[students.length],
    teacherHidden,
    work,
    kept,
  );
  let upstream = gradient;
  for (let layer = students.length - 1; layer >= 0; layer--) {
    const student = students[layer];
    const x = blockInputs[layer];
    using g = new Graph(backend, { arena: work, precision, train: true });
    g.backward(studentForward(g, student, x, layer, batch), upstream);
    student.optimizer.update();
    if (layer > 0 && x.grad) {
      upstream = kept.real(x.size);
      backend.copy(x.grad, upstream, x.size);
    }
    x.grad = undefined;
  }
  return loss;
}

function studentForward(
  g: Graph,
  { weights, description, params }: Student,
  x: Tensor,
  layer: number,
  batch: number,
): Tensor {
  const hooks = bindSimulated(g, description, weights, params);
  return runBlock(g, description.program, weights, hooks, x, { layer, batch });
}

/** Mean KL over all positions and its gradient with respect to the student's last hidden state, in chunks of rows. */
function headLoss(
  backend: Backend,
  config: ModelConfig,
  endLayers: EndLayerWeights,
  student: Tensor,
  teacher: Float32Array,
  work: Arena,
  kept: Graph,
): { loss: number; gradient: Buffer } {
  const { vocabSize } = config;
  const width = stateWidth(config);
  const rows = student.rows;
  const gradient = kept.real(student.size);
  const studentBuffer = kept.values(student);
  let sum = 0;
  for (let first = 0; first < rows; first += LOGIT_ROWS) {
    const count = Math.min(LOGIT_ROWS, rows - first);
    using g = new Graph(backend, { arena: work, precision: kept.precision, train: true });
    const slice = g.real(count * width);
    backend.copy(studentBuffer, slice, slice.length, first * width);
    const x = new Tensor([count, width], slice, true);
    const target = g.constant(
      [count, width],
      teacher.subarray(first * width, (first + count) * width),
    );
    const head = (h: Tensor) =>
      headLogits(g, config, endLayers, finalNorm(g, config, endLayers, h));
    const logits = head(x);
    const kl = g.real(count);
    const gradStudent = g.real(count * vocabSize);
    g.kernels.softmaxKl({
      teacher: g.values(head(target)),
      student: g.values(logits),
      rows: count,
      cols: vocabSize,
      kl,
      gradStudent,
      gradScale: 1 / rows,
    });
    for (const value of backend.read(kl)) sum += value;
    g.backward(logits, gradStudent);
    if (x.grad) backend.copy(x.grad, gradient, count * width, 0, first * width);
  }
  return { loss: sum / rows, gradient };
}

function values(backend: Backend, params: ReadonlyMap<string, Tensor>): ParameterValues {
  const out = new Map<string, { shape: readonly number[]; data: RealArray }>();
  for (const [name, p] of params)
    if (p.buffer) out.set(name, { shape: p.shape, data: backend.read(p.buffer) as RealArray });
  return out;
}

function stateOf(
  backend: Backend,
  students: readonly Student[],
  step: number,
  losses: readonly number[],
): RefineState {
  const tensors = students.map((s) => {
    const all = new Map(values(backend, s.params));
    for (const [name, { moment1, moment2 }] of s.optimizer.state().moments) {
      all.set(`${name}#1`, { shape: [moment1.length], data: moment1 });
      all.set(`${name}#2`, { shape: [moment2.length], data: moment2 });
    }
    return all;
  });
  return { step, tensors, losses };
}

function restore(backend: Backend, students: readonly Student[], state: RefineState): void {
  for (const [layer, student] of students.entries()) {
    const saved = state.tensors[layer];
    const moments = new Map<string, { moment1: Float32Array; moment2: Float32Array }>();
    for (const [name, p] of student.params) {
      const value = saved.get(name);
      const moment1 = saved.get(`${name}#1`);
      const moment2 = saved.get(`${name}#2`);
      if (!p.buffer || !value || !moment1 || !moment2) continue;
      backend.write(p.buffer, value.data);
      moments.set(name, {
        moment1: Float32Array.from(moment1.data),
        moment2: Float32Array.from(moment2.data),
      });
    }
    student.optimizer.restore({ step: state.step, moments });
  }
}
