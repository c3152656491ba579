/**
 * What an executor is prepared from: an artifact's packed blocks, or an original's, without grids or on the grids that its
 * file has.
 */
import type { RealArray } from "../backend/contract/training.js";
import type {
  InferenceSource,
  ModelShape,
  EndLayerSource,
  StoredMatrix,
} from "../backend/contract/inference.js";
import type { PackedBlock, PackedLinear } from "../backend/contract/packed.js";
import { parseScheme, type Scheme } from "../backend/contract/scheme.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { openCheckpoint } from "../checkpoint/open.js";
import { mapValues } from "../common/records.js";
import { blockPrograms } from "../models/architectures/index.js";
import { keptScheme, storedMatrix, type Kept, type KeptChoices } from "../models/kept.js";
import { parseSource } from "../models/source.js";
import type { Architecture, ModelConfig } from "../models/config.js";
import { readBlock, readFinalNorm, readTensor, type HostBlock } from "../models/weights.js";
import { readQuantizedTable } from "../quantize/artifact/tables.js";
import { gridOfTable } from "../quantize/artifact/tensors.js";
import { dequantized } from "../quantize/grids/groups.js";
import { isArtifact, openArtifact } from "../quantize/artifact/artifact.js";
import { keptBlock } from "../quantize/block/kept-block.js";

/** A source that holds files open until it is disposed. */
export interface OpenSource extends InferenceSource, Disposable {
  readonly config: ModelConfig;
  /** Whether weights stay on the file's own grids, or why they do not; only where that was asked for. */
  readonly kept?: Kept;
}

/**
 * `keep`: an original whose weights are codes is taken as it is; absent, or where it cannot be: in 16 bits.
 * @throws PlanishError when the path holds no model. The caller disposes the source once the executor is prepared.
 */
export function openSource(path: string, keep?: KeptChoices): OpenSource {
  const opened = isArtifact(path) ? openArtifact(path) : openOriginal(path, keep);
  return {
    ...inferenceSource(opened),
    config: opened.config,
    kept: "kept" in opened ? opened.kept : undefined,
    [Symbol.dispose]: () => opened[Symbol.dispose](),
  };
}

export function modelShape(config: ModelConfig): ModelShape {
  const { hiddenSize, vocabSize, maxPositions, positions, stateWidth } = config;
  const learnedPositions = positions.kind === "learned";
  return { hiddenSize, vocabSize, maxPositions, learnedPositions, stateWidth };
}

/** A model's parts as executors take them. */
export function inferenceSource({
  checkpoint,
  architecture,
  config,
  scheme,
  block,
  ownTables = false,
}: Pick<InferenceSource, "scheme" | "block"> & {
  /** Embedding and head stay on the grids that the checkpoint has. */
  readonly ownTables?: boolean;
  readonly checkpoint: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
}): InferenceSource {
  return {
    shape: modelShape(config),
    programs: blockPrograms(config),
    scheme,
    endLayers: endLayerSource(checkpoint, architecture, config, scheme, ownTables),
    block,
  };
}

function openOriginal(path: string, keep?: KeptChoices) {
  const checkpoint = openCheckpoint(path);
  try {
    const { architecture, config } = parseSource(checkpoint);
    const kept = keep && keptScheme(checkpoint, architecture, config, keep);
    const own = kept && "scheme" in kept ? kept.scheme : undefined;
    return {
      checkpoint,
      architecture,
      config,
      kept,
      scheme: own ?? parseScheme("w16a16kv16"),
      ownTables: own !== undefined,
      block: (layer: number) =>
        own
          ? keptBlock(checkpoint, architecture, config, own, layer)
          : unquantized(readBlock(checkpoint, architecture, config, layer)),
      [Symbol.dispose]: () => checkpoint[Symbol.dispose](),
    };
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

function unquantized(host: HostBlock): PackedBlock {
  const linears = mapValues(host.linears, ({ path, weight, bias }): PackedLinear => ({
    path,
    shape: [weight.shape[0], weight.shape[1]],
    weight: singles(weight.data),
    bias: bias && singles(bias.data),
  }));
  return { norms: host.norms, linears, kept: host.kept, transforms: {} };
}

/** As f32, without a copy of what is f32 already: an embedding is a model's largest matrix. */
function singles(values: RealArray): Float32Array {
  return values instanceof Float32Array ? values : Float32Array.from(values);
}

function endLayerSource(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  ownTables: boolean,
): EndLayerSource {
  const { names } = architecture;
  const { hiddenSize, embeddingSize, vocabSize, embeddingScale, logitSoftcap } = config;
  const width = embeddingSize ?? hiddenSize;
  const matrix = (name: string, shape: readonly [number, number]): StoredMatrix => {
    const type = checkpoint.tensors.get(name)?.type ?? "";
    return {
      shape,
      type,
      values: () => singles(readTensor(checkpoint, name, shape).data),
      halves: () => {
        if (type !== "BF16" && type !== "F16") return undefined;
        const stored = checkpoint.tensors.get(name)?.shape.join();
        return stored === shape.join() ? checkpoint.readBytes(name) : undefined;
      },
    };
  };
  const table = (name: string, shape: readonly [number, number]): StoredMatrix => {
    if (ownTables)
      return checkpoint.grid?.(name) === undefined
        ? matrix(name, shape)
        : { ...matrix(name, shape), quantized: () => storedMatrix(checkpoint, name, shape) };
    if (!gridOfTable(scheme, name)) return matrix(name, shape);
    const quantized = () => readQuantizedTable(checkpoint, architecture, config, scheme, name);
    return {
      shape,
      type: "codes",
      values: () => {
        const stored = quantized();
        return dequantized(stored.codes, shape[1], stored);
      },
      halves: () => undefined,
      quantized,
    };
  };
  const projection = (name: string | undefined, shape: readonly [number, number]) =>
    embeddingSize === undefined || name === undefined ? undefined : matrix(name, shape);
  const tied = config.tiedEmbeddings || !checkpoint.tensors.has(names.lmHead);
  return {
    embedding: table(names.embedding, [vocabSize, width]),
    head: tied ? undefined : table(names.lmHead, [vocabSize, width]),
    projectIn: projection(names.projectIn, [hiddenSize, width]),
    projectOut: projection(names.projectOut, [width, hiddenSize]),
    positions: learnedPositions(),
    side: side(),
    finalNorm: finalNorm(),
    embeddingScale,
    logitSoftcap,
  };

  function learnedPositions(): EndLayerSource["positions"] {
    const { positions, maxPositions } = config;
    if (positions.kind !== "learned" || names.positions === undefined) return undefined;
    const { offset } = positions;
    const rows = maxPositions + offset;
    return { rows, offset, data: readTensor(checkpoint, names.positions, [rows, hiddenSize]).data };
  }

  function side(): EndLayerSource["side"] {
    if (!config.side || names.side === undefined) return undefined;
    const { rows, width: cols, scale } = config.side;
    return { table: matrix(names.side, [rows, cols]), scale };
  }

  function finalNorm(): EndLayerSource["finalNorm"] {
    const final = readFinalNorm(checkpoint, architecture, config);
    return final && { ...config.norm, path: names.finalNorm.replace(/\.weight$/, ""), ...final };
  }
}
