/**
 * One training step of a SmolLM2-shaped block (batch 4 × 2048, six sites, W4A4KV4, random weights) on the CPU kernels:
 * time, peak memory, time by kernel, and the rate of the large products beside the ceilings measured in the same run.
 *
 *   npx tsx bench/cpu-step.ts [threads]
 */
import { createCpuBackend } from "../src/backend/cpu/train/backend.js";
import { profiledBackend } from "../src/backend/contract/profile.js";
import { config, trainingStep } from "./training-step.js";

const BATCH = 4;
const TIME = 2048;
const REPEATS = 5;

const threads = process.argv[2] === undefined ? undefined : Number(process.argv[2]);
const backend = profiledBackend(createCpuBackend({ threads }));
using step = trainingStep(backend, BATCH, TIME);

step.step();
backend.reset();
const seconds = Array.from({ length: REPEATS }, () => {
  const start = performance.now();
  step.step();
  return (performance.now() - start) / 1000;
}).sort((a, b) => a - b);
const median = seconds[Math.floor(REPEATS / 2)];
// Three products a linear in a step, and attention's: two forward and five backward, halved by causality.
const attention = (2 + 5) * BATCH * TIME * TIME * config.hiddenSize;
const operations = 6 * step.weights * BATCH * TIME + attention;
const print = (line: string) => process.stdout.write(`${line}\n`);
print(backend.description);
print(
  `step: ${(1000 * median).toFixed(0)} ms (${seconds.map((s) => (1000 * s).toFixed(0)).join(", ")}), ` +
    `${(operations / median / 1e9).toFixed(0)} GFLOP/s in products, peak ${(step.peakBytes / 1e6).toFixed(0)} MB of activations; ` +
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
