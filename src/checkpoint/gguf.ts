/**
 * GGUF files as checkpoints: container (`gguf-parser.ts`), block types (`gguf-blocks.ts`), configuration and
 * names (`gguf-config.ts`) and tokenizer (`gguf-tokenizer.ts`) put together.
 */

import { PlanishError } from "../common/errors.js";
import type { Checkpoint, TokenizerFiles } from "./checkpoint.js";
import type { FileReader } from "./file-reader.js";
import { BLOCK_FORMATS } from "./gguf-blocks.js";
import { storedCodes, storedGrid } from "./gguf-codes.js";
import {
  ggufArchitecture,
  ggufHeadDim,
  huggingFaceName,
  rebuildConfig,
  rotateHalfRow,
} from "./gguf-config.js";
import { GgufMetadata } from "./gguf-metadata.js";
import type { GgufTensor } from "./gguf-parser.js";
import { openGgufParts, type GgufParts } from "./gguf-parts.js";
import { ggufEosTokenIds, rebuildTokenizer } from "./gguf-tokenizer.js";
import { quoteName } from "./safetensors-header.js";
import { TensorStore, type LocatedTensor } from "./tensor-store.js";

const ROPE_FACTORS = "rope_freqs.weight";
const SHORT_FACTORS = "rope_factors_short.weight";
const LONG_FACTORS = "rope_factors_long.weight";
const ALONE = [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS];
const GAIN = /norm\.weight$/;
const PERMUTED = /\.self_attn\.[qk]_proj\.(weight|bias)$/;

/**
 * Opens a GGUF file of a supported architecture. Tensors go by Hugging Face's names, query and key rows are
 * in Hugging Face's order (for stored bytes as well). Throws PlanishError on damaged files and on what the
 * file has but Planish does not read.
 */
export function openGguf(path: string): Checkpoint {
  const opened = openGgufParts(path);
  try {
    return build(opened);
  } catch (error) {
    for (const { reader } of opened.parts) reader.close();
    throw error;
  }
}

function build({ path, parts, ...file }: GgufParts): Checkpoint {
  const metadata = new GgufMetadata(file.metadata, path);
  const architecture = ggufArchitecture(metadata);
  const headDim = ggufHeadDim(metadata, architecture.name);
  const located = new Map<string, LocatedTensor>();
  const alone = new Map<string, Float32Array>();
  const names = new Set(parts.flatMap(({ tensors }) => tensors.map(({ name }) => name)));
  const all = parts.flatMap(({ reader, tensors }) => tensors.map((tensor) => ({ reader, tensor })));
  for (const { reader, tensor: stored } of all) {
    if (ALONE.includes(stored.name)) {
      alone.set(stored.name, readAlone(stored, reader));
      continue;
    }
    const name = huggingFaceName(stored.name, architecture.names);
    if (name === undefined) {
      throw new PlanishError(
        `${path}: tensor ${quoteName(stored.name)} has no place in architecture ${architecture.name}`,
      );
    }
    const { position, ...tensor } = stored;
    if (name.includes(ENTRY)) {
      for (const entry of entriesOf(stored, name, reader.path)) {
        const { position: at, ...own } = entry;
        located.set(own.name, { tensor: own, reader, position: at });
      }
      continue;
    }
    const permuted = architecture.permuted && PERMUTED.test(name);
    if (permuted && (tensor.shape[0] ?? 0) % headDim !== 0) {
      throw new PlanishError(
        `${path}: tensor ${quoteName(stored.name)}: ${tensor.shape[0]} rows are no whole number of heads of ${headDim}`,
      );
    }
    located.set(name, {
      tensor: { ...tensor, shape: shapeOf(stored), name },
      reader,
      position,
      rowOrder: permuted ? (row) => rotateHalfRow(row, headDim) : undefined,
    });
  }
  const embedding = located.get("model.embed_tokens.weight")?.tensor;
  if (embedding?.shape.length !== 2) {
    throw new PlanishError(`${path}: token_embd.weight is missing or no matrix`);
  }
  const config = rebuildConfig(metadata, {
    vocabSize: embedding.shape[0],
    hasOutput: located.has("lm_head.weight"),
    hasAttentionBias: located.has("model.layers.0.self_attn.q_proj.bias"),
    ropeFactors: alone.get(ROPE_FACTORS),
    shortFactors: alone.get(SHORT_FACTORS),
    longFactors: alone.get(LONG_FACTORS),
    has: (name) => names.has(name),
  });
  const store = new TensorStore(
    path,
    located,
    parts.map(({ reader }) => reader),
    BLOCK_FORMATS,
  );
  let tokenizer: TokenizerFiles | undefined;
  return {
    path,
    format: "gguf",
    config,
    generationConfig: {
      bos_token_id: config["bos_token_id"],
      eos_token_id: ggufEosTokenIds(metadata),
    },
    tensors: store.tensors,
    read: (name) => {
      const values = store.read(name);
      const { addedToGains = 0 } = architecture;
      return addedToGains !== 0 && GAIN.test(name)
        ? values.map((gain) => gain - addedToGains)
        : values;
    },
    readBytes: (name) => store.readBytes(name),
    grid: (name) => storedGrid(store.tensors.get(name)?.type ?? ""),
    codes: (name) => {
      const tensor = store.tensors.get(name);
      return tensor && storedGrid(tensor.type) && storedCodes(tensor, store.readBytes(name));
    },
    tokenizerFiles: () => (tokenizer ??= rebuildTokenizer(metadata)),
    hash: () => store.hash(),
    [Symbol.dispose]: () => store[Symbol.dispose](),
  };
}

/** Stands in a name for the number of an entry of a stack. */
const ENTRY = "{e}";

/** The entries of a stack, each a tensor of its own: they follow one another in the file. */
function entriesOf(stored: GgufTensor, name: string, path: string): GgufTensor[] {
  const [count, ...shape] = stored.shape;
  if (shape.length === 0 || !Number.isInteger(stored.bytes / count))
    throw new PlanishError(
      `${path}: tensor ${quoteName(stored.name)} is [${stored.shape.join(", ")}], and no stack`,
    );
  const bytes = stored.bytes / count;
  return Array.from({ length: count }, (_, entry) => ({
    ...stored,
    name: name.replace(ENTRY, String(entry)),
    shape,
    bytes,
    position: stored.position + entry * bytes,
  }));
}

/** The converter drops axes of one element: a gate of one row comes as its columns. */
function shapeOf({ name, shape }: GgufTensor): readonly number[] {
  return name.endsWith("ffn_gate_inp_shexp.weight") && shape.length === 1 ? [1, ...shape] : shape;
}

/** Reads a tensor of the file that is not one of the checkpoint's. */
function readAlone(stored: GgufTensor, reader: FileReader): Float32Array {
  const { position, ...tensor } = stored;
  const located = new Map([[stored.name, { tensor, reader, position }]]);
  return new TensorStore(reader.path, located, [], BLOCK_FORMATS).read(stored.name);
}
