/** Perplexity through an executor is that of the model it runs. */
import { describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import { evaluateEnginePerplexity } from "../../src/evaluate/engine-perplexity.js";
import { evaluatePerplexity } from "../../src/evaluate/perplexity.js";
import { readDocuments, tokenizeCorpus } from "../../src/quantize/calibration/text.js";
import { embeddedModel } from "./support.js";

const backend = openBackend();
const { model, tokenizer } = embeddedModel(backend, "tiny-llama");
const tokens = tokenizeCorpus(tokenizer, [readDocuments("wikitext2")[0].slice(0, 6000)]);

describe("perplexity through an executor", () => {
  it("equals the model's, window by window, also where a window takes several steps", async () => {
    using executor = new SimulatedExecutor(model, "float32");
    const options = { seqLen: 300, limit: 2 };
    const found = await evaluateEnginePerplexity(executor, backend, tokens, options);
    const expected = await evaluatePerplexity(model, tokens, options);
    expect([found.windows, found.seqLen]).toEqual([2, 300]);
    // Sums in other orders: logits differ by some 2e-5 (docs/decisions.md), in the mean by less.
    for (const [i, nll] of found.windowNll.entries())
      expect(Math.abs(nll - expected.windowNll[i])).toBeLessThan(2e-5);
  });

  it("refuses windows longer than the model's positions", async () => {
    using executor = new SimulatedExecutor(model, "float32");
    await expect(
      evaluateEnginePerplexity(executor, backend, tokens, { seqLen: 1025 }),
    ).rejects.toThrow(/longer than the model's 1024 positions/);
  });
});
