/** The whole pipeline on the embedded model with tiny recipes: determinism, resuming, and what the artifact computes. */
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import type { ProgressSink } from "../../src/common/progress.js";
import { evaluatePerplexity } from "../../src/evaluate/perplexity.js";
import { blockProgram, parseModelConfig } from "../../src/models/architectures/index.js";
import { freeBlock, readBlock, uploadBlock } from "../../src/models/weights.js";
import { readDocuments, tokenizeCorpus } from "../../src/quantize/calibration/text.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { readPackedBlock } from "../../src/quantize/artifact/block-tensors.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { bindSimulated } from "../../src/quantize/block/simulated-block.js";
import { readKeptParameters, simulatedModel } from "../../src/quantize/artifact/simulated-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { smallCalibration } from "./methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-pipeline-"));
const backend = openBackend({ device: "cpu" });
const source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));
const opt = openCheckpoint(join(packageRoot, "models", "tiny-opt"));
const small = { samples: 4, seqLen: 64, epochs: 1, batch: 2 };
const calibration = smallCalibration(directory);

afterAll(() => {
  source[Symbol.dispose]();
  opt[Symbol.dispose]();
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

function quantizeTo(name: string, options: Partial<QuantizeOptions> = {}) {
  const out = join(directory, name);
  return quantize({ backend, source, out, recipe: small, calibration, ...options });
}

/** Digest of every file of an artifact, by name. */
function digest(name: string): Record<string, string> {
  const path = join(directory, name);
  return Object.fromEntries(
    readdirSync(path)
      .sort()
      .map((file) => [
        file,
        createHash("sha256")
          .update(readFileSync(join(path, file)))
          .digest("hex"),
      ]),
  );
}

/** Aborts when the nth block has been reported. */
function abortAfterBlocks(n: number): { signal: AbortSignal; progress: ProgressSink } {
  const controller = new AbortController();
  let seen = 0;
  const task = { advance: () => undefined, done: () => undefined };
  return {
    signal: controller.signal,
    progress: {
      task: () => task,
      note: (message) => {
        if (message.startsWith("block") && ++seen === n) controller.abort();
      },
      warn: () => undefined,
    },
  };
}

let tokens: Int32Array | undefined;

async function perplexity(
  model: Parameters<typeof evaluatePerplexity>[0],
  windows = 8,
): Promise<number> {
  tokens ??= tokenizeCorpus(
    loadTokenizer(source),
    readDocuments("wikitext2").map((t) => t.slice(0, 60000)),
  );
  return (await evaluatePerplexity(model, tokens, { limit: windows })).perplexity;
}

describe("a run", () => {
  const path = join(directory, "four-blocks");
  let four: ReturnType<typeof openCheckpoint>;
  beforeAll(async () => {
    await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), path, 4);
    four = openCheckpoint(path);
  });
  afterAll(() => four[Symbol.dispose]());
  const run = (name: string, options: Partial<QuantizeOptions> = {}) =>
    quantizeTo(name, { source: four, ...options });

  it("gives the same bytes for the same seed, other bytes for another", async () => {
    await run("a", { seed: 3 });
    await run("b", { seed: 3 });
    await run("c", { seed: 4 });
    expect(digest("b")).toEqual(digest("a"));
    expect(digest("c")["model.safetensors"]).not.toBe(digest("a")["model.safetensors"]);
  });

  it("stopped in the middle and resumed, ends in the same bytes; finished blocks are not done again", async () => {
    await expect(run("d", { seed: 3, ...abortAfterBlocks(2) })).rejects.toThrow(/stopped/);
    expect(existsSync(join(directory, "d"))).toBe(false);
    await expect(run("d", { seed: 3 })).rejects.toThrow(/--resume/);
    await expect(run("d", { seed: 5, resume: true })).rejects.toThrow(/seed was 3, is 5/);
    const notes: string[] = [];
    const { progress } = abortAfterBlocks(Infinity);
    await run("d", {
      seed: 3,
      resume: true,
      progress: { ...progress, note: (m) => notes.push(m) },
    });
    expect(notes.filter((n) => /^block \d+:/.test(n))).toHaveLength(2);
    expect(digest("d")).toEqual(digest("a"));
    expect(existsSync(join(directory, "d.run"))).toBe(false);
  });

  it("distillation stopped and resumed ends in the same bytes", async () => {
    const recipe = {
      ...small,
      learnedRounding: { enabled: true },
      distillation: { steps: 4, batch: 2 },
    };
    await run("e", { recipe });
    const controller = new AbortController();
    const progress: ProgressSink = {
      ...abortAfterBlocks(Infinity).progress,
      task: (label) => ({
        advance: (by = 1, detail = "") => {
          if (label === "distilling" && by > 0 && detail !== "") controller.abort();
        },
        done: () => undefined,
      }),
    };
    await expect(run("f", { recipe, progress, signal: controller.signal })).rejects.toThrow(
      /step 1 of 4/,
    );
    await run("f", { recipe, resume: true });
    expect(digest("f")).toEqual(digest("e"));
  });
});

