/**
 * GGUF weights taken as they are: the same numbers as those read as floats, to the bit, and a model that runs on the integer
 * kernels near to the one in float32.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { formatScheme } from "../../src/backend/contract/scheme.js";
import { dequantized } from "../../src/backend/reference/infer/kernels.js";
import type { BlockType } from "../../src/checkpoint/gguf-blocks.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { openExecutor } from "../../src/engine/open-executor.js";
import { openInteger } from "../../src/engine/processor.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";
import { keptScheme, readKeptBlock, storedMatrix } from "../../src/models/kept.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { readBlock, readTensor } from "../../src/models/weights.js";
import type { GgufTensorSpec } from "../checkpoint/file-bytes.js";
import { MIXED, TYPES, WIDTH, writeCodedModel } from "./coded-gguf.js";
import { engineLogits, mean, modelLogits, rowDistances } from "../backend/cpu/infer/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-kept-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Where two lists differ as float32 numbers, or −1. */
function firstDifference(values: Float64Array, expected: ArrayLike<number>): number {
  if (values.length !== expected.length) return expected.length;
  return values.findIndex((value, i) => Math.fround(value) !== expected[i]);
}

const modelOf = (types: readonly BlockType[], embedding: BlockType, more?: GgufTensorSpec) =>
  writeCodedModel(directory, types, embedding, more);

test.each([...TYPES.map((type) => [type]), MIXED])(
  "%s: the very numbers of the file",
  (...types) => {
    using checkpoint = openCheckpoint(modelOf(types, types[0]));
    const { architecture, config } = parseModelConfig(checkpoint.config);
    const kept = readKeptBlock(checkpoint, architecture, config, 0);
    const read = readBlock(checkpoint, architecture, config, 0);
    for (const [name, { quantized, shape }] of Object.entries(kept.linears)) {
      if (!quantized) throw new Error("no codes");
      const { data } = read.linears[name].weight;
      // Query and key rows are permuted in GGUF, and come in the model's order both ways.
      expect(firstDifference(dequantized(quantized, shape[1]), data), name).toBe(-1);
    }
    const table = "model.embed_tokens.weight";
    const codes = storedMatrix(checkpoint, table, [8, WIDTH]);
    const { data } = readTensor(checkpoint, table, [8, WIDTH]);
    expect(firstDifference(dequantized(codes, WIDTH), data)).toBe(-1);
  },
);

test("a matrix in 16 bits, or a linear whose parts differ, keeps nothing", () => {
  const halves = {
    name: "blk.0.ffn_up.weight",
    extents: [WIDTH, WIDTH],
    type: 1,
    data: new Uint8Array(2 * WIDTH * WIDTH),
  };
  using checkpoint = openCheckpoint(modelOf(["Q4_0"], "Q8_0", halves));
  const { architecture, config } = parseModelConfig(checkpoint.config);
  expect(keptScheme(checkpoint, architecture, config)).toEqual({
    obstacle: "tensor model.layers.0.mlp.up_proj.weight is stored as F16",
  });
});

describe.skipIf(process.env.PLANISH_NO_NATIVE === "1")("on the integer kernels", () => {
  const tokens = Int32Array.from({ length: 40 }, (_, i) => (i * i + 3 * i) % 8);

  // Codes of 8 bits err by at most 1/254 of their group's largest value, some 1% of a row in a few products after one
  // another; a mistaken scale, offset or row is wrong by about the row itself.
  test.each([...TYPES.map((type) => [type]), MIXED])("%s", async (...types) => {
    const path = modelOf(types, types[0]);
    using checkpoint = openCheckpoint(path);
    const model = LanguageModel.load(createCpuBackend(), checkpoint);
    const { executor } = openInteger(path, { keep: {} });
    const expected = modelLogits(model, tokens);
    const distances = rowDistances(await engineLogits(executor, tokens), expected, 8);
    executor[Symbol.dispose]();
    model[Symbol.dispose]();
    expect(mean(distances)).toBeLessThan(0.04);
    expect(mean(distances)).toBeGreaterThan(0);
  });

  test("a cache of 4 bits turns its keys, and costs more than one of 8", async () => {
    const path = modelOf(["Q4_1"], "Q8_0");
    using checkpoint = openCheckpoint(path);
    using model = LanguageModel.load(createCpuBackend(), checkpoint);
    const expected = modelLogits(model, tokens);
    const distance = async (kvBits: 4 | 8) => {
      using executor = openInteger(path, { keep: { kvBits } }).executor;
      return mean(rowDistances(await engineLogits(executor, tokens), expected, 8));
    };
    const [four, eight] = [await distance(4), await distance(8)];
    expect(four).toBeGreaterThan(eight);
    expect(four).toBeLessThan(0.2);
  });

  test("is what runs unless 16 bits are asked for", () => {
    const path = modelOf(["Q4_1"], "Q8_0");
    const opened = (options: Parameters<typeof openExecutor>[1]) => {
      using executor = openExecutor(path, options);
      return [executor.arithmetic, executor.scheme];
    };
    expect(opened({})).toEqual(["integer", "w4g32oa8g64kv8h8g32"]);
    expect(opened({ kvBits: 4 })).toEqual(["integer", "w4g32oa8g64kv4h8g32"]);
    expect(opened({ dequantize: true })).toEqual(["16-bit", undefined]);
    expect(() => opened({ dequantize: true, kvBits: 4 })).toThrow(/--kv-bits/);
  });

  test("mixed types are named by what most weights have", () => {
    using checkpoint = openCheckpoint(modelOf(MIXED, "Q6_K"));
    const { architecture, config } = parseModelConfig(checkpoint.config);
    const kept = keptScheme(checkpoint, architecture, config);
    expect("scheme" in kept && formatScheme(kept.scheme)).toBe("w4g32oa8g64kv8h6g16");
    expect("types" in kept && [...kept.types].sort()).toEqual([...MIXED].sort());
  });
});
