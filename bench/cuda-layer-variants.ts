/**
 * Decoding of one sequence in the layer of cuda-layer.ts, with what the launchers can switch on and off: each variant's
 * time, in turns, whether its bits are those of the first, and what each kernel adds.
 * `npx tsx bench/cuda-layer-variants.ts [--batch N] [--rounds N] [--no-fp16]`
 */
import type { Tuning } from "../src/engine/cuda/kernels.js";
import { halfCalls, halfLayer } from "./cuda-layer-fp16.js";
import {
  filledCaches,
  quantizedCalls,
  quantizedLayer,
  runAll,
  type Options,
} from "./cuda-layer-quantized.js";
import {
  CACHED,
  LAYERS,
  blas,
  capture,
  device,
  driver,
  kernels,
  print,
  spaceFor,
  stepOf,
  stream,
  timed,
  type Calls,
} from "./cuda-layer-setup.js";

const numberAfter = (flag: string, otherwise: number) => {
  const at = process.argv.indexOf(flag);
  return at > 0 ? Number(process.argv[at + 1]) : otherwise;
};
const batch = numberAfter("--batch", 1);
const rounds = numberAfter("--rounds", 41);
const MEBIBYTE = 2 ** 20;

const OFF: Tuning = {
  clusters: false,
  early: false,
  prefetch: 0,
  once: false,
  tables: false,
  staged: false,
  short: false,
  next: false,
};
const ALL: Tuning = {
  clusters: true,
  early: true,
  prefetch: 2,
  once: false,
  tables: true,
  staged: true,
  short: true,
  next: true,
};
const VARIANTS: readonly (readonly [string, Tuning, number?])[] = [
  ["as before", OFF],
  ["all", ALL],
  ["only clusters", { ...OFF, clusters: true }],
  ["only early reads of products", { ...OFF, early: true }],
  ["only prefetch, own", { ...OFF, prefetch: 1 }],
  ["only prefetch, late blocks' too", { ...OFF, prefetch: 2 }],
  ["only tables before the wait", { ...OFF, tables: true }],
  ["only staged scales in attention", { ...OFF, staged: true }],
  ["only short heads", { ...OFF, short: true }],
  ["only next weights by heads, attention", { ...OFF, next: true }],
  ["all but clusters", { ...ALL, clusters: false }],
  ["all but early reads", { ...ALL, early: false }],
  ["all but prefetch", { ...ALL, prefetch: 0 }],
  ["all, prefetch by halves", { ...ALL, prefetch: 3 }],
  ["all, prefetch by halves, next 24 MB", { ...ALL, prefetch: 3 }, 24 * MEBIBYTE],
  ["all, prefetch own only", { ...ALL, prefetch: 1 }],
  ["all but tables", { ...ALL, tables: false }],
  ["all but staged scales", { ...ALL, staged: false }],
  ["all but short heads", { ...ALL, short: false }],
  ["all but next weights", { ...ALL, next: false }],
  ["all, next 4 MB", ALL, 4 * MEBIBYTE],
  ["all, next 8 MB", ALL, 8 * MEBIBYTE],
  ["all, next 24 MB", ALL, 24 * MEBIBYTE],
  ["all, next 32 MB", ALL, 32 * MEBIBYTE],
  ["all, weights read once", { ...ALL, once: true }],
  ["all, weights read once, next 32 MB", { ...ALL, once: true }, 32 * MEBIBYTE],
];

print(`${driver.info.name}, ${driver.info.multiprocessors} multiprocessors, batch ${batch}`);
const began = performance.now();
const layers = Array.from({ length: LAYERS }, quantizedLayer);
const step = stepOf(batch, 1, CACHED);
const space = spaceFor(batch, false);
const caches = filledCaches(batch, 4);
const options: Options = { transforms: true, precise: true, halves: false };
const callsWith = (ahead?: number): Calls[] =>
  layers.map((layer, i) =>
    quantizedCalls(kernels, layer, caches[i], step, space, { ...options, ahead }),
  );
