/**
 * What models cost in the engine beside each other: prompt tokens per second in alternating rounds, the share of each kind of
 * operation, and memory, each model in a process of its own.
 *
 *   npx tsx bench/engine-cost.ts [--tokens 512] [--rounds 7] MODEL…
 *
 * The first model is what the others' speed is a ratio to. Memory: what the kernel says of a fresh process (VmHWM, VmRSS),
 * minus those of one that loaded the same code and no model.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { basename } from "node:path";
import { parseArgs } from "node:util";
import { loadNativeLibrary } from "../src/backend/cpu/library.js";
import { openIntegerExecutor, type IntegerExecutor } from "../src/engine/processor.js";

const { values, positionals } = parseArgs({
  options: {
    tokens: { type: "string", default: "512" },
    rounds: { type: "string", default: "7" },
    memory: { type: "string" },
  },
  allowPositionals: true,
});
const tokens = Number(values.tokens);

/** Ids spread over the vocabulary: what they are changes no timing. */
function prompt(engine: IntegerExecutor): Int32Array {
  return Int32Array.from({ length: tokens }, (_, i) => (i * 7919 + 3) % engine.shape.vocabSize);
}

function prepare(engine: IntegerExecutor): () => void {
  const pages = Int32Array.from({ length: Math.ceil(tokens / engine.pageTokens) }, (_, i) => i);
  engine.reserve(pages.length);
  const ids = prompt(engine);
  return () => void engine.step([{ tokens: ids, start: 0, pages, logits: "last" }]);
}

function resident(): { peak: number; now: number } {
  const status = readFileSync("/proc/self/status", "utf8");
  const of = (name: string) => 1024 * Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1]);
  return { peak: of("VmHWM"), now: of("VmRSS") };
}

const median = (x: readonly number[]) => x.toSorted((a, b) => a - b)[Math.floor(x.length / 2)];
const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);

if (values.memory !== undefined) {
  // A child: one model, or none.
  loadNativeLibrary();
  let facts = {};
  if (values.memory !== "") {
    const engine = openIntegerExecutor(values.memory);
    prepare(engine)();
    const { weightBytes, bytesPerPage, pageTokens } = engine;
    facts = { weightBytes, cacheBytes: bytesPerPage * Math.ceil(tokens / pageTokens) };
  }
  process.stdout.write(JSON.stringify({ ...resident(), ...facts }));
} else {
  const engines = positionals.map((path) => openIntegerExecutor(path));
  const steps = engines.map(prepare);
  const seconds = engines.map((): number[] => []);
  for (let round = 0; round <= Number(values.rounds); round++)
    steps.forEach((step, i) => {
      const started = performance.now();
      step();
      // The first round warms up.
      if (round > 0) seconds[i].push((performance.now() - started) / 1000);
    });
  process.stdout.write(`${engines[0].description.replace(/, w\d.*/, "")}, ${tokens} tokens\n`);
  engines.forEach((engine, i) => {
    engine.startProfile();
    for (let round = 0; round < 5; round++) steps[i]();
    const parts = Object.entries(engine.profile() ?? {});
    const total = parts.reduce((sum, [, spent]) => sum + spent, 0);
    const shares = parts
      .filter(([, spent]) => spent > 0.004 * total)
      .sort(([, a], [, b]) => b - a)
      .map(([name, spent]) => `${name} ${((100 * spent) / total).toFixed(1)}%`);
    const [own, first] = [median(seconds[i]), median(seconds[0])];
    const spread = [Math.min(...seconds[i]), Math.max(...seconds[i])].map((s) =>
      (tokens / s).toFixed(0),
    );
    process.stdout.write(
      `${basename(positionals[i])}: ${(tokens / own).toFixed(0)} tokens/s (${spread[1]} to ${spread[0]}), ${(first / own).toFixed(2)}×; ${shares.join(", ")}\n`,
    );
  });
  for (const engine of engines) engine[Symbol.dispose]();
  const measure = (path: string) =>
    JSON.parse(
      execFileSync(
        process.execPath,
        [
          ...process.execArgv,
          fileURLToPath(import.meta.url),
          "--tokens",
          values.tokens,
          "--memory",
          path,
        ],
        { encoding: "utf8" },
      ),
    ) as { peak: number; now: number; weightBytes: number; cacheBytes: number };
  const empty = measure("");
  process.stdout.write(`no model: peak ${megabytes(empty.peak)} MB\n`);
  for (const path of positionals) {
    const { peak, now, weightBytes, cacheBytes } = measure(path);
    process.stdout.write(
      `${basename(path)}: weights ${megabytes(weightBytes)} MB, cache of ${tokens} tokens ${megabytes(cacheBytes)} MB, after a prompt ${megabytes(now - empty.now)} MB, peak ${megabytes(peak - empty.peak)} MB beyond that\n`,
    );
  }
}
