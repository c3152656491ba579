/**
 * One training step of a SmolLM2-shaped block (batch 4 × 2048, six sites, W4A4KV4, random weights) on the CPU kernels:
 * time, peak memory, time by kernel, and the rate of the large products beside the ceilings measured in the same run.
 *
 *   npx tsx bench/cpu-step.ts [threads]
 */
import { createCpuBackend } from "../src/backend/cpu/train/backend.js";
import { profiledBackend } from "../src/backend/contract/profile.js";
import { Random } from "../src/common/random.js";
import { type ModelConfig } from "../src/models/config.js";
import { uploadBlock } from "../src/models/weights.js";
import { sitesOf } from "../src/backend/contract/program.js";
import { BlockTrainer } from "../src/quantize/block/block-training.js";
import { initialParameters } from "../src/quantize/methods/flatquant/parameters.js";
import { flatQuantPresets } from "../src/quantize/methods/flatquant/recipe.js";
import { parameterRule } from "../src/quantize/methods/flatquant/train.js";
import { parameter } from "../src/tensor/tensor.js";
import { blockProgram } from "../src/models/architectures/index.js";
import { randomBlock } from "./random-block.js";

const BATCH = 4;
const TIME = 2048;
const REPEATS = 5;
const config: ModelConfig = {
  architecture: "llama",
  hiddenSize: 576,
  intermediateSize: 1536,
  numLayers: 1,
  numHeads: 9,
  numKvHeads: 3,
  headDim: 64,
  vocabSize: 1,
  maxPositions: 2048,
  norm: { kind: "rms", epsilon: 1e-5 },
  positions: { kind: "rope", theta: 100000, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: true,
};
const scheme = { weightBits: 4, activationBits: 4, kvBits: 4 } as const;

function noise(random: Random, length: number, deviation: number): Float32Array {
  return Float32Array.from({ length }, () => deviation * random.normal());
}

const threads = process.argv[2] === undefined ? undefined : Number(process.argv[2]);
const backend = profiledBackend(createCpuBackend({ threads }));
const random = Random.for(1, "step");
const program = blockProgram(config, 0);
const block = randomBlock(program, (length, deviation) => noise(random, length, deviation));
const maxima = Object.fromEntries(
  sitesOf(program).map(({ site, width }) => [site, new Float64Array(width).fill(3)]),
);
const recipe = flatQuantPresets.paper;
const params = new Map(
  [...initialParameters(block, program, scheme, recipe, maxima, random)].map(
    ([name, { shape, data }]) => [name, parameter(backend, shape, data)],
  ),
);
using trainer = new BlockTrainer({
  backend,
  block: { program, scheme },
  weights: uploadBlock(backend, block),
  params,
  precision: "bf16",
  finalLearningRate: recipe.finalLearningRate,
  rule: parameterRule(recipe),
  totalSteps: 1000,
  layer: 0,
  hidden: config.hiddenSize,
});
const size = BATCH * TIME * config.hiddenSize;
const batch = { input: noise(random, size, 1), target: noise(random, size, 1), sequences: BATCH };

trainer.step(batch);
backend.reset();
const seconds = Array.from({ length: REPEATS }, () => {
  const start = performance.now();
  trainer.step(batch);
  return (performance.now() - start) / 1000;
}).sort((a, b) => a - b);
const median = seconds[Math.floor(REPEATS / 2)];
// Three products a linear in a step, and attention's: two forward and five backward, halved by causality.
const weights = Object.values(block.linears).reduce((sum, l) => sum + l.weight.data.length, 0);
const attention = (2 + 5) * BATCH * TIME * TIME * config.hiddenSize;
const operations = 6 * weights * BATCH * TIME + attention;
const print = (line: string) => process.stdout.write(`${line}\n`);
print(backend.description);
print(
  `step: ${(1000 * median).toFixed(0)} ms (${seconds.map((s) => (1000 * s).toFixed(0)).join(", ")}), ` +
    `${(operations / median / 1e9).toFixed(0)} GFLOP/s in products, peak ${(trainer.peakBytes / 1e6).toFixed(0)} MB of activations; ` +
    `30 blocks × 480 steps: ${((30 * 480 * median) / 3600).toFixed(2)} h`,
);
const total = seconds.reduce((sum, s) => sum + s, 0);
let known = 0;
for (const { kernel, calls, seconds: s } of backend.times()) {
  known += s;
  if (s / total > 0.003)
    print(
      `  ${kernel.padEnd(24)} ${String(calls / REPEATS).padStart(5)} calls ${((1000 * s) / REPEATS).toFixed(1).padStart(8)} ms ${((100 * s) / total).toFixed(1).padStart(5)}%`,
    );
}
print(`  ${"outside kernels".padEnd(38)} ${((100 * (total - known)) / total).toFixed(1)}%`);
