/**
 * One training step of a LLaMA-3-8B-shaped block on the GPU (batch 4 × 2048, six sites, W4A4KV4, random weights): time,
 * peak memory and the time of each kernel, beside the ceilings measured in the same run.
 * Run: npm run bench:cuda (needs a GPU).
 */
import { createCudaBackend, type CudaBackend } from "../src/backend/cuda/train/backend.js";
import { Random } from "../src/common/random.js";
import { type ModelConfig } from "../src/models/config.js";
import { uploadBlock } from "../src/models/weights.js";
import { sitesOf } from "../src/backend/contract/program.js";
import { BatchFeed } from "../src/quantize/calibration/feed.js";
import type { Activations } from "../src/quantize/schema/windows.js";
import { BlockTrainer } from "../src/quantize/block/block-training.js";
import { initialParameters } from "../src/quantize/methods/flatquant/parameters.js";
import { flatQuantPresets } from "../src/quantize/methods/flatquant/recipe.js";
import { parameterRule } from "../src/quantize/methods/flatquant/train.js";
import { parameter, type Tensor } from "../src/tensor/tensor.js";
import { blockProgram } from "../src/models/architectures/index.js";
import { randomBlock } from "./random-block.js";

const print = (line: string) => process.stdout.write(`${line}\n`);
const BATCH = 4;
const TIME = 2048;
const REPEATS = 7;