const prepare = () => {
  driver.copyOnDevice(space.x, space.x0, space.xBytes, stream);
};
prepare();
const captured = (tuning: Tuning, enqueue: () => void) => {
  Object.assign(kernels.tuning, tuning);
  return capture(enqueue);
};

const fp16: (readonly [string, () => number])[] = [];
let prepareAll = prepare;
if (!process.argv.includes("--no-fp16")) {
  const half = Array.from({ length: LAYERS }, halfLayer);
  const halfSpace = spaceFor(batch, true);
  const halfCaches = filledCaches(batch, 16);
  const calls = half.map((layer, i) => halfCalls(kernels, layer, halfCaches[i], step, halfSpace));
  prepareAll = () => {
    prepare();
    driver.copyOnDevice(halfSpace.x, halfSpace.x0, halfSpace.xBytes, stream);
  };
  prepareAll();
  fp16.push(["FP16", () => captured(OFF, () => runAll(calls))]);
}
const graphs = [
  ...VARIANTS.map(([, tuning, ahead]) => {
    const calls = callsWith(ahead);
    return captured(tuning, () => runAll(calls));
  }),
  ...fp16.map(([, make]) => make()),
];
print(`set up in ${((performance.now() - began) / 1000).toFixed(1)} s`);
const outputs = graphs.slice(0, VARIANTS.length).map((graph) => {
  prepare();
  driver.launchGraph(graph, stream);
  return Buffer.from(device.read(space.x, new Uint8Array(space.xBytes)).buffer);
});
const times = timed(graphs, prepareAll, rounds).map((time) => time / LAYERS);
const names = [...VARIANTS.map(([name]) => name), ...fp16.map(([name]) => name)];
names.forEach((name, i) => {
  const same = i >= outputs.length || outputs[i].equals(outputs[0]);
  print(
    `${name.padEnd(40)} ${times[i].toFixed(1).padStart(7)} µs${same ? "" : "   OTHER BITS THAN BEFORE"}`,
  );
});
if (fp16.length > 0)
  print(
    `FP16 / W4A4KV4: ${(times.at(-1)! / times[0]).toFixed(2)} before, ${(times.at(-1)! / times[1]).toFixed(2)} with all`,
  );
graphs.forEach((graph) => driver.destroyGraph(graph));

for (const [name, tuning] of VARIANTS.slice(0, 2)) {
  const calls = callsWith();
  const parts = calls[0].map(([part]) => part);
  const alone = parts.map((part) => captured(tuning, () => runAll(calls, part)));
  const prefixes = parts.map((_, n) =>
    captured(tuning, () => runAll(calls.map((c) => c.slice(0, n + 1)))),
  );
  // Cut out of the whole: what the layer would take without the kernel (its results are then meaningless).
  const without = parts.map((part) =>
    captured(tuning, () => runAll(calls.map((c) => c.filter(([other]) => other !== part)))),
  );
  const all = timed([...alone, ...prefixes, ...without], prepare, 11).map((t) => t / LAYERS);
  const row = (of: (n: number) => number) =>
    parts.map((part, n) => `${part} ${of(n).toFixed(1)}`).join(", ");
  const whole = times[name === VARIANTS[0][0] ? 0 : 1];
  print(`${name}, each alone: ${row((n) => all[n])}`);
  print(
    `${name}, added to those before: ${row((n) => all[parts.length + n] - (n > 0 ? all[parts.length + n - 1] : 0))}`,
  );
  print(`${name}, missed when left out: ${row((n) => whole - all[2 * parts.length + n])}`);
  [...alone, ...prefixes, ...without].forEach((graph) => driver.destroyGraph(graph));
}
print(`done in ${((performance.now() - began) / 1000).toFixed(1)} s`);
blas[Symbol.dispose]();
device[Symbol.dispose]();
