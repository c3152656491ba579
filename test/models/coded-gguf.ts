/** Small GGUF models whose weights are random codes of any block type. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { BLOCK_FORMATS, type BlockType } from "../../src/checkpoint/gguf-blocks.js";
import { Random } from "../../src/common/random.js";
import { ggufBytes, type GgufTensorSpec } from "../checkpoint/file-bytes.js";
import { modelFields, vector } from "../checkpoint/gguf-models.js";

export const WIDTH = 256;
const HEADS = 4;
const KV = 128;
const CODES: Readonly<Record<BlockType, number>> = {
  ...{ Q4_0: 2, Q4_1: 3, Q5_0: 6, Q5_1: 7 },
  ...{ Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14, MXFP4: 39 },
};
/** Where halves lie in a block: scales and offsets, which must be sensible numbers. */
const HALVES: Readonly<Record<BlockType, readonly number[]>> = {
  ...{ Q4_0: [0], Q4_1: [0, 2], Q5_0: [0], Q5_1: [0, 2] },
  ...{ Q8_0: [0], Q4_K: [0, 2], Q5_K: [0, 2], Q6_K: [208], MXFP4: [] },
};

/** Random blocks: scales of 2^−11 … 2^−10 (of K-quants 2^−17, for they multiply), either sign for offsets. */
function blocks(type: BlockType, name: string, rows: number, random: Random): GgufTensorSpec {
  const { blockBytes } = BLOCK_FORMATS[type];
  const { blockElements } = BLOCK_FORMATS[type];
  const data = Uint8Array.from({ length: (rows * WIDTH * blockBytes) / blockElements }, () =>
    random.below(256),
  );
  const view = new DataView(data.buffer);
  const exponent = type === "Q8_0" ? 2 : type.endsWith("K") ? 3 : 6;
  for (let at = 0; at < data.length; at += blockBytes) {
    if (type === "MXFP4") data[at] = 118 + (data[at] & 3);
    for (const [i, half] of HALVES[type].entries())
      view.setUint16(at + half, (i << 15) | (exponent << 10) | random.below(1024), true);
  }
  return { name, extents: [WIDTH, rows], type: CODES[type], data };
}

/** A GGUF file of one block whose matrices have these types in turn; returns its path. */
export function writeCodedModel(
  directory: string,
  types: readonly BlockType[],
  embedding: BlockType,
  more?: GgufTensorSpec,
): string {
  const random = new Random(types.length);
  const ones = new Float32Array(WIDTH).fill(1);
  const shapes = [
    ["attn_q", WIDTH],
    ["attn_k", KV],
    ["attn_v", KV],
    ["attn_output", WIDTH],
    ["ffn_gate", WIDTH],
    ["ffn_up", WIDTH],
    ["ffn_down", WIDTH],
  ] as const;
  const matrices = shapes.map(([name, rows], i) =>
    blocks(types[i % types.length], `blk.0.${name}.weight`, rows, random),
  );
  const path = join(directory, `${[...types, embedding, more?.name].join("-")}.gguf`);
  const fields = {
    ...modelFields("llama"),
    "llama.block_count": { u32: 1 },
    "llama.embedding_length": { u32: WIDTH },
    "llama.feed_forward_length": { u32: WIDTH },
    "llama.attention.head_count": { u32: HEADS },
  };
  const tensors = [
    blocks(embedding, "token_embd.weight", 8, random),
    vector("output_norm.weight", ones),
    vector("blk.0.attn_norm.weight", ones),
    vector("blk.0.ffn_norm.weight", ones),
    ...matrices.map((each) => (each.name === more?.name ? more : each)),
  ];
  writeFileSync(path, ggufBytes(fields, tensors));
  return path;
}

export const TYPES = Object.keys(CODES) as BlockType[];
export const MIXED: readonly BlockType[] = ["Q4_K", "Q5_K", "Q6_K", "Q4_1", "Q8_0", "Q5_0", "Q4_0"];