const config: ModelConfig = {
  architecture: "llama",
  hiddenSize: 4096,
  intermediateSize: 14336,
  numLayers: 1,
  numHeads: 32,
  numKvHeads: 8,
  headDim: 128,
  vocabSize: 1,
  maxPositions: 8192,
  norm: { kind: "rms", epsilon: 1e-5 },
  positions: { kind: "rope", theta: 500000, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: true,
};
const scheme = { weightBits: 4, activationBits: 4, kvBits: 4 } as const;

/** Sums of three uniform numbers, scaled to unit variance: normal enough, and fast for hundreds of millions. */
function noise(random: Random, length: number, deviation: number): Float32Array {
  const values = new Float32Array(length);
  const scale = (deviation * 2) / 2 ** 32;
  for (let i = 0; i < length; i++)
    values[i] =
      scale * (random.nextUint32() + random.nextUint32() + random.nextUint32() - 1.5 * 2 ** 32);
  return values;
}

/** Median seconds between events around `run`. */
function median(backend: CudaBackend, run: () => void, repeats = REPEATS): number {
  const { driver, stream } = backend.context;
  const times = Array.from({ length: repeats }, () => {
    const [start, end] = [driver.createEvent(), driver.createEvent()];
    driver.record(start, stream);
    run();
    driver.record(end, stream);
    driver.synchronizeEvent(end);
    return driver.elapsed(start, end) / 1000;
  });
  return times.sort((a, b) => a - b)[Math.floor(repeats / 2)];
}

function ceilings(backend: CudaBackend): void {
  const [m, n, k] = [8192, 8192, 8192];
  const random = new Random(3);
  const { driver, stream, blas } = backend.context;
  for (const [type, outType, bytes] of [
    ["bf16", "bf16", 2],
    ["bf16", "f32", 2],
    ["i8", "i32", 1],
  ] as const) {
    const a = backend.alloc("u8", m * k * bytes);
    const b = backend.alloc("u8", n * k * bytes);
    const c = backend.alloc("f32", m * n);
    for (const operand of [a, b]) {
      // Random mantissas and signs with exponents near one, or random codes.
      const words = new Uint32Array((m * k * bytes) / 4);
      for (let i = 0; i < words.length; i++)
        words[i] =
          type === "i8" ? random.nextUint32() : (random.nextUint32() & 0x807f807f) | 0x3f003f00;
      backend.write(operand, new Uint8Array(words.buffer));
    }
    const pointer = (buffer: unknown) => (buffer as { pointer: number }).pointer;
    const run = () => {
      blas.gemm({
        ...{ m, n, k, batch: 1, type, outType, alpha: 1, beta: 0 },
        a: { pointer: pointer(a), stride: k, transposed: false, batchStride: 0 },
        b: { pointer: pointer(b), stride: k, transposed: true, batchStride: 0 },
        c: { pointer: pointer(c), stride: n, batchStride: 0 },
      });
    };
    run();
    const seconds = median(backend, run);
    print(
      `ceiling: ${type} → ${outType} product 8192³: ${((2 * m * n * k) / seconds / 1e12).toFixed(0)} T operations/s`,
    );
    for (const buffer of [a, b, c]) backend.free(buffer);
  }
  const size = 2 ** 30;
  const [from, to] = [backend.alloc("f32", size / 4), backend.alloc("f32", size / 4)];
  const copy = () => {
    backend.copy(from, to, size / 4);
  };
  copy();
  print(`ceiling: device copy ${((2 * size) / median(backend, copy) / 1e12).toFixed(2)} TB/s`);
  // Filled, since pages that were never written are slow to read at first.
  const host = new Float32Array(size / 16).fill(1);
  const start = performance.now();
  backend.write(from, host);
  driver.synchronize(stream);
  print(
    `host to device, through pinned stages: ${(host.byteLength / (performance.now() - start) / 1e6).toFixed(1)} GB/s`,
  );
  for (const buffer of [from, to]) backend.free(buffer);
}

const backend = createCudaBackend();
print(backend.description);
ceilings(backend);

const random = new Random(1);
const program = blockProgram(config, 0);
const block = randomBlock(program, (length, deviation) => noise(random, length, deviation));
const maxima = Object.fromEntries(
  sitesOf(program).map(({ site, width }) => [site, new Float64Array(width).fill(3)]),
);
const recipe = { ...flatQuantPresets.paper, precision: "bf16" as const };
const initial = initialParameters(block, program, scheme, recipe, maxima, random);
const weights = uploadBlock(backend, block);
const params = new Map<string, Tensor>();
for (const [name, { shape, data }] of initial) params.set(name, parameter(backend, shape, data));
print(`${params.size} parameters, ${(backend.memory().used / 1e9).toFixed(2)} GB with weights`);

const SHARES = 2;
const size = BATCH * TIME * config.hiddenSize;
const activations = (): Activations => ({
  data: noise(random, SHARES * size, 1),
  samples: SHARES * BATCH,
  time: TIME,
  hidden: config.hiddenSize,
});
const [inputs, targets] = [activations(), activations()];
const [input, target] = [backend.alloc("f32", size), backend.alloc("f32", size)];
backend.write(input, inputs.data.subarray(0, size));
backend.write(target, targets.data.subarray(0, size));
using trainer = new BlockTrainer({
  backend,
  block: { program, scheme },
  weights,
  params,
  precision: recipe.precision,
  finalLearningRate: recipe.finalLearningRate,
  rule: parameterRule(recipe),
  totalSteps: 1000,
  layer: 0,
  hidden: config.hiddenSize,
});
const batch = { input, target, sequences: BATCH };
const losses: number[] = [];
const step = () => {
  losses.push(trainer.step(batch));
};
backend.resetMemoryPeak();
step();
backend.synchronize();
print(`first step done, loss ${losses[0]}`);
step();
backend.synchronize();
const wall: number[] = [];
const seconds = median(backend, () => {
  const start = performance.now();
  step();
  wall.push((performance.now() - start) / 1000);
});
const start = performance.now();
for (let i = 0; i < REPEATS; i++) step();
backend.synchronize();
const together = (performance.now() - start) / 1000 / REPEATS;
const { peak } = backend.memory();
print(
  `step: ${(seconds * 1000).toFixed(1)} ms on the device (median of ${REPEATS}), ${(together * 1000).toFixed(1)} ms in a row, ` +
    `peak ${(peak / 1e9).toFixed(2)} GB with weights; JavaScript busy ${(Math.min(...wall) * 1000).toFixed(1)} ms`,
);
print(`losses ${losses.map((loss) => loss.toPrecision(5)).join(" ")}`);
const staged = Object.assign(Object.create(backend) as CudaBackend, { uploads: () => undefined });
for (const [where, device, share] of [
  ["on the device", backend, 1],
  ["travelling during the step before", backend, 0],
  ["travelling before the step", staged, 0],
] as const) {
  using feed = new BatchFeed(device, inputs, targets, share);
  const shareAt = (i: number) => ({ first: (i % SHARES) * BATCH, sequences: BATCH });
  const fed = (i: number) => trainer.step(feed.take(shareAt(i), shareAt(i + 1)));
  fed(0);
  backend.synchronize();
  const begin = performance.now();
  for (let i = 1; i <= REPEATS; i++) fed(i);
  backend.synchronize();
  print(
    `steps of a calibration set ${where}: ${((performance.now() - begin) / REPEATS).toFixed(1)} ms`,
  );
}
const times = backend.profile(step);
const sum = times.reduce((total, { seconds: s }) => total + s, 0);
print(`by kernel (one step with events around every call, ${(sum * 1000).toFixed(1)} ms in all):`);
for (const { kernel, calls, seconds: s } of times)
  print(
    `  ${kernel.padEnd(26)} ${String(calls).padStart(4)} calls ${(s * 1000).toFixed(3).padStart(9)} ms ${((100 * s) / sum).toFixed(1).padStart(5)}%`,
  );
