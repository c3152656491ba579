/**
 * The artifact: a directory with the packed model, its config and tokenizer as they came, and `quantization.json`.
 * Written under a temporary name and renamed, so a directory with the final name is complete (DESIGN, The artifact).
 */
import type { PackedBlock, QuantizedMatrix } from "../../backend/contract/packed.js";
import { existsSync, readdirSync, renameSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { recordFile } from "../../checkpoint/file-record.js";
import { areHalves, floatsToHalfBytes } from "../../common/half.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
} from "../../checkpoint/safetensors.js";
import { PlanishError } from "../../common/errors.js";
import { makeWorkDirectory, writeAtomically } from "../../common/temporary.js";
import { finiteJson } from "../../common/ratio.js";
import { blockProgram, blockPrograms, parseModelConfig } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { storedMatrix } from "../../models/kept.js";
import { readTensor } from "../../models/weights.js";
import { LanguageModel, loadEndLayers } from "../../models/language-model.js";
import {
  checkTensors,
  damaged,
  endLayerTensors,
  gridOfTable,
  tableOffsetName,
  tableScaleName,
  valueProblem,
  type TensorDescription,
} from "./tensors.js";
import { artifactProblems, weightsProblem } from "./consistency.js";
import { roundTable, tableReader } from "./tables.js";
import { checkGroups, type Grid } from "../grids/groups.js";
import { ClipCounter } from "../block/clip-counts.js";
import { packedLayer } from "../block/packed-block.js";
import type { ParameterValues } from "../schema/parameters.js";
import { readPackedBlock, toBytes } from "./block-tensors.js";
import {
  parseQuantizationInfo,
  QUANTIZATION_FILE,
  readQuantizationInfo,
  schemeOf,
  type QuantizationInfo,
} from "./quantization-info.js";
import { schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import { writeParameters } from "./simulated-model.js";

export {
  isArtifact,
  QUANTIZATION_FILE,
  readQuantizationInfo,
  type QuantizationInfo,
} from "./quantization-info.js";

/** Files up to this size are hashed whenever an artifact is opened; larger ones by `planish inspect --verify`. */
const HASHED_ON_OPENING = 1 << 24;

/** An artifact whose tensors are those that its configuration, scheme and parameters imply. */
export interface OpenArtifact extends Disposable {
  readonly info: QuantizationInfo;
  readonly scheme: Scheme;
  readonly checkpoint: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  /** Reads a block. @throws PlanishError when it holds values that cannot be. */
  block(layer: number): PackedBlock;
}

/** Opens an artifact; the caller disposes it. @throws PlanishError when it is damaged. */
export function openArtifact(path: string): OpenArtifact {
  const info = readQuantizationInfo(path);
  const [problem] = artifactProblems(path, info, HASHED_ON_OPENING);
  if (problem !== undefined) throw damaged(path, problem);
  const scheme = schemeOf(info);
  const checkpoint = openCheckpoint(path);
  try {
    const { architecture, config } = parseModelConfig(checkpoint.config);
    checkGroups(blockPrograms(config), config, scheme);
    const contradiction = weightsProblem(info, checkpoint.metadata);
    if (contradiction !== undefined) throw damaged(path, contradiction);
    const parameters = info.layers.map((layer) => layer.parameters);
    checkTensors(checkpoint, architecture, config, scheme, parameters);
    return {
      info,
      scheme,
      checkpoint,
      architecture,
      config,
      block: (layer) =>
        readPackedBlock(checkpoint, architecture, config, scheme, layer, parameters[layer]),
      [Symbol.dispose]: () => checkpoint[Symbol.dispose](),
    };
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

/** Loads an artifact to run with the simulated arithmetic of a backend. */
export function loadArtifact(
  backend: Backend,
  path: string,
): {
  model: LanguageModel;
  info: QuantizationInfo;
  checkpoint: Checkpoint;
  /** Counts from the moment of loading; empty where there are no static grids. */
  clipping: ClipCounter;
} {
  const artifact = openArtifact(path);
  const { info, scheme, checkpoint, architecture, config } = artifact;
  try {
    const clipping = new ClipCounter();
    const layers = Array.from({ length: config.numLayers }, (_, layer) => {
      const prefix = architecture.names.blockPrefix(layer);
      const program = blockProgram(config, layer);
      const own = schemeOfBlock(scheme, layer);
      return packedLayer(backend, program, own, artifact.block(layer), (linear, clipped, n) => {
        clipping.add(prefix + linear, clipped, n);
      });
    });
    const readTable = tableReader(checkpoint, architecture, config, scheme);
    const endLayers = loadEndLayers(backend, checkpoint, architecture, config, readTable);
    return {
      model: new LanguageModel(backend, architecture, config, endLayers, layers),
      info,
      checkpoint,
      clipping,
    };
  } catch (error) {
    artifact[Symbol.dispose]();
    throw error;
  }
}

export interface WriteArtifactOptions {
  readonly out: string;
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly info: QuantizationInfo;
  /** One safetensors file of packed tensors per block. */
  readonly blockFiles: readonly string[];
  /** Learned parameters to keep beside the packed tensors, by block. */
  readonly keptParameters?: readonly ParameterValues[];
  readonly signal?: AbortSignal;
}

/** Assembles the directory; tensors stream from the block files and the source, one at a time. Returns its bytes. */
export async function writeArtifact(options: WriteArtifactOptions): Promise<{ bytes: number }> {
  const { out, source, info } = options;
  refuseExisting(out);
  using work = makeWorkDirectory(resolve(out));
  const partial = work.content;
  const stores = options.blockFiles.map((file) => openSafetensors(file).store);
  try {
    const entries: TensorEntry[] = stores.flatMap((store) =>
      [...store.tensors.values()].map((t) => ({
        name: t.name,
        type: t.type as TensorEntry["type"],
        shape: t.shape,
        data: () => store.readBytes(t.name),
      })),
    );
    entries.push(...endLayerEntries(options));
    const written = await writeSafetensors(
      join(partial, "model.safetensors"),
      entries,
      { format: "pt", quantization: JSON.stringify({ method: info.method, scheme: info.scheme }) },
      { signal: options.signal },
    );
    writeAtomically(join(partial, "config.json"), json(source.config));
    if (source.generationConfig)
      writeAtomically(join(partial, "generation_config.json"), json(source.generationConfig));
    const tokenizer = source.tokenizerFiles();
    writeAtomically(join(partial, "tokenizer.json"), JSON.stringify(tokenizer.tokenizer));
    writeAtomically(join(partial, "tokenizer_config.json"), json(tokenizer.config));
    if (options.keptParameters) await writeParameters(partial, options.keptParameters);
    const files = Object.fromEntries(
      readdirSync(partial)
        .sort()
        .map((name) => [name, recordFile(join(partial, name))]),
    );
    const text = `${finiteJson({ ...info, files }, 2)}\n`;
    // What no reader would take must not get the final name.
    parseQuantizationInfo(JSON.parse(text), `${QUANTIZATION_FILE} of this run`);
    writeAtomically(join(partial, QUANTIZATION_FILE), text);
    refuseExisting(out);
    renameSync(partial, resolve(out));
    return { bytes: written.dataBytes };
  } finally {
    for (const store of stores) store[Symbol.dispose]();
  }
}

export function refuseExisting(out: string): void {
  if (existsSync(out))
    throw new PlanishError(
      `output directory ${out} exists already; choose another --out, or remove it first`,
    );
}

/** What surrounds the blocks: 16-bit, as stored when the source stores 16 bits; tables rounded where the scheme says. */
function endLayerEntries(options: WriteArtifactOptions): TensorEntry[] {
  const { source, architecture, config, scheme } = options;
  const { lmHead } = architecture.names;
  const described = endLayerTensors(architecture, config, scheme);
  return described.flatMap((tensor): TensorEntry[] => {
    const { name, types, values } = tensor;
    const stored = source.tensors.get(name);
    if (!stored || (name === lmHead && config.tiedEmbeddings)) return [];
    const coded = described.some((each) => each.name === tableScaleName(name));
    const grid = coded ? gridOfTable(scheme, name) : undefined;
    if (grid) return tableEntries(options, tensor, described, grid);
    const kept = types.find((type) => type === stored.type);
    if (kept)
      return [{ name, type: kept, shape: stored.shape, data: () => source.readBytes(name) }];
    const halves = (): Uint8Array => {
      const data = source.read(name);
      const problem = valueProblem(name, values, data);
      if (problem !== undefined) throw new PlanishError(`${source.path}: ${problem}`);
      return floatsToHalfBytes(data, name);
    };
    return [{ name, type: types[0], shape: stored.shape, data: halves }];
  });
}

/** A table's codes and their steps; what is rounded for the one is kept for the other. */
function tableEntries(
  { source, config, scheme }: WriteArtifactOptions,
  codes: TensorDescription,
  described: readonly TensorDescription[],
  grid: Grid,
): TensorEntry[] {
  const shape = [config.vocabSize, config.embeddingSize ?? config.hiddenSize] as const;
  let found: QuantizedMatrix | undefined;
  const table = (): QuantizedMatrix =>
    (found ??= scheme.tables
      ? storedMatrix(source, codes.name, shape)
      : roundTable(readTensor(source, codes.name, shape).data, shape[1], grid));
  const steps = (name: string, part: "scale" | "offset"): TensorEntry[] => {
    const tensor = described.find((each) => each.name === name);
    if (!tensor) return [];
    const numbers = (): Float32Array => table()[part] ?? new Float32Array();
    // The header says the type before anything is written.
    const wide = scheme.tables !== undefined && !areHalves(numbers());
    return [entryOf({ ...tensor, types: [wide ? "F32" : "F16"] }, numbers)];
  };
  return [
    entryOf(codes, () => table().codes),
    ...steps(tableScaleName(codes.name), "scale"),
    ...steps(tableOffsetName(codes.name), "offset"),
  ];
}

function entryOf(described: TensorDescription, numbers: () => ArrayLike<number>): TensorEntry {
  return {
    name: described.name,
    type: described.types[0],
    shape: described.shape,
    data: () => toBytes(described, numbers()),
  };
}

function json(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
