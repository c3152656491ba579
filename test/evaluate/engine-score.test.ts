/** Scores through pages of an engine's cache equal those of whole sequences. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { packageRoot } from "../../src/common/package.js";
import { openIntegerExecutor } from "../../src/engine/processor.js";
import { SIMULATED_PAGE_TOKENS, SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import type { EncodedPair } from "../../src/evaluate/encode-pair.js";
import { scoreWithExecutor } from "../../src/evaluate/engine-score.js";
import { scoreContinuations } from "../../src/evaluate/score.js";
import { embeddedModel } from "./support.js";

const backend = createReferenceBackend({ realType: "f64" });
const { model, tokenizer } = embeddedModel(backend, "tiny-llama");
const ids = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false });
const long = ids(
  "The ship sailed to the north, where the king of the old land had built a city by the sea.",
);

/** Contexts that end in the middle of a page, exactly at its end, and one token into the next. */
const contexts = [5, SIMULATED_PAGE_TOKENS, SIMULATED_PAGE_TOKENS + 1].map((n) => long.slice(0, n));
const continuations = [" and was lost", " home", " in the year of the great war, and"].map(ids);
const pairs: EncodedPair[] = contexts.flatMap((context) =>
  continuations.map((continuation) => ({ context, continuation })),
);

describe("scoring through an executor", () => {
  it("equals whole sequences, wherever a context ends in its page", async () => {
    using executor = new SimulatedExecutor(model, "float64");
    const found = await scoreWithExecutor(executor, pairs, { greedy: true });
    const expected = scoreContinuations(model, pairs, { greedy: true });
    for (const [i, { logLikelihood, greedy }] of found.entries()) {
      // Executors hand logits out in float32: 2⁻²⁴ of logits up to about 20, for each of up to ten tokens.
      expect(Math.abs(logLikelihood - expected[i].logLikelihood)).toBeLessThan(3e-5);
      expect(greedy).toBe(expected[i].greedy);
    }
  });

  it("comes close with the engine's own kernels, whose products are bfloat16", async () => {
    using native = openBackend({ device: "cpu" });
    const { model: same } = embeddedModel(native, "tiny-llama");
    using executor = openIntegerExecutor(join(packageRoot, "models", "tiny-llama"));
    const found = await scoreWithExecutor(executor, pairs);
    const expected = scoreContinuations(same, pairs);
    // 2⁻⁸ relative in every product's operands; logits of some units move by hundredths, a few at each token.
    for (const [i, { logLikelihood }] of found.entries())
      expect(Math.abs(logLikelihood - expected[i].logLikelihood)).toBeLessThan(
        0.05 * pairs[i].continuation.length,
      );
  });

  it("refuses what is longer than the model's positions", async () => {
    using executor = new SimulatedExecutor(model, "float64");
    const context = Array.from({ length: model.config.maxPositions }, () => 5);
    await expect(scoreWithExecutor(executor, [{ context, continuation: [6, 7] }])).rejects.toThrow(
      /longer than the model's 1024 positions/,
    );
  });
});