describe("flatquant", () => {
  it("rounded to nearest, the artifact and the simulated model are the same to the last bit of every window", async () => {
    await quantizeTo("g-rtn", { method: "rtn", recipe: {} });
    using loaded = loadModel(backend, join(directory, "g-rtn"));
    using simulated = simulatedModel(backend, source, parseScheme("w4a4kv4"));
    expect(await perplexity(loaded.model)).toBe(await perplexity(simulated));
  });

  // With quantized activations a difference of 1e-7 flips a code now and then, and later blocks enlarge it: texts as short
  // as these differ by 0.1% at 8 bits and 0.5% at 4, without a direction, the whole of WikiText-2 by 0.04%
  // (docs/decisions.md). So the integers are compared at 4 bits, and perplexity where nothing hides a wrong fold.
  it("the artifact holds the integers that the simulated model computes", async () => {
    await quantizeTo("g4", { keepParameters: true, recipe: { ...small, samples: 8, epochs: 2 } });
    const scheme = parseScheme("w4a4kv4");
    const { architecture, config } = parseModelConfig(source.config);
    using artifact = openCheckpoint(join(directory, "g4"));
    const kept = readKeptParameters(join(directory, "g4"));
    using g = new Graph(backend);
    for (const layer of [0, config.numLayers - 1]) {
      const host = readBlock(source, architecture, config, layer);
      const packed = readPackedBlock(artifact, architecture, config, scheme, layer);
      const parameters = new Map(
        [...kept[layer]].map(([name, v]) => [name, g.constant(v.shape, v.data)]),
      );
      const weights = uploadBlock(backend, host);
      const block = bindSimulated(
        g,
        { program: blockProgram(config, 0), scheme },
        weights,
        parameters,
      );
      for (const [role, l] of Object.entries(packed.linears)) {
        const { codes } = block.roundedWeight(role, block.unroundedWeight(role));
        const live = codes ? backend.read(codes.codes) : [];
        const differing = l.quantized?.codes.filter((code, i) => code !== live[i]).length;
        // One in a million may lie within single precision of a tie.
        expect(differing).toBeLessThanOrEqual(1);
      }
      freeBlock(backend, weights);
    }
  });

  it("the artifact and the simulated model have the same perplexity to 0.01%", async () => {
    await quantizeTo("g", {
      keepParameters: true,
      scheme: "w4a16kv16",
      recipe: { ...small, samples: 8, epochs: 2 },
    });
    using loaded = loadModel(backend, join(directory, "g"));
    using simulated = simulatedModel(
      backend,
      source,
      parseScheme("w4a16kv16"),
      readKeptParameters(join(directory, "g")),
    );
    const packed = await perplexity(loaded.model);
    const live = await perplexity(simulated);
    expect(Math.abs(packed / live - 1)).toBeLessThan(1e-4);
  });

  it("calibration lowers every block's error below rounding to nearest", async () => {
    const result = await quantizeTo("h", { recipe: { ...small, samples: 8, epochs: 4 } });
    for (const layer of result.layers) expect(layer.errorFinal).toBeLessThan(layer.errorRounded);
  });

  it.each(["w4a16kv16", "w16a4kv16", "w16a16kv4", "w3a3kv2", "w8a8kv8", "w6a6kv3"])(
    "scheme %s",
    async (scheme) => {
      await quantizeTo(scheme, { scheme });
      using loaded = loadModel(backend, join(directory, scheme));
      const value = await perplexity(loaded.model, 1);
      expect(value).toBeGreaterThan(20);
      expect(value).toBeLessThan(4096);
    },
  );

  it("works on OPT: layer norms with biases, ReLU, biases everywhere", async () => {
    await quantizeTo("opt", {
      source: opt,
      recipe: { samples: 8, seqLen: 256, epochs: 2, batch: 2 },
    });
    await quantizeTo("opt-rtn", { source: opt, recipe: {}, method: "rtn" });
    using flat = loadModel(backend, join(directory, "opt"));
    using rounded = loadModel(backend, join(directory, "opt-rtn"));
    expect(await perplexity(flat.model)).toBeLessThan(await perplexity(rounded.model));
  });
});

describe("refusals, before any work", () => {
  it.each<[string, Partial<QuantizeOptions>, RegExp]>([
    [
      "unknown recipe key",
      { recipe: { epoch: 3 } },
      /recipe key "epoch" is unknown.*accepted: samples/,
    ],
    [
      "unknown nested key",
      { recipe: { distillation: { stepz: 1 } } },
      /"distillation\.stepz" is unknown/,
    ],
    ["illegal value", { recipe: { epochs: -1 } }, /recipe field "epochs"/],
    ["unknown preset", { preset: "quick" }, /no preset "quick"; accepted: paper, fast, best/],
    ["unknown method", { method: "magic" }, /method "magic" is unknown; accepted: flatquant/],
    ["unknown scheme", { scheme: "w5a4kv4" }, /5-bit/],
    ["missing calibration text", { calibration: "/nowhere.txt" }, /nowhere\.txt/],
  ])("%s", async (_name, options, message) => {
    await expect(quantizeTo("never", options)).rejects.toThrow(message);
    expect(existsSync(join(directory, "never"))).toBe(false);
    expect(existsSync(join(directory, "never.run"))).toBe(false);
  });

  it("an output directory that exists", async () => {
    await quantizeTo("taken", { method: "rtn", recipe: {} });
    await expect(quantizeTo("taken", { method: "rtn", recipe: {} })).rejects.toThrow(
      /exists already/,
    );
  });
});
