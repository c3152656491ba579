/** The engine's kernel checks and its executor as tests of the GPU lane. */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../../src/checkpoint/tokenizer.js";
import { PlanishError } from "../../../../src/common/errors.js";
import { CudaEngineDevice } from "../../../../src/backend/cuda/infer/device.js";
import {
  LLAMA_VARIANTS,
  writeRandomLlama,
  type LlamaVariant,
} from "../../cpu/infer/random-llama.js";
import { cudaExecutorOf } from "../../../../src/engine/gpu.js";
import { writeRandomModel } from "../../../models/random-model.js";
import { KIN, kinFolder } from "./random-kin.js";
import { roundedModel } from "../../../engine/rounded.js";
import { describeInference } from "../../inference-suite.js";
import { CHECKS } from "./checks.js";
import { describeExecutor } from "./executor-suite.js";
import { END_LAYER_CHECKS } from "./checks/end-layers.js";

/** Registers a test per check; they share a device, opened by the first. */
export function registerEngineChecks(): void {
  let device: CudaEngineDevice | undefined;
  for (const [title, checks] of [
    ["engine kernels", CHECKS],
    ["CUDA executor, kernels around the blocks", END_LAYER_CHECKS],
  ] as const)
    describe(title, () => {
      for (const { name, run } of checks)
        it(name, () => {
          device ??= new CudaEngineDevice();
          expect(run(device)).toBeLessThanOrEqual(1);
        });
    });
}

const VARIANTS: Readonly<Record<string, LlamaVariant>> = {
  window: { ...LLAMA_VARIANTS["mistral, a window of 70"], head_dim: 32 },
  biases: { ...LLAMA_VARIANTS["qwen2, biases"], head_dim: 32 },
  wide: { ...LLAMA_VARIANTS["qwen3, head norms, heads wider than the states"], head_dim: 128 },
};

/** A text for the trained model. */
const TEXT = `The river rises in the hills above the town and runs for some forty miles to the sea. In the spring, when the
snow melts, it carries more water than at any other time of the year, and the meadows along its lower course are often
under water for weeks. People have lived here since the bronze age. They built their houses on the higher ground, kept
sheep and cattle, and traded salt and wool with the towns further south. The first bridge was made of wood; it was
destroyed by ice in the winter of 1784 and replaced by one of stone, which still stands. The railway came in 1861, and
with it the mills. For almost a century most families of the valley worked in them, until the last one closed in 1959.
Today the old buildings hold a museum, a school of music and a number of small companies. The population, which had
fallen to less than three thousand, has grown again. In summer there is a market on every Saturday, and in the second week
of August a festival that brings visitors from all parts of the country. The climate is mild and wet. The mean temperature
of January is three degrees, that of July sixteen, and rain falls on about two hundred days of the year.`;

/** Registers the executor's suite on the GPU. */
export function registerExecutor(print: (line: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), "planish-cuda-"));
  const ids = Int32Array.from({ length: 320 }, (_, i) => (i * i * 7 + 3 * i + 5) % 61);
  let text: Int32Array | undefined;
  const tiny = () => {
    const path = process.env.PLANISH_TINY_LLAMA;
    if (!path) throw new PlanishError("PLANISH_TINY_LLAMA must name models/tiny-llama");
    return path;
  };
  const trained = {
    path: tiny,
    text: () => {
      if (text) return text;
      using checkpoint = openCheckpoint(tiny());
      return (text = Int32Array.from(loadTokenizer(checkpoint).encode(TEXT)));
    },
  };
  const random = (name: string) => ({ path: () => join(directory, name), text: () => ids });
  beforeAll(async () => {
    for (const [name, variant] of Object.entries(VARIANTS))
      await writeRandomLlama(join(directory, name), variant, 5);
    for (const [name, { json, biases }] of Object.entries(KIN))
      await writeRandomModel(join(directory, kinFolder(name)), json, 5, biases);
  });
  describeInference({
    name: "cuda",
    model: () => roundedModel(join(directory, "window"), "w4a4kv4"),
    open: ({ source }) => cudaExecutorOf(source, new CudaEngineDevice()),
    oracle: () => createReferenceBackend({ realType: "f64" }),
    text: () => ids,
  });
  describeExecutor({
    device: () => new CudaEngineDevice(),
    backend: () => createReferenceBackend({ realType: "f64" }),
    rounds: true,
    tokens: 100,
    print,
    cases: [
      { name: "window", scheme: "w4a4kv4", ...random("window") },
      { name: "biases, transforms", scheme: "w3a6kv2", transforms: true, ...random("biases") },
      { name: "wide, transforms", scheme: "w8a8kv4", transforms: true, ...random("wide") },
      { name: "two blocks of tiny-llama", scheme: "w4a4kv4", layers: 2, ...trained },
      {
        name: "tiny-llama, transforms",
        scheme: "w4a4kv4",
        transforms: true,
        deep: true,
        ...trained,
      },
      { name: "tiny-llama", scheme: "w4a8kv16", rough: true, deep: true, ...trained },
      { name: "two blocks of tiny-llama", scheme: "w4g64a4g64kv4h8", layers: 2, ...trained },
      {
        name: "two blocks of tiny-llama, transforms",
        scheme: "w4g32oa8kv4h4",
        transforms: true,
        layers: 2,
        ...trained,
      },
      { name: "window", scheme: "w6g16oa4g16okv4h6g16", ...random("window") },
      ...Object.keys(KIN).map((name) => ({
        ...{ name, scheme: "w4a4kv4", transforms: true, ...random(kinFolder(name)) },
      })),
    ],
  });
}
