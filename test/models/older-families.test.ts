/** GPT-2, BLOOM and Llama 4: settings that the fixtures leave at their defaults, and files without the model's own prefix. */
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { attentionsOf, rotariesOf } from "../../src/backend/contract/program.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { alibiSlopes } from "../../src/models/architectures/bloom.js";
import { blockPrograms, parseModelConfig } from "../../src/models/architectures/index.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";

type Json = Record<string, unknown>;

const folder = (name: string) => join(packageRoot, "test/fixtures/architectures", name);
const configOf = (name: string): Json =>
  JSON.parse(readFileSync(join(folder(name), "config.json"), "utf8")) as Json;
const parse = (name: string, change: Json = {}) =>
  parseModelConfig({ ...configOf(name), ...change }).config;
const scales = (name: string, change: Json) =>
  blockPrograms(parse(name, change)).map((program) => attentionsOf(program)[0].scale);

/** A copy whose tensors lack the prefix that the language model gives them, as most of GPT-2's and BLOOM's files do. */
function bare(name: string): string {
  const target = temporaryDirectory();
  copyFileSync(join(folder(name), "config.json"), join(target, "config.json"));
  const file = readFileSync(join(folder(name), "model.safetensors"));
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + length).toString()) as Json;
  const renamed = Object.fromEntries(
    Object.entries(header).map(([key, value]) => [key.replace(/^transformer\./, ""), value]),
  );
  const text = Buffer.from(JSON.stringify(renamed));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(
    join(target, "model.safetensors"),
    Buffer.concat([size, text, file.subarray(8 + length)]),
  );
  return target;
}

function logits(path: string): readonly number[] {
  using backend = createReferenceBackend({ realType: "f32" });
  using checkpoint = openCheckpoint(path);
  using model = LanguageModel.load(backend, checkpoint);
  using g = new Graph(backend);
  return [...g.read(model.logits(g, model.hidden(g, Int32Array.of(5, 6, 7, 8))))];
}

describe("GPT-2", () => {
  it("scales scores as its three switches say", () => {
    const root = 1 / Math.sqrt(8);
    expect(scales("gpt2", {})).toEqual([root, root, root]);
    expect(scales("gpt2", { scale_attn_weights: false })).toEqual([1, 1, 1]);
    const shrinking = { scale_attn_by_inverse_layer_idx: true };
    expect(scales("gpt2", shrinking)).toEqual([root, root / 2, root / 3]);
    expect(parse("gpt2", { reorder_and_upcast_attn: true })).toEqual(parse("gpt2"));
  });

  it("has its sizes under both names, and refuses two that disagree", () => {
    const { n_embd, n_head, n_layer, n_positions, ...rest } = configOf("gpt2");
    const renamed = {
      ...{ ...rest, hidden_size: n_embd, num_attention_heads: n_head },
      ...{ num_hidden_layers: n_layer, max_position_embeddings: n_positions },
    };
    expect(parseModelConfig(renamed).config).toEqual(parse("gpt2"));
    expect(() => parse("gpt2", { hidden_size: 48 })).toThrow(/n_embd 32 and hidden_size 48/);
    expect(parse("gpt2", { n_inner: 72 }).intermediateSize).toBe(72);
    expect(() => parse("gpt2", { add_cross_attention: true })).toThrow(/add_cross_attention/);
  });

  it("is read from files without the prefix too", () => {
    expect(logits(bare("gpt2"))).toEqual(logits(folder("gpt2")));
  });
});

describe("BLOOM", () => {
  it("has slopes of a geometric sequence, and between its numbers where heads are no power of two", () => {
    expect(alibiSlopes(8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
    // 12 heads: 8 as above, then every second of 16.
    expect(alibiSlopes(12).slice(8)).toEqual([1, 3, 5, 7].map((i) => 2 ** (-i / 2)));
    expect(alibiSlopes(12)).toHaveLength(12);
  });

  it("adds to what the norms give where the config says so", () => {
    const read = (change: Json) =>
      blockPrograms(parse("bloom", change))[1].steps.filter(({ op }) => op === "add");
    const sums = read({ apply_residual_connection_post_layernorm: true });
    expect(sums.map((step) => step.op === "add" && step.a)).toEqual([
      "input_normed",
      "post_normed",
    ]);
    expect(read({}).map((step) => step.op === "add" && step.a)).toEqual(["x", "sum"]);
  });

  it("is read from files without the prefix too", () => {
    expect(logits(bare("bloom"))).toEqual(logits(folder("bloom")));
  });
});

describe("Llama 4", () => {
  it("has queries that grow in layers without positions, if it is tuned", () => {
    const growths = (change: Json) =>
      rotariesOf(blockPrograms(parse("llama4", change))).flatMap(({ growth }) => growth ?? []);
    expect(growths({})).toEqual([{ beta: 0.3, length: 8, first: 1 }]);
    expect(growths({ attn_temperature_tuning: 4 })).toHaveLength(1);
    expect(growths({ attn_temperature_tuning: false })).toEqual([]);
  });

  it("derives chunks, experts' layers and layers without positions where they are not listed", () => {
    const silent = { layer_types: null, moe_layers: null, no_rope_layers: null };
    expect(parse("llama4", silent)).toEqual(parse("llama4"));
    const chunks = (change: Json) => parse("llama4", change).layers?.map(({ chunk }) => chunk);
    expect(chunks({ ...silent, attention_chunk_size: null })).toEqual(Array(4).fill(undefined));
    expect(chunks({})).toEqual([16, 16, 16, undefined]);
    expect(parse("llama4", { moe_layers: [0] }).experts?.dense).toEqual([false, true, true, true]);
  });

  it("has norms of heads in layers with positions, if at all", () => {
    const norms = (change: Json) =>
      blockPrograms(parse("llama4", change)).map(({ norms }) => "q" in norms);
    expect(norms({})).toEqual([true, true, true, false]);
    expect(norms({ use_qk_norm: false })).toEqual([false, false, false, false]);
  });

  it.each<[RegExp, Json]>([
    [/attention_chunk_size is not given/, { attention_chunk_size: null }],
    [/moe_layers must list layers from 0 to 3/, { moe_layers: [4] }],
    [/layer_types must be "chunked_attention" or "full_attention"/, { layer_types: ["mamba"] }],
    [
      /yarn is not supported with use_qk_norm/,
      {
        rope_parameters: {
          ...{ rope_type: "yarn", rope_theta: 500, factor: 4 },
          original_max_position_embeddings: 64,
        },
      },
    ],
    [/router_scale/, { router_scale: 2 }],
  ])("refuses %s", (message, change) => {
    expect(() => parse("llama4", change)).toThrow(message);
  });
});
