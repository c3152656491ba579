/**
 * Two builds of the native library, kernel by kernel: what one compiler makes of the sources beside another.
 *
 *   npx tsx bench/compilers.ts A.so B.so [--level avx2] [--threads 2] [--rounds 15]
 *
 * Method. A library is one per process, so each is loaded by a process of its own; they take turns, round by round, and
 * sleep meanwhile. A round is one training step of a SmolLM2-shaped block (4 × 512 tokens), timed by kernel, and the
 * engine's kernels one by one. Printed are the ratio of each side's best times, which a busy machine disturbs least, and the
 * median and quartiles of the ratios within each round: above 1, B is faster.
 */
import { fork, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createCpuBackend } from "../src/backend/cpu/train/backend.js";
import { engineKernels } from "../src/backend/cpu/infer/kernels.js";
import { profiledBackend } from "../src/backend/contract/profile.js";
import { trainingStep } from "./training-step.js";

type Times = Readonly<Record<string, number>>;

function codes(length: number, bits: number): Int8Array {
  const half = 2 ** (bits - 1);
  return Int8Array.from({ length }, (_, i) => ((i * 7919) % (2 * half)) - half);
}
const reals = (length: number) => Float32Array.from(codes(length, 8), (code) => code / 64);

/** Every kernel of the engine at a prompt's size and at one row. */
function engineJobs(): Record<string, () => void> {
  const kernels = engineKernels();
  const [k, n, most] = [1536, 1536, 512];
  const out = new Float32Array(most * n);
  const ones = new Float32Array(n).fill(1);
  const jobs: Record<string, () => void> = {};
  for (const kind of ["int4", "int8", "int4F32", "bf16Bf16"] as const) {
    const integer = kind === "int4" || kind === "int8";
    const bits = kind === "int8" ? 8 : 4;
    const source = kind === "bf16Bf16" ? reals(n * k) : codes(n * k, bits);
    const weights = kernels.packWeights(kind, n, k, source);
    const a = integer ? codes(most * k, bits) : reals(most * k);
    const scales = { aScale: integer ? ones : undefined, bScale: integer ? ones : undefined };
    for (const m of [1, 16, most])
      jobs[`packed ${kind} M=${m}`] = () => {
        kernels.packedProduct({ m, a, weights, out, ...scales });
      };
  }
  const rows = 512;
  for (const [nLeft, nRight] of [
    [24, 24],
    [32, 48],
    [64, 64],
  ]) {
    const width = nLeft * nRight;
    const [x, x2] = [reals(rows * width), reals(rows * width)];
    const common = { rows, nLeft, nRight, bits: 4, clips: [[4, 4]] as const, x };
    const result = { codes: new Int8Array(rows * width), scale: new Float32Array(rows) };
    const [left, right, gain] = [reals(nLeft * nLeft), reals(nRight * nRight), reals(width)];
    jobs[`site rms ${nLeft}×${nRight}`] = () => {
      kernels.site({ ...common, ...result, input: "rms", epsilon: 1e-5, gain, left, right });
    };
    jobs[`site gated ${nLeft}×${nRight}`] = () => {
      kernels.site({ ...common, ...result, input: "gated", activation: "silu", x2, left, right });
    };
  }
  const [heads, kvHeads, headDim, keys] = [9, 3, 64, 512];
  for (const bits of [4, 8, 16]) {
    const cache = kernels.layerCache(headDim, kvHeads, bits, keys / 16);
    const pages = Array.from({ length: keys / 16 }, (_, i) => i);
    const [q, kv] = [reals(keys * heads * headDim), reals(keys * kvHeads * headDim)];
    const shape = { heads, kvHeads, headDim };
    const prompt = [{ row: 0, rows: keys, start: 0, pages }];
    const one = [{ row: 0, rows: 1, start: keys - 1, pages }];
    const attended = new Float32Array(keys * heads * headDim);
    const scratch = { q: q.slice(), k: kv.slice(), v: kv.slice() };
    jobs[`cache write ${bits}`] = () => {
      const clips = [Infinity, Infinity, Infinity, Infinity] as const;
      kernels.cacheWrite({ ...shape, ...scratch, chunks: prompt, queryBits: 16, clips, cache });
    };
    jobs[`paged attention ${bits}, prompt`] = () => {
      kernels.pagedAttention({ ...shape, chunks: prompt, q, cache, out: attended });
    };
    jobs[`paged attention ${bits}, one row`] = () => {
      kernels.pagedAttention({ ...shape, chunks: one, q, cache, out: attended });
    };
  }
  return jobs;
}

