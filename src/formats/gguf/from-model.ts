/**
 * An original as a GGUF file of a block type: the calibration text runs through it in full precision, and each linear is
 * rounded onto the type's own grid for the activations that it will read (`quantize/rounding/blocks.ts`).
 */
import type { Backend } from "../../backend/contract/training.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { isElementType } from "../../checkpoint/element-types.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { PlanishError } from "../../common/errors.js";
import { floatsToHalfBytes } from "../../common/half.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import { defaultSequenceLength, type Architecture, type ModelConfig } from "../../models/config.js";
import { blockProgram } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import {
  biasedPaths,
  freeBlock,
  readBlock,
  readTensor,
  uploadBlock,
  type HostBlock,
} from "../../models/weights.js";
import { Graph } from "../../tensor/tensor.js";
import type { BlockWeights } from "../../models/interpret.js";
import { collectMoments } from "../../quantize/block/input-moments.js";
import { Prefix } from "../../quantize/calibration/prefix.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { roundToBlocks, roundToNearest } from "../../quantize/rounding/blocks.js";
import { factorMoment, type GptqSolver } from "../../quantize/rounding/gptq.js";
import { gptqSolver } from "../../quantize/rounding/native.js";
import { randomWindows } from "../../quantize/schema/windows.js";
import type { ExportResult } from "../export-options.js";
import { writeGgufModel, type GgufBlock } from "./file.js";
import { FILE_TYPES, linearType, tableType, type GgufFileType, type StoredAs } from "./types.js";

export interface GgufRounding {
  readonly backend: Backend;
  readonly type: GgufFileType;
  readonly out: string;
  /** "wikipedia" (embedded) or a path to a text file. */
  readonly calibration?: string;
  /** Windows of it (default 32), and tokens in each (default: as far as the model reaches, up to 2048). */
  readonly samples?: number;
  readonly seqLen?: number;
  readonly seed?: number;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

export const DEFAULT_SAMPLES = 32;
/** Added to the second moment's diagonal, as a share of its mean. */
const DAMPING = 0.05;

/** @throws PlanishError for architectures, tokenizers and settings that GGUF has no place for. */
export async function exportGgufModel(path: string, options: GgufRounding): Promise<ExportResult> {
  const { type, out, signal, progress = silentProgress } = options;
  using checkpoint = openCheckpoint(path);
  const { architecture, config } = parseSource(checkpoint);
  const rounder = new ModelRounder(checkpoint, architecture, config, options, progress);
  const { names } = architecture;
  const { numLayers, tiedEmbeddings } = config;
  const typeOfTable = (name: string): StoredAs =>
    tableType(type, name === names.lmHead || tiedEmbeddings, config.hiddenSize);
  const { bytes } = await writeGgufModel(
    {
      path,
      checkpoint,
      architecture,
      config,
      signal,
      fileType: FILE_TYPES[type].code,
      description: `${type.toUpperCase()} by planish: rounded for the activations of a calibration text`,
      biased: (layer) => biasedPaths(checkpoint, architecture, config, layer),
      linearType: (layer, role) => {
        const { path: linear, shape } = blockProgram(config, layer).linears[role];
        return linearType(type, linear, shape[1], layer, numLayers);
      },
      tableType: typeOfTable,
      block: (layer) => rounder.block(layer),
      table: (name) => roundTable(checkpoint, config, name, typeOfTable(name)),
    },
    out,
  );
  rounder.done();
  return { out, format: "gguf", bytes, dropped: [], notes: [] };
}

/** An embedding or a head: to nearest on the best scales; one that has the type already stays as it is. */
function roundTable(
  checkpoint: Checkpoint,
  { vocabSize, hiddenSize }: ModelConfig,
  name: string,
  type: StoredAs,
): Uint8Array {
  if (checkpoint.tensors.get(name)?.type === type) return checkpoint.readBytes(name);
  const { data } = readTensor(checkpoint, name, [vocabSize, hiddenSize]);
  return isElementType(type)
    ? floatsToHalfBytes(data, name)
    : roundToNearest(type, data, hiddenSize);
}

/** Rounds the blocks of a model one after the other. */
class ModelRounder {
  private readonly prefix: Prefix;
  private readonly solver: GptqSolver;
  private readonly task;

  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly architecture: Architecture,
    private readonly config: ModelConfig,
    private readonly options: GgufRounding,
    progress: ProgressSink,
  ) {
    const { backend, calibration = "wikipedia", samples = DEFAULT_SAMPLES, seed = 0 } = options;
    const seqLen = Math.min(options.seqLen ?? 2048, defaultSequenceLength(config));
    const tokens = tokenizeCorpus(loadTokenizer(checkpoint), readDocuments(calibration));
    const windows = randomWindows(tokens, samples, seqLen, seed);
    if (windows.ids.some((id) => id >= config.vocabSize))
      throw new PlanishError(
        "the tokenizer gives ids beyond the model's vocabulary; the two don't belong together",
      );
    this.prefix = new Prefix({ backend, source: checkpoint, architecture, config }, windows);
    this.solver = gptqSolver(backend);
    this.task = progress.task("rounding", config.numLayers);
  }

