/** Small GGUF models for the tests: two layers, hidden size 64, vocabulary of eight tokens. */

import { float32Bytes, ggufBytes, type GgufField, type GgufTensorSpec } from "./file-bytes.js";

export const HIDDEN = 64;
export const HEADS = 4;
export const KV_HEADS = 2;
export const LAYERS = 2;

export const tokenizerFields: Record<string, GgufField> = {
  "tokenizer.ggml.model": { string: "gpt2" },
  "tokenizer.ggml.pre": { string: "gpt-2" },
  "tokenizer.ggml.tokens": { strings: ["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "<|im_end|>"] },
  "tokenizer.ggml.token_type": { i32s: [3, 3, 1, 1, 1, 1, 1, 3] },
  "tokenizer.ggml.merges": { strings: ["a b"] },
  "tokenizer.ggml.bos_token_id": { u32: 0 },
  "tokenizer.ggml.eos_token_id": { u32: 1 },
};

export function modelFields(architecture: string): Record<string, GgufField> {
  const key = (name: string): string => `${architecture}.${name}`;
  return {
    "general.architecture": { string: architecture },
    [key("block_count")]: { u32: LAYERS },
    [key("context_length")]: { u32: 4096 },
    [key("embedding_length")]: { u32: HIDDEN },
    [key("feed_forward_length")]: { u32: 96 },
    [key("attention.head_count")]: { u32: HEADS },
    [key("attention.head_count_kv")]: { u32: KV_HEADS },
    [key("attention.layer_norm_rms_epsilon")]: { f32: 1e-5 },
    [key("rope.freq_base")]: { f32: 1e6 },
    ...tokenizerFields,
  };
}

/** A float32 matrix whose element at (row, column) is row + column / 1000. */
export function matrix(name: string, rows: number, columns: number): GgufTensorSpec {
  const values = Float32Array.from(
    { length: rows * columns },
    (_, i) => Math.floor(i / columns) + (i % columns) / 1000,
  );
  return { name, extents: [columns, rows], type: 0, data: float32Bytes(values) };
}

export function vector(name: string, values: ArrayLike<number>): GgufTensorSpec {
  return { name, extents: [values.length], type: 0, data: float32Bytes(values) };
}

export function modelTensors(): GgufTensorSpec[] {
  const blocks = Array.from({ length: LAYERS }, (_, n) => [
    vector(`blk.${n}.attn_norm.weight`, new Float32Array(HIDDEN).fill(1)),
    matrix(`blk.${n}.attn_q.weight`, HIDDEN, HIDDEN),
    matrix(`blk.${n}.attn_k.weight`, HIDDEN / 2, HIDDEN),
    matrix(`blk.${n}.attn_v.weight`, HIDDEN / 2, HIDDEN),
    matrix(`blk.${n}.attn_output.weight`, HIDDEN, HIDDEN),
    vector(`blk.${n}.ffn_norm.weight`, new Float32Array(HIDDEN).fill(1)),
    matrix(`blk.${n}.ffn_gate.weight`, 96, HIDDEN),
    matrix(`blk.${n}.ffn_up.weight`, 96, HIDDEN),
    matrix(`blk.${n}.ffn_down.weight`, HIDDEN, 96),
  ]);
  return [
    matrix("token_embd.weight", 8, HIDDEN),
    vector("output_norm.weight", new Float32Array(HIDDEN).fill(1)),
    ...blocks.flat(),
  ];
}

export function modelBytes(
  architecture = "llama",
  fields: Record<string, GgufField> = {},
  tensors: readonly GgufTensorSpec[] = [],
): Uint8Array {
  return ggufBytes({ ...modelFields(architecture), ...fields }, [...modelTensors(), ...tensors]);
}
