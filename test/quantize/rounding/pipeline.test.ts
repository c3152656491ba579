/** GPTQ through the whole pipeline on the embedded model: closer than plain rounding, resumable, refused where senseless. */
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../../src/backend/open.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../../src/common/package.js";
import type { ProgressSink } from "../../../src/common/progress.js";
import { evaluateDivergence } from "../../../src/evaluate/divergence.js";
import { LanguageModel } from "../../../src/models/language-model.js";
import { readQuantizationInfo } from "../../../src/quantize/artifact/artifact.js";
import { readDocuments, tokenizeCorpus } from "../../../src/quantize/calibration/text.js";
import { quantize, type QuantizeOptions } from "../../../src/quantize/run/pipeline.js";
import { loadModel } from "../../../src/quantize/artifact/load.js";
import { fewBlocks, smallCalibration } from "../methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-gptq-"));
const backend = openBackend({ device: "cpu" });
const source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));

const calibration = smallCalibration(directory);

afterAll(() => {
  source[Symbol.dispose]();
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

function run(name: string, options: Partial<QuantizeOptions> = {}) {
  return quantize({
    backend,
    source,
    out: join(directory, name),
    method: "rtn",
    preset: "gptq",
    recipe: { samples: 8, seqLen: 128 },
    scheme: "w4a16kv16",
    calibration,
    ...options,
  });
}

function digest(name: string): Record<string, string> {
  const path = join(directory, name);
  const hash = (file: string) =>
    createHash("sha256")
      .update(readFileSync(join(path, file)))
      .digest("hex");
  return Object.fromEntries(
    readdirSync(path)
      .sort()
      .map((file) => [file, hash(file)]),
  );
}

/** Aborts when the nth block has been packed. */
function abortAfterPacking(n: number): { signal: AbortSignal; progress: ProgressSink } {
  const controller = new AbortController();
  let seen = 0;
  return {
    signal: controller.signal,
    progress: {
      task: (label) => ({
        advance: () => {
          if (label === "packing" && ++seen === n) controller.abort();
        },
        done: () => undefined,
      }),
      note: () => undefined,
      warn: () => undefined,
    },
  };
}

describe("rounding: gptq", () => {
  it("comes closer to full precision than plain rounding, and says how close each block is", async () => {
    await run("nearest", { preset: "default" });
    // Windows from all over the embedded text: of its first 60 kB alone the divergence is above the limit (0.128).
    const { info } = await run("gptq", { calibration: "wikipedia" });
    expect(info.recipe).toMatchObject({
      rounding: "gptq",
      gptq: { damping: 0.1, actOrder: true, equalTokens: true },
    });
    for (const layer of info.layers) expect(layer.errorPacked).toBeGreaterThan(0);
    const tokens = tokenizeCorpus(
      loadTokenizer(source),
      readDocuments("wikitext2").map((t) => t.slice(0, 30000)),
    );
    using reference = LanguageModel.load(backend, source);
    const kl = async (name: string) => {
      using loaded = loadModel(backend, join(directory, name));
      const result = await evaluateDivergence(loaded.model, reference, tokens, { limit: 6 });
      return result.kl.value;
    };
    // 0.65 of plain rounding's with 128 windows on the whole text.
    expect(await kl("gptq")).toBeLessThan(0.85 * (await kl("nearest")));
  });

  it("stopped while packing and resumed, ends in the same bytes; packed blocks are not done again", async () => {
    using few = await fewBlocks(directory);
    await expect(run("stopped", { source: few, ...abortAfterPacking(2) })).rejects.toThrow(
      /stopped while packing/,
    );
    const kept = join(directory, "stopped.run", "packed-001.safetensors");
    const written = statSync(kept).mtimeMs;
    let stillKept = 0;
    const { progress } = abortAfterPacking(Infinity);
    await run("stopped", {
      source: few,
      resume: true,
      progress: {
        ...progress,
        task: () => ({
          advance: () => {
            if (existsSync(kept)) stillKept = statSync(kept).mtimeMs;
          },
          done: () => undefined,
        }),
      },
    });
    expect(stillKept).toBe(written);
    await run("whole", { source: few });
    expect(digest("stopped")).toEqual(digest("whole"));
  });

  it("works after FlatQuant's learning, on its transformed activations", async () => {
    const small = { samples: 4, seqLen: 64, epochs: 1, batch: 2 };
    const options = { method: "flatquant", preset: "paper", scheme: "w4a4kv4" };
    await run("flat", { ...options, recipe: small });
    await run("flat-gptq", { ...options, recipe: { ...small, rounding: "gptq" } });
    const [flat, gptq] = ["flat", "flat-gptq"].map((n) => readQuantizationInfo(join(directory, n)));
    // The same learning; only the integers differ, and with them the blocks' errors.
    expect(gptq.layers.map((l) => l.errorFinal)).toEqual(flat.layers.map((l) => l.errorFinal));
    expect(digest("flat-gptq")["model.safetensors"]).not.toBe(digest("flat")["model.safetensors"]);
    const sum = (values: readonly (number | undefined)[]) =>
      values.reduce<number>((total, x) => total + (x ?? NaN), 0);
    expect(sum(gptq.layers.map((l) => l.errorPacked))).toBeLessThan(
      sum(flat.layers.map((l) => l.errorFinal)),
    );
  });

  it("says so when weights stay at 16 bits", async () => {
    const { info } = await run("w16", { scheme: "w16a8kv16" });
    expect(info.fallbacks).toEqual([expect.stringMatching(/nothing to round/)]);
  });

  it("is refused together with learned rounding, before any work", async () => {
    const recipe = { rounding: "gptq", learnedRounding: { enabled: true } };
    await expect(run("never", { method: "flatquant", preset: "fast", recipe })).rejects.toThrow(
      /recipe field "rounding" of method "flatquant": "gptq" cannot be combined with learnedRounding/,
    );
    expect(existsSync(join(directory, "never.run"))).toBe(false);
  });
});
