/** A model as a GGUF file: metadata, and its tensors under llama.cpp's names and in its row order. */
import { basename } from "node:path";
import type { HostNorm } from "../../backend/contract/packed.js";
import type { Checkpoint, StoredType } from "../../checkpoint/checkpoint.js";
import { ggufArchitecture, ggufName, rotateHalfRow } from "../../checkpoint/gguf-config.js";
import { GgufMetadata } from "../../checkpoint/gguf-metadata.js";
import { plainValues, writeGguf, type GgufEntry } from "../../checkpoint/gguf-writer.js";
import { floatsToHalfBytes } from "../../common/half.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { modelFields, ropeFactors, type Fields } from "./fields.js";
import { tokenizerFields } from "./tokenizer.js";

/** A block as it is written; its linears' bytes are in the file's type, rows in Hugging Face's order. */
export interface GgufBlock {
  readonly norms: Readonly<Record<string, HostNorm>>;
  readonly linears: Readonly<
    Record<string, { readonly bytes: Uint8Array; readonly bias?: ArrayLike<number> }>
  >;
}

export interface GgufModel {
  /** Where it came from, for its name and in messages. */
  readonly path: string;
  readonly checkpoint: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  /** `general.file_type`. */
  readonly fileType: number;
  /** Types of linears by block and role, and of embedding and head by name. */
  readonly linearType: (layer: number, role: string) => StoredType;
  readonly tableType: (name: string) => StoredType;
  /** Paths of linears and norms with a bias. */
  readonly biased: (layer: number) => ReadonlySet<string>;
  /** Blocks are asked for in order; one is kept until the next. */
  readonly block: (layer: number) => GgufBlock | Promise<GgufBlock>;
  readonly table: (name: string) => Uint8Array;
  /** What made the file, in words. */
  readonly description: string;
  readonly signal?: AbortSignal;
}

/** Writes the file. @throws PlanishError when GGUF has no place for something of the model. */
export async function writeGgufModel(model: GgufModel, out: string): Promise<{ bytes: number }> {
  const { fields, entries } = describeGgufModel(model);
  return writeGguf(out, fields, entries, { signal: model.signal });
}

/** Metadata and tensors; nothing large is read before a tensor's turn. */
export function describeGgufModel(model: GgufModel): {
  fields: Fields;
  entries: GgufEntry[];
} {
  const { config, checkpoint, architecture, path } = model;
  const { names } = architecture;
  const hasOutput = !config.tiedEmbeddings;
  const hasAttentionBias = model.biased(0).has("self_attn.q_proj");
  const fields = modelFields(config, path, { hasOutput, hasAttentionBias });
  fields.set("general.name", { type: "string", value: basename(path).replace(/\.gguf$/i, "") });
  fields.set("general.description", { type: "string", value: model.description });
  fields.set("general.file_type", { type: "u32", value: model.fileType });
  fields.set("general.quantization_version", { type: "u32", value: 2 });
  for (const [key, field] of tokenizerFields(checkpoint, config.vocabSize)) fields.set(key, field);

  const gguf = ggufArchitecture(new GgufMetadata(plainValues(fields), path));
  const nameOf = (name: string): string => {
    const found = ggufName(name, gguf.names);
    if (found === undefined) throw new Error(`${name} has no name in GGUF`);
    return found;
  };
  const entries: GgufEntry[] = [];
  const table = (name: string): void => {
    const shape = [config.vocabSize, config.hiddenSize];
    const data = (): Uint8Array => model.table(name);
    entries.push({ name: nameOf(name), type: model.tableType(name), shape, data });
  };
  table(names.embedding);
  let last: { layer: number; block: GgufBlock } | undefined;
  const block = async (layer: number): Promise<GgufBlock> => {
    if (last?.layer !== layer) last = { layer, block: await model.block(layer) };
    return last.block;
  };
  for (let layer = 0; layer < config.numLayers; layer++) {
    const program = blockProgram(config, layer);
    const biased = model.biased(layer);
    const prefix = names.blockPrefix(layer);
    for (const [role, { path: norm, width }] of Object.entries(program.norms))
      entries.push(
        floats(nameOf(`${prefix}${norm}.weight`), [width], async () => {
          return (await block(layer)).norms[role].gain.data;
        }),
      );
    for (const [role, { path: linear, shape }] of Object.entries(program.linears)) {
      const turned = gguf.permuted && /\.[qk]_proj$/.test(linear);
      const rows = (bytes: Uint8Array): Uint8Array =>
        turned ? inFileOrder(bytes, shape[0], config.headDim) : bytes;
      entries.push({
        name: nameOf(`${prefix}${linear}.weight`),
        type: model.linearType(layer, role),
        shape,
        data: async () => rows((await block(layer)).linears[role].bytes),
      });
      if (!biased.has(linear)) continue;
      const name = nameOf(`${prefix}${linear}.bias`);
      entries.push(
        floats(name, [shape[0]], async () => {
          const values = Float32Array.from((await block(layer)).linears[role].bias ?? []);
          return new Float32Array(rows(new Uint8Array(values.buffer)).buffer);
        }),
      );
    }
  }
  const added = gguf.addedToGains ?? 0;
  entries.push(
    floats(nameOf(names.finalNorm), [config.hiddenSize], () =>
      checkpoint.read(names.finalNorm).map((gain) => gain + added),
    ),
  );
  if (hasOutput) table(names.lmHead);
  const factors = ropeFactors(config);
  if (factors) entries.push(floats("rope_freqs.weight", [factors.length], () => factors));
  return { fields, entries };
}

/** A vector, which llama.cpp wants in 32 bits. */
function floats(
  name: string,
  shape: readonly number[],
  values: () => ArrayLike<number> | Promise<ArrayLike<number>>,
): GgufEntry {
  const data = async (): Promise<Uint8Array> =>
    new Uint8Array(Float32Array.from(await values()).buffer);
  return { name, type: "F32", shape, data };
}

/** Rows as llama.cpp's rotary embedding wants them: the two halves of each head interleaved. */
function inFileOrder(bytes: Uint8Array, rows: number, headDim: number): Uint8Array {
  const width = bytes.byteLength / rows;
  const out = new Uint8Array(bytes.byteLength);
  for (let row = 0; row < rows; row++)
    out.set(bytes.subarray(row * width, (row + 1) * width), rotateHalfRow(row, headDim) * width);
  return out;
}

/** A tensor of a checkpoint as 16-bit floats. */
export function asHalves(checkpoint: Checkpoint, name: string): Uint8Array {
  return floatsToHalfBytes(checkpoint.read(name), name);
}
