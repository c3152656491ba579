/**
 * The engine on the GPU end to end: tokens per second of `CudaExecutor.step`, host time included (tables, launches or
 * graph, logits back), of a model of LLaMA-2-7B's shape with random W4A4KV4 weights, made on the device. Decoding with
 * 2048 cached tokens per sequence: with graphs and without, and with the cache cut by the number of sequences instead of
 * always alike. Medians, in turns. `npm run bench:cuda:engine` [--json FILE] [--layers N]
 */
import { writeFileSync } from "node:fs";
import type { ModelConfig } from "../src/models/config.js";
import { CudaEngineDevice } from "../src/backend/cuda/infer/device.js";
import { CudaExecutor, type CudaExecutorOptions } from "../src/backend/cuda/infer/executor.js";
import {
  featureTiles,
  packedBytes,
  paddedHalves,
  siteGeometry,
} from "../src/backend/cuda/infer/layout.js";
import {
  groupLinears,
  type CudaBlock,
  type CudaModel,
  type CudaSite,
} from "../src/backend/cuda/infer/weights.js";
import { blockPrograms } from "../src/models/architectures/index.js";

const print = (line: string) => process.stdout.write(`${line}\n`);
const argument = (name: string) => {
  const at = process.argv.indexOf(name);
  return at > 0 ? process.argv[at + 1] : undefined;
};
const jsonFile = argument("--json");
const layers = Number(argument("--layers") ?? 32);
const results: Record<string, number | string> = {};

