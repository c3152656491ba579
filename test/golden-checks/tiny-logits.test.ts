/**
 * The embedded models against Hugging Face transformers: logits (float64 there, float32 here) and greedy
 * continuations. Every `<model>.logits` in a tiny-logits* file is checked on models/<model>.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { goldenFiles, readGolden } from "./support.js";

/** Float32 logits may differ by this much from the float64 ones (issue: "to 1e-4"). */
const LOGIT_BOUND = 1e-4;

describe.each(goldenFiles("tiny-logits"))("$name", (file) => {
  const golden = readGolden(file.path);
  const prompt = Int32Array.from(golden.get("input_ids")!.data);
  const models = [...golden.keys()]
    .filter((k) => k.endsWith(".logits"))
    .map((k) => k.replace(/\.logits$/, ""));

  describe.each(models)("%s", (name) => {
    const backend = createReferenceBackend({ realType: "f32" });
    const load = () =>
      LanguageModel.load(backend, openCheckpoint(join(packageRoot, "models", name)));

    it(`logits within ${LOGIT_BOUND}`, () => {
      using model = load();
      using g = new Graph(backend);
      const logits = g.read(model.logits(g, model.hidden(g, prompt)));
      const expected = golden.get(`${name}.logits`)!.data;
      expect(logits.length).toBe(expected.length);
      let worst = 0;
      for (let i = 0; i < expected.length; i++)
        worst = Math.max(worst, Math.abs(logits[i] - expected[i]));
      expect(worst).toBeLessThan(LOGIT_BOUND);
    });

    it("greedy continuation is identical, token by token through the cache", () => {
      using model = load();
      const expected = Array.from(golden.get(`${name}.greedy`)!.data);
      using cache = model.cache(expected.length);
      const tokens = Array.from(prompt);
      let next = prompt;
      while (tokens.length < expected.length) {
        using g = new Graph(backend);
        const hidden = model.hidden(g, next, { cache });
        const logits = g.read(model.logits(g, hidden)).subarray(-model.config.vocabSize);
        let best = 0;
        for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
        tokens.push(best);
        next = Int32Array.of(best);
      }
      expect(tokens).toEqual(expected);
    });
  });
});
