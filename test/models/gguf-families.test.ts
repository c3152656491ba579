/**
 * GGUF files of further families, written by PyPI's gguf (test/fixtures/gguf/make.py): the logits of the checkpoints that they
 * were made from, as transformers gives them.
 */
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { toByteCharacters } from "../../src/checkpoint/tokenizer/bytes.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { ggufBytes } from "../checkpoint/file-bytes.js";
import { temporaryDirectory, writeBytes } from "../checkpoint/files.js";
import { modelFields, modelTensors } from "../checkpoint/gguf-models.js";

const FIXTURES = join(packageRoot, "test/fixtures");
const files = readdirSync(join(FIXTURES, "gguf")).flatMap((file) =>
  file.endsWith(".gguf") ? [file.replace(/\.gguf$/, "")] : [],
);

/**
 * What the fixtures have otherwise than every published model, and files do not tell: there the original is read with what
 * they all have.
 */
const UNTOLD: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  starcoder2: { sliding_window: null },
  "gpt-oss": { swiglu_limit: 7 },
  "deepseek-v3-noqlora": { mscale: 0.7 },
};

/** An original with its configuration changed where a file does not tell it, whichever object of it has the key. */
function original(name: string): string {
  const from = join(FIXTURES, "architectures", name);
  const change = UNTOLD[name];
  if (!change) return from;
  const target = temporaryDirectory();
  copyFileSync(join(from, "model.safetensors"), join(target, "model.safetensors"));
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8"), (key, value) =>
    Object.hasOwn(change, key) ? change[key] : (value as unknown),
  ) as object;
  writeFileSync(join(target, "config.json"), JSON.stringify(config));
  return target;
}

function logits(path: string, ids: Int32Array): Float32Array {
  using backend = createCpuBackend();
  using checkpoint = openCheckpoint(path);
  using model = LanguageModel.load(backend, checkpoint);
  using g = new Graph(backend);
  return Float32Array.from(g.read(model.logits(g, model.hidden(g, ids))));
}

describe.each(files)("%s", (name) => {
  it("gives the original's logits to 1e-4 of the largest", () => {
    using file = openSafetensors(join(FIXTURES, "architectures", name, "logits.safetensors")).store;
    const ids = new Int32Array(file.readBytes("ids").slice().buffer);
    const expected = UNTOLD[name] ? logits(original(name), ids) : file.read("logits");
    const own = logits(join(FIXTURES, "gguf", `${name}.gguf`), ids);
    const most = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const far = expected.reduce((a, b, i) => Math.max(a, Math.abs(own[i] - b)), 0);
    expect(far / most).toBeLessThan(1e-4);
  });
});

it("experts in MXFP4 are taken out of their stack block by block", () => {
  // 2 experts of 32 × 64: every block its expert's exponent, and codes that count up.
  const blocks = Array.from({ length: 2 * 32 * 2 }, (_, block) => [
    127 + (block >= 64 ? 1 : 0),
    ...Array.from({ length: 16 }, (_, i) => i | (((i + 3) & 15) << 4)),
  ]);
  const stack = {
    name: "blk.0.ffn_gate_exps.weight",
    extents: [64, 32, 2],
    type: 39,
    data: Uint8Array.from(blocks.flat()),
  };
  const fields = {
    ...modelFields("qwen3moe"),
    "qwen3moe.expert_count": { u32: 2 },
    "qwen3moe.expert_used_count": { u32: 1 },
    "qwen3moe.expert_feed_forward_length": { u32: 32 },
  };
  const path = writeBytes(
    temporaryDirectory(),
    "experts.gguf",
    ggufBytes(fields, [...modelTensors(), stack]),
  );
  using checkpoint = openCheckpoint(path);
  const read = (expert: number) => [
    ...checkpoint.read(`model.layers.0.mlp.experts.${expert}.gate_proj.weight`),
  ];
  const values = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const value = (code: number) => (code & 8 ? -values[code & 7] : values[code]);
  const codes = [
    ...Array.from({ length: 16 }, (_, i) => value(i)),
    ...Array.from({ length: 16 }, (_, i) => value((i + 3) & 15)),
  ];
  expect(read(0).slice(0, 32)).toEqual(codes);
  expect(read(1).slice(-32)).toEqual(codes.map((each) => 2 * each));
  expect(checkpoint.tensors.get("model.layers.0.mlp.experts.1.gate_proj.weight")?.shape).toEqual([
    32, 64,
  ]);
});

it.each([
  ["starcoder", "don't add  12", ["don", "'t", " add", " ", " ", "1", "2"]],
  ["refact", "a1 b", ["a", "1", " b"]],
  ["command-r", "x=10", ["x", "=", "1", "0"]],
  ["dbrx", "I'LL 12345", ["I", "'LL", " ", "123", "45"]],
  ["glm4", "ab12", ["ab", "12"]],
  ["stablelm2", "ab12", ["ab", "1", "2"]],
  ["deepseek-v3", "中文abc 1234!x", ["中文", "abc", " ", "123", "4", "!x"]],
])("pre-tokenizer %s splits %j", (pre, text, words) => {
  const fields = { ...modelFields("llama"), "tokenizer.ggml.pre": { string: pre } };
  const path = writeBytes(temporaryDirectory(), "model.gguf", ggufBytes(fields, modelTensors()));
  using checkpoint = openCheckpoint(path);
  const files = checkpoint.tokenizerFiles();
  // Words that are in the vocabulary whole are not built up by merges: what comes out is how the text was split.
  const vocabulary = [...new Set(words.map(toByteCharacters))];
  const model = {
    ...(files.tokenizer.model as object),
    vocab: Object.fromEntries(vocabulary.map((word, id) => [word, id])),
    merges: [],
    ignore_merges: true,
  };
  const tokenizer = { ...files.tokenizer, added_tokens: [], model };
  const own = loadTokenizer({ ...checkpoint, tokenizerFiles: () => ({ tokenizer, config: {} }) });
  expect([...own.encode(text)].map((id) => vocabulary[id])).toEqual(words.map(toByteCharacters));
});