/** The side that measures: answers each message with the milliseconds of every kernel. */
function contestant(threads: number | undefined): void {
  const backend = profiledBackend(createCpuBackend({ threads }));
  const step = trainingStep(backend, 4, 512);
  const jobs = Object.entries(engineJobs()).map(([name, run]) => {
    run();
    const started = performance.now();
    run();
    const count = Math.max(1, Math.ceil(8 / (performance.now() - started)));
    return { name, run, count };
  });
  step.step();
  process.on("message", () => {
    const times: Record<string, number> = {};
    backend.reset();
    step.step();
    for (const { kernel, seconds } of backend.times()) times[kernel] = 1000 * seconds;
    for (const { name, run, count } of jobs) {
      const started = performance.now();
      for (let i = 0; i < count; i++) run();
      times[name] = (performance.now() - started) / count;
    }
    process.send?.(times);
  });
  process.send?.({ description: backend.description });
}

function answer(child: ChildProcess): Promise<Times> {
  return new Promise((resolve, reject) => {
    child.once("message", (message) => {
      child.removeAllListeners("exit");
      resolve(message as Times);
    });
    child.once("exit", (code) => {
      reject(new Error(`a contestant ended with status ${String(code)}`));
    });
  });
}

function quantile(sorted: readonly number[], q: number): number {
  return sorted[Math.round((sorted.length - 1) * q)];
}

async function compare(
  libraries: readonly string[],
  rounds: number,
  environment: NodeJS.ProcessEnv,
): Promise<void> {
  const children = libraries.map((library) =>
    fork(fileURLToPath(import.meta.url), process.argv.slice(2), {
      env: { ...environment, PLANISH_NATIVE_LIBRARY: library, PLANISH_BENCH_SIDE: "1" },
    }),
  );
  const print = (line: string) => process.stdout.write(`${line}\n`);
  try {
    const opened = await Promise.all(children.map(answer));
    opened.forEach(({ description }, side) => {
      print(`${"AB"[side]}: ${libraries[side]}: ${String(description)}`);
    });
    const seen: Times[][] = [[], []];
    for (let round = 0; round <= rounds; round++)
      for (const side of round % 2 ? [1, 0] : [0, 1]) {
        const times = answer(children[side]);
        children[side].send("round");
        const measured = await times;
        if (round > 0) seen[side].push(measured);
      }
    const names = Object.keys(seen[0][0]).sort();
    const logs: number[] = [];
    print(
      `${"kernel".padEnd(30)} ${"A, ms".padStart(9)}  A/B of the best; in rounds [quartiles], ${rounds} of them`,
    );
    for (const name of names) {
      const ratios = seen[0]
        .map((times, i) => times[name] / seen[1][i][name])
        .sort((x, y) => x - y);
      const [a, b] = seen.map((times) => Math.min(...times.map((each) => each[name])));
      const [low, middle, high] = [0.25, 0.5, 0.75].map((q) => quantile(ratios, q).toFixed(2));
      logs.push(Math.log(a / b));
      print(
        `${name.padEnd(30)} ${a.toFixed(3).padStart(9)}  ${(a / b).toFixed(2)}; ${middle} [${low}–${high}]`,
      );
    }
    const mean = Math.exp(logs.reduce((sum, x) => sum + x, 0) / logs.length);
    print(`geometric mean of ${logs.length} kernels: ${mean.toFixed(3)}`);
  } finally {
    for (const child of children) child.kill();
  }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    level: { type: "string" },
    threads: { type: "string" },
    rounds: { type: "string", default: "15" },
  },
});
if (process.env.PLANISH_BENCH_SIDE)
  contestant(values.threads === undefined ? undefined : Number(values.threads));
else if (positionals.length === 2)
  await compare(positionals, Number(values.rounds), {
    ...process.env,
    ...(values.level === undefined ? {} : { PLANISH_ISA: values.level }),
  });
else {
  process.stderr.write("compilers: give the paths of two libraries\n");
  process.exitCode = 2;
}