const CACHED = 2048;
const config: ModelConfig = {
  architecture: "llama",
  hiddenSize: 4096,
  intermediateSize: 11008,
  numLayers: layers,
  numHeads: 32,
  numKvHeads: 32,
  headDim: 128,
  vocabSize: 32000,
  maxPositions: 4096,
  norm: { kind: "rms", epsilon: 1e-5 },
  positions: { kind: "rope", theta: 10000, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: false,
};
const { hiddenSize, intermediateSize, numHeads, headDim, vocabSize } = config;

const device = new CudaEngineDevice();
const { kernels } = device;
let seed = 1;

function random(kind: "bytes" | "halves" | "floats", count: number, deviation = 1): number {
  const pointer = device.allocate(count * { bytes: 1, halves: 2, floats: 4 }[kind]);
  kernels.randomFill(pointer, count, kind, seed++, deviation);
  return pointer;
}

function matrix(size: number, padded: number): number {
  const values = Float32Array.from(
    { length: size * size },
    () => (Math.random() - 0.5) * Math.sqrt(12 / size),
  );
  return device.put(paddedHalves(values, size, padded));
}

/** `sets`: a set of codes for every linear, as artifacts with clips of their own have; else one for the site. */
function site(
  left: number,
  right: number,
  hasRight: boolean,
  rows: readonly number[],
  gated: boolean,
  sets: boolean,
): CudaSite {
  const shape = { left, right, hasLeft: true, hasRight };
  const geometry = siteGeometry(shape);
  const setOf = rows.map((_, i) => (sets ? i : 0));
  const columns = left * right;
  return {
    shape,
    precise: true,
    left: matrix(left, geometry.rows),
    right: hasRight ? matrix(right, geometry.columns) : undefined,
    clips: device.put(new Float32Array(2 * rows.length).fill(0.98)),
    sets: sets ? rows.length : 1,
    bits: 4,
    grid: {},
    products: groupLinears(rows, setOf, gated).map(({ members, gated: paired, setTiles }) => {
      const order = { rows: members.reduce((sum, i) => sum + rows[i], 0), gated: paired };
      const scale = new Float32Array(featureTiles(order) * 256).fill(0.06 / Math.sqrt(columns));
      return {
        order,
        columns,
        bits: 4 as const,
        weights: random("bytes", packedBytes(order, columns, 4)),
        featureScale: device.put(scale),
        set: setOf[members[0]],
        setTiles,
        column: rows.slice(0, members[0]).reduce((sum, count) => sum + count, 0),
      };
    }),
  };
}

const ones = device.put(new Float32Array(intermediateSize).fill(1));
const factors = device.put(new Float32Array(4).fill(0.98));

function block(sets: boolean): CudaBlock {
  return {
    gains: { input: ones, post: ones },
    biases: {},
    factors: {},
    sites: {
      attn_in: site(64, 64, true, [hiddenSize, hiddenSize, hiddenSize], false, sets),
      attn_out: site(numHeads, headDim, false, [hiddenSize], false, sets),
      mlp_in: site(64, 64, true, [intermediateSize, intermediateSize], true, sets),
      mlp_down: site(86, 128, true, [hiddenSize], false, sets),
    },
    queryMatrix: matrix(headDim, headDim),
    keyMatrix: matrix(headDim, headDim),
    cacheFactors: factors,
  };
}

const embedding = { pointer: random("halves", vocabSize * hiddenSize), bf16: false };
const head = { pointer: random("halves", vocabSize * hiddenSize, 0.02), bf16: false };

function modelOf(sets: boolean): CudaModel {
  return {
    shape: { hiddenSize, vocabSize, maxPositions: config.maxPositions, learnedPositions: false },
    programs: blockPrograms(config),
    scheme: { weightBits: 4, activationBits: 4, kvBits: 4 },
    blocks: Array.from({ length: layers }, () => block(sets)),
    endLayers: { embedding, head, finalNorm: { kind: "rms", gain: ones, epsilon: 1e-5 } },
    weightBytes: 0,
  };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

const tokens = Int32Array.from({ length: 8192 }, (_, i) => 100 + ((i * 7919) % (vocabSize - 200)));
const pagesEach = CACHED / 64 + 2;

/** An executor whose sequences hold CACHED tokens each. */
async function filled(
  model: CudaModel,
  sequences: number,
  options: CudaExecutorOptions = {},
): Promise<CudaExecutor> {
  const engine = new CudaExecutor(device, model, options);
  engine.reserve(sequences * pagesEach);
  await engine.step([
    { tokens: tokens.subarray(0, CACHED), start: 0, pages: pagesOf(0), logits: "none" },
  ]);
  for (let s = 1; s < sequences; s++)
    for (let p = 0; p < CACHED / 64; p++) engine.copyPage(p, s * pagesEach + p);
  return engine;
}

function pagesOf(sequence: number): Int32Array {
  return Int32Array.from({ length: pagesEach }, (_, i) => sequence * pagesEach + i);
}

async function decodeStep(engine: CudaExecutor, batch: number, position: number): Promise<number> {
  const start = performance.now();
  const logits = await engine.step(
    Array.from({ length: batch }, (_, s) => ({
      tokens: tokens.subarray(s + position, s + position + 1),
      start: position,
      pages: pagesOf(s),
      logits: "last" as const,
    })),
  );
  const time = performance.now() - start;
  if (!logits.every((row) => row?.every(Number.isFinite))) throw new Error("logits are not finite");
  return time;
}

async function prefillTime(engine: CudaExecutor, length: number, rounds = 5): Promise<number> {
  const times: number[] = [];
  for (let round = -1; round < rounds; round++) {
    const start = performance.now();
    await engine.step([
      { tokens: tokens.subarray(0, length), start: 0, pages: pagesOf(0), logits: "last" },
    ]);
    if (round >= 0) times.push(performance.now() - start);
  }
  return median(times);
}

async function measure(title: string, sets: boolean, batches: readonly number[]): Promise<void> {
  const model = modelOf(sets);
  const engine = await filled(model, 1);
  if (title !== "") print(`${title}: ${engine.description}`);
  for (const length of [512, 2048]) {
    const time = await prefillTime(engine, length);
    print(
      `  prefill ${length}: ${time.toFixed(2)} ms, ${((1000 * length) / time).toFixed(0)} tokens/s, ${((1000 * time) / layers).toFixed(0)} µs per layer`,
    );
    results[`${title}: prefill ${length} ms`] = time;
  }
  for (const batch of batches) {
    const variants: [string, CudaExecutor][] = [
      ["graphs", await filled(model, batch)],
      ["no graphs", await filled(model, batch, { graphs: false })],
      [
        "splits by the batch",
        await filled(model, batch, {
          splits: kernels.splitsFor({ heads: numHeads, kvHeads: numHeads }, batch, pagesEach),
        }),
      ],
    ];
    const times = variants.map((): number[] => []);
    // The first two steps load and capture.
    for (let round = -3; round < 21; round++)
      for (const [i, [, each]] of variants.entries()) {
        const time = await decodeStep(each, batch, CACHED + round + 3);
        if (round >= 0) times[i].push(time);
      }
    variants.forEach(([name], i) => {
      const time = median(times[i]);
      print(
        `  decode batch ${batch}, ${name}: ${time.toFixed(3)} ms, ${((1000 * batch) / time).toFixed(0)} tokens/s, ${((1000 * time) / layers).toFixed(1)} µs per layer`,
      );
      results[`${title}: decode ${batch} ${name} ms`] = time;
    });
    for (const [, each] of variants) each.release();
  }
  engine.release();
}

print(`${device.driver.info.name}, driver ${device.driver.info.driverVersion}, ${layers} layers`);
await measure("one set of codes per site", false, [1, 16, 64]);
await measure("a set of codes per linear", true, [1, 16]);
if (jsonFile) writeFileSync(jsonFile, `${JSON.stringify(results, null, 2)}\n`);
