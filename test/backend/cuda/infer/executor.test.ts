/** The CUDA executor without a GPU: on a device that computes what the kernels are to compute. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../../../src/backend/reference/train/backend.js";
import { PlanishError } from "../../../../src/common/errors.js";
import { packageRoot } from "../../../../src/common/package.js";
import { cudaExecutorOf, NoCudaKernel } from "../../../../src/engine/gpu.js";
import { EXCHANGE_BYTES } from "../../../../src/backend/cuda/infer/product.js";
import {
  LLAMA_VARIANTS,
  writeRandomLlama,
  type LlamaVariant,
} from "../../cpu/infer/random-llama.js";
import { writeRandomModel } from "../../../models/random-model.js";
import { KIN, kinFolder } from "./random-kin.js";
import { roundedModel } from "../../../engine/rounded.js";
import { EmulatedDevice } from "./emulated-device.js";
import { describeExecutor } from "./executor-suite.js";

const directory = mkdtempSync(join(tmpdir(), "planish-cuda-"));
const VARIANTS: Readonly<Record<string, LlamaVariant>> = {
  window: { ...LLAMA_VARIANTS["mistral, a window of 70"], head_dim: 32 },
  biases: { ...LLAMA_VARIANTS["qwen2, biases"], head_dim: 32 },
  // Rows of q and k fill whole tiles, so that the three linears go in one product with a set of codes each.
  wide: {
    ...LLAMA_VARIANTS["qwen3, head norms, heads wider than the states"],
    head_dim: 128,
  },
};
const pathOf = (name: string) => join(directory, name);

beforeAll(async () => {
  for (const [name, variant] of Object.entries(VARIANTS))
    await writeRandomLlama(pathOf(name), variant, 5);
  for (const [name, { json, biases }] of Object.entries(KIN))
    await writeRandomModel(pathOf(kinFolder(name)), json, 5, biases);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const ids = Int32Array.from({ length: 320 }, (_, i) => (i * i * 7 + 3 * i + 5) % 61);
const random = (name: string) => ({ path: () => pathOf(name), text: () => ids });

describeExecutor({
  device: () => new EmulatedDevice(),
  backend: () => createReferenceBackend({ realType: "f64" }),
  rounds: false,
  tokens: 70,
  cases: [
    { name: "window", scheme: "w4a4kv4", ...random("window") },
    { name: "biases, transforms", scheme: "w3a6kv2", transforms: true, ...random("biases") },
    { name: "wide, transforms", scheme: "w8a8kv4", transforms: true, layers: 1, ...random("wide") },
    { name: "window", scheme: "w4a8kv16", rough: true, ...random("window") },
    // A group of 16 divides these widths: with tables of codes, offsets of weights, offsets of activations.
    { name: "window", scheme: "w4g16a4g16kv4h8g16", layers: 1, ...random("window") },
    {
      name: "biases, transforms",
      scheme: "w4g16oa8kv4h4g16",
      transforms: true,
      layers: 1,
      ...random("biases"),
    },
    { name: "window", scheme: "w6g16oa4g16okv4", layers: 1, ...random("window") },
    { name: "biases", scheme: "w8a4g16kv4h6g16", layers: 1, ...random("biases") },
  ],
});

describe("blocks of other kinds", () => {
  describeExecutor({
    device: () => new EmulatedDevice(),
    backend: () => createReferenceBackend({ realType: "f64" }),
    rounds: false,
    tokens: 45,
    brief: true,
    cases: Object.keys(KIN).map((name) => ({
      name,
      scheme: "w4a4kv4",
      transforms: true,
      ...random(kinFolder(name)),
    })),
  });
});

describe("before Hopper", () => {
  describeExecutor({
    device: () => new EmulatedDevice(80),
    backend: () => createReferenceBackend({ realType: "f64" }),
    rounds: false,
    tokens: 70,
    cases: [
      { name: "window", scheme: "w4a4kv4", layers: 1, ...random("window") },
      { name: "biases", scheme: "w3a6kv2", layers: 1, ...random("biases") },
    ],
  });
});

describe("what the executor refuses", () => {
  const open = (device = new EmulatedDevice()) => {
    using model = roundedModel(pathOf("window"), "w4a4kv4");
    return { device, engine: cudaExecutorOf(model.source, device) };
  };
  const one = {
    tokens: Int32Array.of(1, 2),
    start: 0,
    pages: Int32Array.of(0),
    logits: "last" as const,
  };

  it("models that no kernel takes, and gives the device back", () => {
    for (const [path, scheme, reason] of [
      [join(packageRoot, "models", "tiny-opt"), "w4a4kv4", /learned positions/],
      [pathOf("window"), "w4a4kv8", /cache of 8 bits/],
      [pathOf("window"), "w4a16kv4", /activations of 16 bits/],
    ] as const) {
      using model = roundedModel(path, scheme);
      const device = new EmulatedDevice();
      expect(() => cudaExecutorOf(model.source, device)).toThrow(reason);
      expect(() => cudaExecutorOf(model.source, device)).toThrow(NoCudaKernel);
      expect(device.disposed).toBe(true);
    }
  });

  it("a cache that does not fit, and goes on with one that does", async () => {
    const { engine, device } = open();
    const allocate = device.allocate.bind(device);
    device.allocate = () => {
      throw new PlanishError("out of GPU memory: 9 MiB more are needed");
    };
    expect(() => engine.reserve(1000)).toThrow(/KV cache of .* does not fit.*--kv-memory/);
    device.allocate = allocate;
    await expect(engine.step([one])).rejects.toThrow(/no cache pages are reserved/);
    engine.reserve(1);
    expect((await engine.step([one]))[0]).toHaveLength(engine.shape.vocabSize);
  });
});

it("what a page held before does not show", async () => {
  using model = roundedModel(pathOf("window"), "w4a4kv4");
  const device = new EmulatedDevice();
  using engine = cudaExecutorOf(model.source, device);
  engine.reserve(2);
  const cleared: number[] = [];
  // The first product clears, once, where its blocks meet.
  device.onFill = (bytes) => {
    if (bytes !== EXCHANGE_BYTES) cleared.push(bytes);
  };
  const pages = Int32Array.of(1, 0);
  const chunk = (start: number, end: number) => ({
    tokens: ids.subarray(start, end),
    start,
    pages,
    logits: "none" as const,
  });
  await engine.step([chunk(0, 40)]);
  await engine.step([chunk(40, 41)]);
  expect(cleared).toEqual([engine.bytesPerPage]);
  await engine.step([chunk(41, 70)]);
  await engine.step([chunk(64, 65)]);
  expect(cleared).toHaveLength(3);
});

describe("graphs", () => {
  const step = (start: number, pages: Int32Array) => ({
    tokens: Int32Array.of(7),
    start,
    pages,
    logits: "last" as const,
  });

  it("the second step of a size captures, later ones replay; reserving starts anew", async () => {
    using model = roundedModel(pathOf("window"), "w4a4kv4");
    const device = new EmulatedDevice();
    using engine = cudaExecutorOf(model.source, device);
    engine.reserve(4);
    const pages = Int32Array.of(0);
    for (let t = 0; t < 5; t++) await engine.step([step(t, pages)]);
    expect(device.counts).toMatchObject({ captures: 1, replays: 4 });
    engine.reserve(4);
    for (let t = 0; t < 2; t++) await engine.step([step(t, pages)]);
    expect(device.counts).toMatchObject({ captures: 2, replays: 5 });
  });

  it("a longer list of pages than there was room for moves the tables, and the graphs with them", async () => {
    // A window of 70 tokens lets a sequence be as long as it likes: it reads its last two pages.
    using model = roundedModel(pathOf("window"), "w4a4kv4");
    const device = new EmulatedDevice();
    using engine = cudaExecutorOf(model.source, device);
    engine.reserve(4);
    const long = new Int32Array(70_000).fill(3);
    for (let t = 0; t < 3; t++) await engine.step([step(t, Int32Array.of(0))]);
    const at = async (start: number) => (await engine.step([step(start, long)]))[0];
    const first = await at(64 * 69_999);
    expect(device.counts.captures).toBe(1);
    // Captured anew, with the tables at their new place.
    expect(await at(64 * 69_999)).toEqual(first);
    expect(await at(64 * 69_999)).toEqual(first);
    expect(device.counts.captures).toBe(2);
  });
});
