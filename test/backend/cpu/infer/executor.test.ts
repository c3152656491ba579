/**
 * The integer executor against the simulated model made of the same rounded blocks.
 *
 * Bounds. Sites, integer products and grids follow the simulated statements to the bit; only attention, the products of
 * real activations and the head sum in another order (f32), and the cache of kv16 holds halves (2⁻¹¹). So an unflipped code sequence gives logits equal to some ulp: at 4 bits
 * the median row, where no code sits within an ulp of a tie, must be within 1e-5. A perturbed value near a tie flips its
 * code by one step; as only a fraction p of codes is that near, flips cost √(12·p) of the scheme's own rounding noise,
 * which is what tells the simulated model from the original: over all rows the engine must be ten times nearer to the
 * simulated model than that is to the original. Where halves perturb every value, p grows from layer to layer
 * (a perturbation δ of a grid with step s becomes √(δ·s)) and can reach the noise itself at 8 bits, never exceed it.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCpuBackend } from "../../../../src/backend/cpu/train/backend.js";
import { openCheckpoint } from "../../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../../../src/common/package.js";
import { openIntegerExecutor, type IntegerExecutor } from "../../../../src/engine/processor.js";
import { readDocuments } from "../../../../src/quantize/calibration/text.js";
import { quantize } from "../../../../src/quantize/run/pipeline.js";
import { loadModel } from "../../../../src/quantize/artifact/load.js";
import { OPT_VARIANTS, writeRandomOpt } from "../../../models/random-opt.js";
import { LLAMA_VARIANTS, writeRandomLlama } from "./random-llama.js";
import { differentBits, joined } from "../../../engine/rounded.js";
import {
  engineLogits,
  mean,
  meanLoss,
  median,
  modelLogits,
  roundedPair,
  rowDistances,
} from "./support.js";

const directory = mkdtempSync(joinPath(tmpdir(), "planish-engine-"));
const models = {
  llama: joinPath(packageRoot, "models", "tiny-llama"),
  opt: joinPath(packageRoot, "models", "tiny-opt"),
};
const text = new Map<string, Int32Array>();
const WINDOW = 150;

beforeAll(() => {
  const sample = readDocuments("wikipedia").join("\n").slice(0, 20_000);
  for (const [name, path] of Object.entries(models)) {
    using checkpoint = openCheckpoint(path);
    text.set(name, Int32Array.from(loadTokenizer(checkpoint).encode(sample)));
  }
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const ids = (model: string, window = 0): Int32Array =>
  (text.get(model) ?? new Int32Array()).subarray(window * WINDOW, (window + 1) * WINDOW);

describe.each(["llama", "opt"] as const)("tiny-%s", (name) => {
  test.each([
    ["w4a4kv4", 10],
    ["w3a8kv3", 10],
    ["w4a8kv8", 10],
    ["w6a6kv6", 10],
    ["w8a8kv16", 1],
    ["w4a16kv16", 10],
    ["w8a16kv4", 10],
  ])(
    "%s: logits are the simulated model's to rounding, perplexity to 0.2%%",
    async (scheme, nearer) => {
      using pair = roundedPair(models[name], scheme);
      const { vocabSize } = pair.engine.shape;
      const losses: [number, number][] = [];
      // Halves of the cache flip codes in every layer: at 8 bits it takes more tokens to average that out.
      const windows = scheme.endsWith("kv16") ? 16 : 4;
      for (let window = 0; window < windows; window++) {
        const tokens = ids(name, window);
        const simulated = modelLogits(pair.simulated, tokens);
        const engine = await engineLogits(pair.engine, tokens);
        losses.push([meanLoss(engine, tokens, vocabSize), meanLoss(simulated, tokens, vocabSize)]);
        if (window > 0) continue;
        const noise = mean(rowDistances(simulated, modelLogits(pair.original, tokens), vocabSize));
        const distances = rowDistances(engine, simulated, vocabSize);
        expect(mean(distances)).toBeLessThan(noise / nearer);
        if (/a4kv/.test(scheme)) expect(median(distances)).toBeLessThan(1e-5);
      }
      // Below 4 bits a flip is too large a step for 600 tokens to average out.
      if (scheme.startsWith("w3")) return;
      const [ours, theirs] = [0, 1].map((side) =>
        Math.exp(mean(losses.map((pairOf) => pairOf[side]))),
      );
      expect(Math.abs(ours / theirs - 1)).toBeLessThan(0.002);
    },
  );
});

describe("architectures", () => {
  const tokens = Int32Array.from({ length: 150 }, (_, i) => (i * i * 7 + 3 * i + 5) % 61);

  test.each(Object.keys(LLAMA_VARIANTS))("%s", async (name) => {
    const path = joinPath(directory, LLAMA_VARIANTS[name].model_type);
    await writeRandomLlama(path, LLAMA_VARIANTS[name], 5);
    using pair = roundedPair(path, "w4a4kv4");
    const distances = rowDistances(
      await engineLogits(pair.engine, tokens),
      modelLogits(pair.simulated, tokens),
      61,
    );
    expect(median(distances)).toBeLessThan(1e-5);
  });

  test.each(Object.keys(OPT_VARIANTS))("opt, %s", async (name) => {
    const path = joinPath(directory, `opt-${Object.keys(OPT_VARIANTS).indexOf(name)}`);
    await writeRandomOpt(path, OPT_VARIANTS[name], 7);
    using pair = roundedPair(path, "w4a4kv4");
    const some = tokens.subarray(0, 20).map((id) => id % 31);
    const distances = rowDistances(
      await engineLogits(pair.engine, some),
      modelLogits(pair.simulated, some),
      31,
    );
    expect(median(distances)).toBeLessThan(1e-5);
  });

  test("an original runs with bf16 weights: nearer to it than 8-bit rounding is", async () => {
    using engine = openIntegerExecutor(models.llama);
    using pair = roundedPair(models.llama, "w8a8kv16");
    const { vocabSize } = engine.shape;
    const truth = modelLogits(pair.original, ids("llama"));
    const distance = mean(rowDistances(await engineLogits(engine, ids("llama")), truth, vocabSize));
    expect(distance).toBeLessThan(
      mean(rowDistances(modelLogits(pair.simulated, ids("llama")), truth, vocabSize)),
    );
  });
});

test("a FlatQuant artifact: transforms at every site, clips, cache clips", async () => {
  const backend = createCpuBackend();
  using source = openCheckpoint(models.llama);
  const out = joinPath(directory, "flatquant");
  const recipe = { samples: 4, seqLen: 64, epochs: 2, batch: 2 };
  const calibration = joinPath(packageRoot, "LICENSE");
  await quantize({ backend, source, out, scheme: "w4a4kv4", recipe, calibration });
  using loaded = loadModel(backend, out);
  using engine = openIntegerExecutor(out);
  expect(engine.description).toMatch(/w4a4kv4, integer$/);
  const simulated = modelLogits(loaded.model, ids("llama"));
  const distances = rowDistances(
    await engineLogits(engine, ids("llama")),
    simulated,
    engine.shape.vocabSize,
  );
  expect(median(distances)).toBeLessThan(1e-5);
});

describe("a row depends on the tokens before it and on nothing else", () => {
  /** Logits of all tokens, computed in chunks of the given lengths. */
  async function inChunks(
    engine: IntegerExecutor,
    tokens: Int32Array,
    lengths: readonly number[],
    pages: Int32Array,
  ) {
    const parts: Float32Array[] = [];
    let start = 0;
    for (const length of lengths) {
      const chunk = {
        tokens: tokens.subarray(start, start + length),
        start,
        pages,
        logits: "all" as const,
      };
      parts.push(...(await engine.step([chunk])).filter((part) => part !== undefined));
      start += length;
    }
    return joined(...parts);
  }

  test.each(["w4a4kv4", "w8a8kv16", "w4a16kv8", "w16a16kv16"])(
    "%s: chunks and batches give the same bits",
    async (scheme) => {
      using pair = roundedPair(models.llama, scheme);
      const { engine } = pair;
      const tokens = ids("llama");
      const other = ids("llama", 1);
      const whole = await engineLogits(engine, tokens);
      engine.reserve(8);
      const pages = Int32Array.of(0, 1, 2);
      for (const lengths of [Array<number>(WINDOW).fill(1), [1, 3, 13, 47, 5, 1, 80]])
        expect(differentBits(await inChunks(engine, tokens, lengths, pages), whole)).toBe(0);
      // Beside others, at other places.
      const chunk = (of: Int32Array, start: number, end: number, at: Int32Array) =>
        ({ tokens: of.subarray(start, end), start, pages: at, logits: "all" }) as const;
      const second = Int32Array.of(7, 5, 6);
      const first = await engine.step([chunk(other, 0, 70, second), chunk(tokens, 0, 100, pages)]);
      const then = await engine.step([
        chunk(tokens, 100, 150, pages),
        chunk(other, 70, 71, second),
      ]);
      expect(differentBits(joined(first[1], then[0]), whole)).toBe(0);
    },
  );

  test("a step longer than what goes through the blocks at once", async () => {
    using pair = roundedPair(models.llama, "w4a4kv4");
    const { engine } = pair;
    const tokens = (text.get("llama") ?? new Int32Array()).subarray(0, 500);
    const pages = Int32Array.from({ length: 16 }, (_, i) => i);
    engine.reserve(24);
    const alone = (await engine.step([{ tokens, start: 0, pages, logits: "last" }]))[0];
    const beside = await engine.step([
      {
        tokens: tokens.subarray(0, 300),
        start: 0,
        pages: pages.map((page) => page + 8),
        logits: "none",
      },
      { tokens, start: 0, pages, logits: "last" },
    ]);
    expect(beside[0]).toBeUndefined();
    expect(beside[1]).toEqual(alone);
  });
});

describe("what is refused", () => {
  test("a scheme without kernels", () => {
    expect(() => roundedPair(models.llama, "w16a4kv4")).toThrow(
      /w16a4kv4 has no integer kernels.*simulated/,
    );
  });

  test("positions past a learned table", async () => {
    using engine = openIntegerExecutor(models.opt);
    engine.reserve(2);
    const start = engine.shape.maxPositions;
    const tokens = Int32Array.of(1, 2);
    const far = { tokens, start, pages: new Int32Array(99), logits: "last" as const };
    await expect(engine.step([far])).rejects.toThrow(/learned positions/);
  });
});
