import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { evaluateDivergence } from "../../src/evaluate/divergence.js";
import { evaluatePerplexity } from "../../src/evaluate/perplexity.js";
import { runBlock } from "../../src/models/interpret.js";
import { embed, type LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { embeddedModel, logProbabilities } from "./support.js";
import { blockProgram } from "../../src/models/architectures/index.js";

const backend = createReferenceBackend({ realType: "f64" });
const { model: original, tokenizer } = embeddedModel(backend, "tiny-llama");
const { model: rounded } = embeddedModel(backend, "tiny-llama", "w4a4kv4");
const text = "The ship sailed to the north, where the king of the old land had built a city.";
const seqLen = 8;
const tokens = Int32Array.from(tokenizer.encode(text, { addSpecialTokens: false })).slice(0, 17);
const windows = [tokens.slice(0, 8), tokens.slice(8, 16)].map((ids) => Array.from(ids));

/** States after each block, all in one graph: [layer][row][column]. */
function states(model: LanguageModel, ids: readonly number[]): number[][][] {
  const { config, endLayers, layers } = model;
  using g = new Graph(backend);
  let x = embed(g, config, endLayers, Int32Array.from(ids), 1);
  return layers.map(({ weights, hooks }, layer) => {
    x = runBlock(g, blockProgram(config, layer), weights, hooks, x, { layer, batch: 1 });
    const values = Array.from(g.read(x));
    return ids.map((_, t) => values.slice(t * config.hiddenSize, (t + 1) * config.hiddenSize));
  });
}

const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

describe("evaluateDivergence", () => {
  it("equals the definitions written out, window by window", async () => {
    const result = await evaluateDivergence(rounded, original, tokens, { seqLen });
    expect(result).toMatchObject({ windows: 2, seqLen });
    const kl: number[] = [];
    const same: number[] = [];
    for (const ids of windows) {
      const p = logProbabilities(original, ids);
      const q = logProbabilities(rounded, ids);
      for (let t = 0; t + 1 < seqLen; t++) {
        kl.push(p[t].reduce((sum, x, v) => sum + Math.exp(x) * (x - q[t][v]), 0));
        const best = [p, q].map((rows) => rows[t].indexOf(Math.max(...rows[t])));
        same.push(Number(best[0] === best[1]));
      }
    }
    expect(result.kl.value).toBeCloseTo(mean(kl), 9);
    expect(result.kl.value).toBeGreaterThan(0.01);
    const means = [mean(kl.slice(0, 7)), mean(kl.slice(7))];
    expect(result.kl.stderr).toBeCloseTo(Math.abs(means[0] - means[1]) / 2, 9);
    expect(result.topAgreement.value).toBeCloseTo(mean(same), 12);
    expect(result.topAgreement.value).toBeLessThan(1);
  });

  it("gives every block's relative error, each model on its own states", async () => {
    const { blockErrors } = await evaluateDivergence(rounded, original, tokens, { seqLen });
    const errors = windows.map((ids) => {
      const [own, reference] = [states(rounded, ids), states(original, ids)];
      return reference.map((rows, layer) =>
        rows.map((row, t) => {
          const difference = row.map((x, c) => own[layer][t][c] - x);
          return Math.hypot(...difference) / Math.hypot(...row);
        }),
      );
    });
    expect(blockErrors).toHaveLength(original.layers.length);
    for (const [layer, error] of blockErrors!.entries())
      expect(error).toBeCloseTo(mean([...errors[0][layer], ...errors[1][layer]]), 9);
  });

  it("gives the perplexities of both on the same windows", async () => {
    const result = await evaluateDivergence(rounded, original, tokens, { seqLen });
    for (const [model, part] of [
      [rounded, result.model],
      [original, result.reference],
    ] as const) {
      const alone = await evaluatePerplexity(model, tokens, { seqLen });
      expect(part.windowNll).toHaveLength(2);
      expect(part.perplexity / alone.perplexity).toBeCloseTo(1, 9);
    }
  });

  it("finds nothing between a model and itself", async () => {
    const result = await evaluateDivergence(original, original, tokens, { seqLen, limit: 1 });
    expect(result.kl.value).toBeCloseTo(0, 12);
    expect(result.topAgreement).toEqual({ value: 1 });
    expect(result.blockErrors).toEqual(original.layers.map(() => 0));
  });

  it("refuses other vocabularies and other backends", async () => {
    const config = { ...original.config, vocabSize: 7 };
    const other = Object.create(original, { config: { value: config } }) as LanguageModel;
    await expect(evaluateDivergence(original, other, tokens, { seqLen })).rejects.toThrow(
      /over \d+ and 7 tokens cannot be compared/,
    );
    const elsewhere = embeddedModel(createReferenceBackend({ realType: "f64" }), "tiny-llama");
    await expect(evaluateDivergence(original, elsewhere.model, tokens, { seqLen })).rejects.toThrow(
      /same backend/,
    );
  });
});
