/**
 * One LLaMA-2-7B-shaped decoder layer on the GPU: W4A4KV4 with FlatQuant's transforms against FP16, both in captured
 * graphs, in one process, alternating. Prefill of 2048 tokens; one decoding step with 2048 cached tokens per sequence.
 *
 * FP16 is cuBLASLt with fused q/k/v and gate/up, the residual added by cuBLASLt, and the same attention kernels on a
 * cache of halves. Four layers of their own weights follow one another in a graph, so that weights come from memory and
 * not from the cache; times are per layer. Medians of CUDA events. `npx tsx bench/cuda-layer.ts
 * [--json FILE] [--only SCENARIO|ceilings] [--product mma-s4|mma-s8|dp4a]`; --product names another way to compute the
 * integer products than the one that suits the GPU; `--attention WAY,WAY…` times ways of decoding's attention instead
 * (cuda-layer-attention.ts).
 */
import { writeFileSync } from "node:fs";
import { packedBytes } from "../src/backend/cuda/infer/layout.js";
import type { PlainProduct } from "../src/backend/cuda/infer/requests.js";
import { attentionWays } from "./cuda-layer-attention.js";
import { halfCalls, halfLayer, type HalfLayer } from "./cuda-layer-fp16.js";
import {
  filledCaches,
  productOperations,
  quantizedCalls,
  quantizedLayer,
  runAll,
  type Options,
  type QuantizedLayer,
} from "./cuda-layer-quantized.js";
import {
  CACHED,
  LAYERS,
  blas,
  capture,
  device,
  driver,
  kernels,
  nextSeed,
  ones,
  plain,
  print,
  random,
  spaceFor,
  stepOf,
  stream,
  taken,
  timed,
  type Calls,
} from "./cuda-layer-setup.js";

const flag = process.argv.indexOf("--json");
const jsonFile = flag > 0 ? process.argv[flag + 1] : undefined;

/** Only the scenarios with this in their titles, or the ceilings. */
const onlyAt = process.argv.indexOf("--only");
const only = onlyAt > 0 ? process.argv[onlyAt + 1] : "";
/** Ways of decoding's attention, instead of everything else. */
const waysAt = process.argv.indexOf("--attention");
const ways = waysAt > 0 ? process.argv[waysAt + 1] : undefined;
const results: Record<string, number | string> = {};

function scenario(
  title: string,
  sequences: number,
  each: number,
  quantized: readonly QuantizedLayer[],
  half: readonly HalfLayer[],
): void {
  if (!title.includes(only)) return;
  const decoding = each === 1;
  const step = stepOf(sequences, each, decoding ? CACHED : 0);
  const space = spaceFor(step.rows, false);
  const halfSpace = spaceFor(step.rows, true);
  const caches = filledCaches(sequences, 4);
  const halfCaches = filledCaches(sequences, 16);
  const ours = (options: Options): Calls[] =>
    quantized.map((layer, i) => quantizedCalls(kernels, layer, caches[i], step, space, options));
  const best: Options = { transforms: true, precise: decoding, halves: !decoding };
  const variants: readonly (readonly [string, Calls[]])[] = [
    ["W4A4KV4", ours(best)],
    ["W4A4KV4 without transforms", ours({ ...best, transforms: false })],
    ["W4A4KV4, other precision of transforms", ours({ ...best, precise: !best.precise })],
    ["FP16", half.map((layer, i) => halfCalls(kernels, layer, halfCaches[i], step, halfSpace))],
    ["W4A4KV4, a set of codes per linear", ours({ ...best, perLinear: true })],
  ];
  const prepare = () => {
    driver.copyOnDevice(space.x, space.x0, space.xBytes, stream);
    driver.copyOnDevice(halfSpace.x, halfSpace.x0, halfSpace.xBytes, stream);
  };
  prepare();
  // Once outside of graphs, which must not hold the clearing of what kernels clear but once.
  variants.forEach(([, layers]) => runAll(layers));
  const graphs = variants.map(([, layers]) => capture(() => runAll(layers)));
  kernels.overlap = false;
  const ordered = capture(() => runAll(variants[0][1]));
  kernels.overlap = driver.info.capability >= 90;
  const times = timed([...graphs, ordered], prepare).map((t) => t / LAYERS);
  // Overlapped launches must not change a bit.
  const output = () => {
    prepare();
    driver.launchGraph(graphs[0], stream);
    return device.read(space.x, new Uint8Array(space.xBytes));
  };
  const first = output();
  prepare();
  driver.launchGraph(ordered, stream);
  const second = device.read(space.x, new Uint8Array(space.xBytes));
  const same = first.every((byte, i) => byte === second[i]);
  const finite = new Float32Array(first.buffer).every(Number.isFinite);
  // By itself: in turns with FP16 the GPU may lower its clock for all of them.
  const [alone] = timed([graphs[0]], prepare).map((t) => t / LAYERS);
  print(
    `${title}: ${same ? "overlap changes nothing" : "OVERLAP CHANGES THE RESULT"}, ${finite ? "finite" : "NOT FINITE"}`,
  );
  variants.forEach(([name], i) => {
    print(`  ${name.padEnd(44)} ${times[i].toFixed(1).padStart(8)} µs`);
    results[`${title}: ${name}`] = times[i];
  });
  print(
    `  ${"W4A4KV4 without overlapped launches".padEnd(44)} ${times[variants.length].toFixed(1).padStart(8)} µs\n` +
      `  ${"W4A4KV4, not in turns with the others".padEnd(44)} ${alone.toFixed(1).padStart(8)} µs`,
  );
  print(
    `  FP16 / W4A4KV4 = ${(times[3] / times[0]).toFixed(2)}; transforms' share ${((100 * (times[0] - times[1])) / times[0]).toFixed(1)}%`,
  );
  results[`${title}: ratio`] = times[3] / times[0];
  for (const index of [0, 3]) {
    const [name, layers] = variants[index];
    const names = [...new Set(layers[0].map(([call]) => call))];
    const parts = names.map((part) => capture(() => runAll(layers, part)));
    const spent = timed(parts, prepare, 9).map((t) => t / LAYERS);
    print(
      `  ${name}, each kernel in a graph of its own: ${names.map((part, i) => `${part} ${spent[i].toFixed(1)}`).join(", ")}`,
    );
    parts.forEach((graph) => driver.destroyGraph(graph));
    if (index === 0) {
      const operations = productOperations(quantized[0]);
      const rates = names.flatMap((part, i) => {
        const each = operations.get(part);
        return each === undefined
          ? []
          : [`${part} ${((each * step.rows) / spent[i] / 1e6).toFixed(1)}`];
      });
      print(`  products${plain ? ` by ${plain}` : ""}, T operations/s: ${rates.join(", ")}`);
    }
    if (index > 0 || !decoding) continue;
    // What each kernel adds to those before it, launches overlapping: graphs of the first 1, 2, … kernels of each layer.
    const prefixes = names.map((_, n) =>
      capture(() => runAll(layers.map((c) => c.slice(0, n + 1)))),
    );
    const reached = timed(prefixes, prepare, 9).map((t) => t / LAYERS);
    print(
      `  ${name}, added to the kernels before: ${names.map((part, i) => `${part} ${(reached[i] - (reached[i - 1] ?? 0)).toFixed(1)}`).join(", ")}`,
    );
    prefixes.forEach((graph) => driver.destroyGraph(graph));
  }
  [...graphs, ordered].forEach((graph) => driver.destroyGraph(graph));
  device.synchronize();
  for (const pointer of taken.splice(0)) device.free(pointer);
}