  async block(layer: number): Promise<GgufBlock> {
    const { backend, signal } = this.options;
    const host = readBlock(this.checkpoint, this.architecture, this.config, layer);
    const weights = uploadBlock(backend, host);
    const outputs = await this.prefix.outputs(weights, layer, signal);
    const linears = await this.linears(host, weights, layer);
    freeBlock(backend, weights);
    this.prefix.advance(outputs);
    this.task.advance(1, `block ${layer}`);
    return { norms: host.norms, linears };
  }

  done(): void {
    this.task.done();
  }

  private async linears(
    host: HostBlock,
    weights: BlockWeights,
    layer: number,
  ): Promise<GgufBlock["linears"]> {
    const { backend, signal, type: file } = this.options;
    const { config } = this;
    const program = blockProgram(config, layer);
    const moments = await collectMoments({
      backend,
      block: { program, scheme: { weightBits: 16, activationBits: 16, kvBits: 16 } },
      weights,
      parameters: new Map(),
      inputs: this.prefix.inputs,
      layer,
      equalTokens: true,
      signal,
    });
    const linears: Record<string, GgufBlock["linears"][string]> = {};
    for (const { roles, cols, sum } of moments) {
      const factor = factorMoment(sum, cols, { damping: DAMPING, actOrder: true }, this.solver);
      let mean = 0;
      for (let i = 0; i < cols; i++) mean += sum[i * cols + i] / cols;
      const damped = Float32Array.from(sum);
      for (let i = 0; i < cols; i++) damped[i * cols + i] += factor.damping * (mean || 1);
      const importance = Float32Array.from({ length: cols }, (_, i) => damped[i * cols + i]);
      using g = new Graph(backend);
      const moment = g.values(g.constant([cols, cols], damped));
      for (const role of roles) {
        const { path, weight, bias } = host.linears[role];
        const [rows] = weight.shape;
        const type = linearType(file, path, cols, layer, config.numLayers);
        const bytes = isElementType(type)
          ? floatsToHalfBytes(weight.data, path)
          : roundToBlocks({
              type,
              weight: weight.data,
              rows,
              cols,
              factor,
              importance,
              timesMoment: (x) => {
                using inner = new Graph(backend);
                const buffer = inner.values(inner.constant([rows, cols], x));
                const out = inner.real(rows * cols);
                inner.kernels.matmul({
                  m: rows,
                  n: cols,
                  k: cols,
                  a: { buffer },
                  b: { buffer: moment },
                  out: { buffer: out },
                  precision: "f32",
                });
                return backend.read(out) as Float32Array;
              },
            });
        linears[role] = { bytes, bias: bias?.data };
      }
    }
    return linears;
  }
}
