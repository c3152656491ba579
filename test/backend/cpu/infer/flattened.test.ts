/**
 * The integer executor on static per-tensor grids with split channels, each linear at its own width, against the
 * simulated arithmetic of the same artifact. Bounds are those of executor.test.ts: codes and integer products are equal to
 * the bit but where a value lies within an ulp of a tie, so the median row agrees to 1e-5.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { createCpuBackend } from "../../../../src/backend/cpu/train/backend.js";
import { openCheckpoint } from "../../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../../../src/common/package.js";
import { openIntegerExecutor } from "../../../../src/engine/processor.js";
import { readDocuments } from "../../../../src/quantize/calibration/text.js";
import { quantize, type QuantizeOptions } from "../../../../src/quantize/run/pipeline.js";
import { loadModel } from "../../../../src/quantize/artifact/load.js";
import { engineLogits, mean, median, modelLogits, rowDistances } from "./support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-flattened-"));
const backend = createCpuBackend();
afterAll(() => {
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

const flat = { method: "flattenquant", preset: "rtn" };
const byExcess = { criterion: "excess", gamma: 0.03 };
const cases: [string, string, Partial<QuantizeOptions>][] = [
  // KV groups and a gated MLP; 4 and 8 bits side by side.
  ["tiny-llama", "mixed", { ...flat, scheme: "w4a4kv8", recipe: byExcess }],
  ["tiny-opt", "mixed", { ...flat, scheme: "w4a4kv8", recipe: byExcess }],
  ["tiny-opt", "factors in rows", { ...flat, scheme: "w8a8kv8", recipe: { rows: "fold" } }],
  ["tiny-opt", "all 4 bits", { ...flat, scheme: "w4a4kv4", recipe: { gamma: 100 } }],
  // Linears of a site share one grid.
  ["tiny-opt", "per-tensor rounding", { method: "rtn", preset: "tensor", scheme: "w8a8kv8" }],
];

describe("static grids", () => {
  test.each(cases)("%s, %s: logits are the simulated model's", async (model, name, options) => {
    const path = join(packageRoot, "models", model);
    const out = join(directory, `${model}-${name}`);
    using source = openCheckpoint(path);
    const few = { samples: 4, seqLen: 128 };
    const recipe = { ...options.recipe, ...few };
    const text = join(packageRoot, "README.md");
    const result = await quantize({ backend, source, out, ...options, recipe, calibration: text });
    if (name === "mixed") {
      const bits = result.info.layers.flatMap(({ linears }) =>
        Object.values(linears ?? {}).map((facts) => facts.bits),
      );
      expect(new Set(bits)).toEqual(new Set([4, 8]));
    }
    const tokens = Int32Array.from(
      loadTokenizer(source).encode(readDocuments("wikitext2").join("\n").slice(0, 700)),
    );
    using simulated = loadModel(backend, out);
    using original = loadModel(backend, path);
    using engine = openIntegerExecutor(out);
    const { vocabSize } = engine.shape;
    const expected = modelLogits(simulated.model, tokens);
    const distances = rowDistances(await engineLogits(engine, tokens), expected, vocabSize);
    const noise = mean(rowDistances(expected, modelLogits(original.model, tokens), vocabSize));
    // Attention and head sum in another order; a code within an ulp of a tie flips by a step, and the flips of half the
    // rows stay far below the rounding's own noise.
    expect(median(distances)).toBeLessThan(name === "all 4 bits" ? 1e-5 : noise / 20);
    expect(mean(distances)).toBeLessThan(noise / 4);
  });
});