/** What this GPU does: copying, and products in the libraries' kernels and in ours. */
function ceilings(): void {
  const bytes = 2 ** 31;
  const [from, to] = [device.allocate(bytes), device.allocate(bytes)];
  kernels.randomFill(from, bytes, "bytes", nextSeed());
  const memory = [
    capture(() => kernels.streamWords(from, bytes, to)),
    capture(() => kernels.streamWords(from, bytes)),
  ];
  const [copied, read] = timed(memory, () => undefined);
  print(
    `memory: copy ${((2 * bytes) / copied / 1e6).toFixed(2)} TB/s (read and written), read ${(bytes / read / 1e6).toFixed(2)} TB/s`,
  );
  results["copy TB/s"] = (2 * bytes) / copied / 1e6;
  results["read TB/s"] = bytes / read / 1e6;
  device.free(from);
  device.free(to);
  const [m, n, k] = [8192, 4096, 4096];
  const operations = 2 * m * n * k;
  const a = random("halves", m * k);
  const b = random("halves", n * k);
  const out = device.allocate(m * n * 4);
  const dense = (type: "f16" | "bf16" | "i8") =>
    capture(() =>
      blas.gemm({
        m,
        n,
        k,
        batch: 1,
        type,
        outType: type === "i8" ? "i32" : type,
        a: { pointer: a, stride: k, transposed: false, batchStride: 0 },
        b: { pointer: b, stride: k, transposed: true, batchStride: 0 },
        c: { pointer: out, stride: n, batchStride: 0 },
        alpha: 1,
        beta: 0,
      }),
    );
  const own = (bits: 4 | 8, way?: PlainProduct) => {
    const order = { rows: n, gated: false };
    const weights = random("bytes", packedBytes(order, k, bits));
    return capture(() =>
      kernels.gemm({
        weights,
        bits,
        activationBits: bits,
        plain: way,
        order,
        columns: k,
        codes: a,
        tokenScale: ones,
        featureScale: ones,
        out,
        outStride: n,
        halves: true,
        tokens: m,
        capacity: m,
      }),
    );
  };
  const names = ["cuBLASLt f16", "cuBLASLt bf16", "cuBLASLt int8", "Planish w4", "Planish w8"];
  const graphs = [dense("f16"), dense("bf16"), dense("i8"), own(4), own(8)];
  if (plain) {
    names.push(`Planish w4 by ${plain}`);
    graphs.push(own(4, plain));
  }
  timed(graphs, () => undefined).forEach((time, i) => {
    print(
      `${names[i]} ${m}×${n}×${k}: ${time.toFixed(1)} µs, ${(operations / time / 1e6).toFixed(0)} T/s`,
    );
    results[`${names[i]} T/s`] = operations / time / 1e6;
    driver.destroyGraph(graphs[i]);
  });
  for (const pointer of [a, b, out]) device.free(pointer);
}

print(
  `${driver.info.name}, ${driver.info.multiprocessors} multiprocessors, driver ${driver.info.driverVersion}`,
);
if (ways !== undefined) attentionWays(ways, results);
else {
  if (only === "" || only === "ceilings") ceilings();
  const quantized = Array.from({ length: LAYERS }, quantizedLayer);
  const half = Array.from({ length: LAYERS }, halfLayer);
  scenario("prefill 2048", 1, 2048, quantized, half);
  for (const batch of [1, 16, 64]) scenario(`decode batch ${batch}`, batch, 1, quantized, half);
}
blas[Symbol.dispose]();
device[Symbol.dispose]();
if (jsonFile) writeFileSync(jsonFile, `${JSON.stringify(results, null, 2)}\n`);
