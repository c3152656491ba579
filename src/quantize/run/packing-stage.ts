/**
 * The last stage of a run: every block's parameters are folded into its weights, the weights rounded and packed into a
 * file of the journal. With GPTQ the calibration set goes through the full-precision model once more, because
 * second moments depend on the final parameters.
 */
import type { PackedBlock } from "../../backend/contract/packed.js";
import type { KeptModel } from "../schema/method.js";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { InterruptedError } from "../../common/errors.js";
import type { ProgressSink } from "../../common/progress.js";
import { blockProgram } from "../../models/architectures/index.js";
import { runBlock, type BlockWeights } from "../../models/interpret.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { freeBlock, readBlock, uploadBlock, type HostBlock } from "../../models/weights.js";
import { meanSquaredError } from "../../tensor/ops/index.js";
import { Graph } from "../../tensor/tensor.js";
import { Prefix, type StateStore } from "../calibration/prefix.js";
import { sampleRange, type Activations, type TokenWindows } from "../schema/windows.js";
import { foldBlock } from "../block/fold.js";
import { balanceShapes } from "../transforms/key-balance.js";
import { parameterName, type ParameterValues } from "../schema/parameters.js";
import type { Journal, PackReport } from "./journal.js";
import { packedLayer } from "../block/packed-block.js";
import { packedEntries } from "../artifact/block-tensors.js";
import { collectMoments } from "../block/input-moments.js";
import { gptqSolver } from "../rounding/native.js";
import { gptqRounder } from "../rounding/rounder.js";
import type { GptqSettings } from "../schema/gptq-settings.js";
import { schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import { settleParameters } from "../transforms/stored-precision.js";

export interface PackJob {
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly journal: Journal;
  /** A source's own block, to be packed as it is. */
  readonly keptBlock?: KeptModel["block"];
  /** Final parameters by block; absent for methods that learn nothing. */
  readonly parameters?: readonly ParameterValues[];
  readonly windows?: TokenWindows;
  readonly states?: StateStore;
  /** Absent: weights are rounded to nearest. */
  readonly gptq?: GptqSettings;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
}

export interface PackedFile extends PackReport {
  readonly file: string;
  /** Shapes of the block's parameters, as the method names them. */
  readonly parameters: Record<string, number[]>;
  /** The parameters as the artifact holds them. */
  readonly settled: ParameterValues;
}

/** Windows on which a packed block's error is measured. */
const REPORT_WINDOWS = 16;

/** Packs what the journal does not hold yet. @throws InterruptedError on the signal. */
export async function packBlocks(job: PackJob): Promise<PackedFile[]> {
  const { source, architecture, config, scheme, journal } = job;
  const task = job.progress.task("packing", config.numLayers);
  const wanted = scheme.weightBits < 16 ? job.gptq : undefined;
  const prefix = wanted && job.windows && new Prefix(job, job.windows);
  const files: PackedFile[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    if (job.signal?.aborted) throw new InterruptedError("stopped while packing");
    if (job.keptBlock) {
      files.push(await packKept(job, job.keptBlock, layer));
      task.advance();
      continue;
    }
    const host = readBlock(source, architecture, config, layer);
    const program = blockProgram(config, layer);
    const values: ParameterValues = job.parameters?.[layer] ?? new Map();
    let report = journal.readPacked(layer);
    if (prefix && wanted)
      report = await packOnPrefix(job, wanted, prefix, host, values, layer, report);
    else if (!report) {
      report = { notes: [] };
      const block = { program, scheme: schemeOfBlock(scheme, layer) };
      const packed = foldBlock(host, block, values);
      await journal.keepPacked(layer, entriesOf(job, packed, layer), report);
    }
    const parameters = Object.fromEntries([...values].map(([name, v]) => [name, [...v.shape]]));
    const settled = settleParameters(program, host, values);
    files.push({ file: journal.packedFile(layer), parameters, settled, ...report });
    task.advance();
    await nextTurn();
  }
  task.done();
  if (job.gptq && !wanted && files.length > 0) {
    const remark = "rounding gptq: weights stay at 16 bits, there was nothing to round";
    files[0] = { ...files[0], notes: [...files[0].notes, remark] };
  }
  return files;
}

/** Packs a block of the source as it is. */
async function packKept(
  { architecture, config, scheme, journal, parameters }: PackJob,
  read: KeptModel["block"],
  layer: number,
): Promise<PackedFile> {
  const block = read(layer, parameters?.[layer]);
  if (!journal.readPacked(layer)) {
    const entries = packedEntries(architecture, config, scheme, layer, block, true);
    await journal.keepPacked(layer, entries, { notes: [] });
  }
  const shapes: Record<string, number[]> = {};
  if (block.keyTransform) {
    const { matrix, balance } = block.keyTransform;
    const size = Math.sqrt(matrix.length);
    shapes[parameterName(KEY_MATRIX)] = [size, size];
    if (balance) Object.assign(shapes, balanceShapes(balance.diag.length));
  }
  return {
    file: journal.packedFile(layer),
    notes: [],
    parameters: shapes,
    settled: new Map(),
  };
}

const KEY_MATRIX = { kind: "matrix", site: "k_head", part: "p", side: "" } as const;

function entriesOf({ architecture, config, scheme }: PackJob, packed: PackedBlock, layer: number) {
  return packedEntries(architecture, config, scheme, layer, packed);
}

/** Packs one block by GPTQ, unless it is packed already, and moves the prefix past it. */
async function packOnPrefix(
  job: PackJob,
  gptq: GptqSettings,
  prefix: Prefix,
  host: HostBlock,
  values: ParameterValues,
  layer: number,
  kept: PackReport | undefined,
): Promise<PackReport> {
  const { backend, config, scheme, journal, signal } = job;
  if (kept && layer === config.numLayers - 1) return kept;
  const weights: BlockWeights = uploadBlock(backend, host);
  const { inputs } = prefix;
  const outputs = await prefix.outputs(weights, layer, signal);
  let report = kept;
  if (!report) {
    const program = blockProgram(config, layer);
    const block = { program, scheme: schemeOfBlock(scheme, layer) };
    const parameters = settleParameters(program, host, values);
    const moments = await collectMoments({
      backend,
      block,
      weights,
      parameters,
      inputs,
      layer,
      equalTokens: gptq.equalTokens,
      signal,
    });
    const notes: string[] = [];
    const solver = gptqSolver(backend);
    const rounder = gptqRounder(moments, gptq, `block ${layer}`, notes, solver);
    const packed = foldBlock(host, block, values, rounder);
    report = { errorPacked: packedError(job, packed, inputs, outputs, layer), notes };
    await journal.keepPacked(layer, entriesOf(job, packed, layer), report);
  }
  freeBlock(backend, weights);
  prefix.advance(outputs);
  return report;
}

/** Mean squared error of a packed block's output on the first calibration windows. */
function packedError(
  { backend, config, scheme }: PackJob,
  packed: PackedBlock,
  inputs: Activations,
  outputs: Activations,
  layer: number,
): number {
  const program = blockProgram(config, layer);
  const own = schemeOfBlock(scheme, layer);
  const { weights, hooks } = packedLayer(backend, program, own, packed);
  const count = Math.min(REPORT_WINDOWS, inputs.samples);
  const shape = [inputs.time, inputs.hidden];
  let sum = 0;
  using arena = backend.arena();
  for (let s = 0; s < count; s++) {
    using g = new Graph(backend, { arena });
    const x = g.constant(shape, sampleRange(inputs, s, 1));
    const y = runBlock(g, program, weights, hooks, x, { layer, batch: 1 });
    sum += g.scalar(meanSquaredError(g, y, g.constant(shape, sampleRange(outputs, s, 1))));
  }
  freeBlock(backend, weights);
  return sum / count;
}
