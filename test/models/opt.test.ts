/**
 * OPT in all its arrangements against a plain statement of the model in loops over float64 numbers: norms before or
 * after, an embedding narrower than the hidden states, no final norm.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";
import { inspectModel } from "../../src/models/inspect.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import {
  OPT_VARIANTS,
  SIZES,
  writeRandomOpt,
  type OptTensors,
  type OptVariant,
} from "./random-opt.js";

type Matrix = number[][];

/** Logits of every position, [time][vocab]: Hugging Face's OPTForCausalLM, written out. */
function plainOpt(tensors: OptTensors, variant: OptVariant, ids: readonly number[]): Matrix {
  const { hidden, heads, layers } = SIZES;
  const data = (name: string) => tensors.get(`model.decoder.${name}`)!.data;
  const row = (name: string, r: number) => {
    const { shape, data: all } = tensors.get(`model.decoder.${name}`)!;
    return Array.from(all.subarray(r * shape[1], (r + 1) * shape[1]));
  };
  const dot = (a: readonly number[], b: readonly number[]) =>
    a.reduce((sum, x, i) => sum + x * b[i], 0);
  const apply = (name: string, x: readonly number[]) =>
    Array.from({ length: tensors.get(`model.decoder.${name}`)!.shape[0] }, (_, r) =>
      dot(row(name, r), x),
    );
  const linear = (name: string, x: readonly number[]) => {
    const bias = data(`${name}.bias`);
    return apply(`${name}.weight`, x).map((y, r) => y + bias[r]);
  };
  const norm = (name: string, x: readonly number[]) => {
    const mean = x.reduce((a, b) => a + b, 0) / hidden;
    const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / hidden;
    const [gain, bias] = [data(`${name}.weight`), data(`${name}.bias`)];
    return x.map((v, i) => ((v - mean) / Math.sqrt(variance + 1e-5)) * gain[i] + bias[i]);
  };
  const plus = (a: Matrix, b: Matrix) => a.map((x, t) => x.map((v, i) => v + b[t][i]));
  const attention = (prefix: string, x: Matrix): Matrix => {
    const size = hidden / heads;
    const [q, k, v] = ["q", "k", "v"].map((p) => x.map((y) => linear(`${prefix}.${p}_proj`, y)));
    return x.map((_, t) => {
      const mixed = Array.from({ length: heads }, (_h, h) => {
        const part = (y: readonly number[]) => y.slice(h * size, (h + 1) * size);
        const scores = Array.from({ length: t + 1 }, (_s, s) =>
          Math.exp(dot(part(q[t]), part(k[s])) / Math.sqrt(size)),
        );
        const total = scores.reduce((a, b) => a + b, 0);
        return Array.from({ length: size }, (_i, i) =>
          scores.reduce((sum, p, s) => sum + (p / total) * v[s][h * size + i], 0),
        );
      });
      return linear(`${prefix}.out_proj`, mixed.flat());
    });
  };

  const projected = variant.word_embed_proj_dim !== hidden;
  let x: Matrix = ids.map((id, t) => {
    const token = row("embed_tokens.weight", id);
    const position = row("embed_positions.weight", t + 2);
    return (projected ? apply("project_in.weight", token) : token).map((v, i) => v + position[i]);
  });
  const first = variant.do_layer_norm_before;
  for (let l = 0; l < layers; l++) {
    const at = `layers.${l}`;
    const normAll = (name: string, m: Matrix) => m.map((y) => norm(`${at}.${name}`, y));
    const mlp = (m: Matrix) =>
      m.map((y) =>
        linear(
          `${at}.fc2`,
          linear(`${at}.fc1`, y).map((v) => Math.max(v, 0)),
        ),
      );
    const attend = (m: Matrix) => attention(`${at}.self_attn`, m);
    if (first) {
      x = plus(x, attend(normAll("self_attn_layer_norm", x)));
      x = plus(x, mlp(normAll("final_layer_norm", x)));
    } else {
      x = normAll("self_attn_layer_norm", plus(x, attend(x)));
      x = normAll("final_layer_norm", plus(x, mlp(x)));
    }
  }
  if (first && !variant._remove_final_layer_norm) x = x.map((y) => norm("final_layer_norm", y));
  if (projected) x = x.map((y) => apply("project_out.weight", y));
  return x.map((y) => apply("embed_tokens.weight", y));
}

const directory = temporaryDirectory();
const backend = createReferenceBackend({ realType: "f64" });
const ids = [3, 17, 0, 30, 8, 8, 21];

describe.each(Object.entries(OPT_VARIANTS))("%s", (name, variant) => {
  const path = join(directory, name.replace(/\W+/g, "-"));
  const written = writeRandomOpt(path, variant, 5);

  it("logits are the plain statement's", async () => {
    const expected = plainOpt(await written, variant, ids).flat();
    using model = LanguageModel.load(backend, openCheckpoint(path));
    using g = new Graph(backend);
    const logits = g.read(model.logits(g, model.hidden(g, Int32Array.from(ids))));
    expect(logits.length).toBe(expected.length);
    for (const [i, x] of expected.entries()) expect(Math.abs(logits[i] - x)).toBeLessThan(1e-10);
  });

  it("token by token through the cache gives the same last logits", async () => {
    const expected = plainOpt(await written, variant, ids)[ids.length - 1];
    using model = LanguageModel.load(backend, openCheckpoint(path));
    using cache = model.cache(ids.length);
    let last = new Float64Array();
    for (const id of ids) {
      using g = new Graph(backend);
      const hidden = model.lastRow(g, model.hidden(g, Int32Array.of(id), { cache }));
      last = Float64Array.from(g.read(model.logits(g, hidden)));
    }
    for (const [i, x] of expected.entries()) expect(Math.abs(last[i] - x)).toBeLessThan(1e-10);
  });

  it("inspect finds every tensor it needs and has a use for every one there is", async () => {
    await written;
    using checkpoint = openCheckpoint(path);
    const { missing, unused } = inspectModel(checkpoint);
    expect({ missing, unused }).toEqual({ missing: [], unused: [] });
  });
});

describe("config.json of the published sizes", () => {
  // hidden, ffn, heads, layers, embedding width: Zhang et al. 2022, table 1, and Hugging Face's files.
  it.each([
    ["125m", 768, 3072, 12, 12, 768],
    ["350m", 1024, 4096, 16, 24, 512],
    ["1.3b", 2048, 8192, 32, 24, 2048],
    ["6.7b", 4096, 16384, 32, 32, 4096],
    ["66b", 9216, 36864, 72, 64, 9216],
  ])("%s", (size, hidden, ffn, heads, layers, width) => {
    const { config } = parseModelConfig({
      model_type: "opt",
      hidden_size: hidden,
      ffn_dim: ffn,
      num_attention_heads: heads,
      num_hidden_layers: layers,
      word_embed_proj_dim: width,
      vocab_size: 50272,
      max_position_embeddings: 2048,
      do_layer_norm_before: size !== "350m",
    });
    expect(config).toMatchObject({
      hiddenSize: hidden,
      headDim: hidden / heads,
      embeddingSize: size === "350m" ? 512 : undefined,
      normPlacement: size === "350m" ? "after" : "before",
      finalNorm: size !== "350m",
    });
  });

  it("norms without weights are refused", () => {
    const config = { model_type: "opt", hidden_size: 8, num_attention_heads: 2 };
    expect(() => parseModelConfig({ ...config, layer_norm_elementwise_affine: false })).toThrow(
      /layer_norm_elementwise_affine/,
    );
  });
});
