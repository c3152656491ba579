/**
 * `planish bench kernels`: matrix products in f32, bf16 and int8 at the shapes of a small model, each as a fraction of
 * the ceiling measured in the same run, beside onnxruntime-node's f32 product.
 *
 * Method. Every round visits the ceilings and every cell once, so that a slow moment of the machine hits all alike; a
 * sample repeats its product until it lasts some milliseconds; the first round is a warm-up. Reported are the median
 * and the quartiles over rounds; a ceiling is the best round, which never flatters a fraction. Times include packing
 * both operands (onnxruntime packs its constant operand once, beforehand). Operands stay in cache where they fit.
 */
import type { Buffer } from "../backend/contract/training.js";
import { createCpuBackend } from "../backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../backend/cpu/library.js";
import type { NativeLibrary } from "../backend/contract/native-library.js";
import { nativeKernels } from "../backend/cpu/native-kernels.js";
import { PlanishError } from "../common/errors.js";
import { PEER_INSTALL, loadPeer } from "./onnxruntime.js";

export type BenchType = "f32" | "bf16" | "int8";
const TYPES: readonly BenchType[] = ["f32", "bf16", "int8"];
type PeakKernel = "peakF32" | "peakBf16" | "peakI8" | "peakI4";
const PEAK_KERNEL: Readonly<Record<BenchType, PeakKernel>> = {
  f32: "peakF32",
  bf16: "peakBf16",
  int8: "peakI8",
};

export interface BenchOptions {
  /** Default: one per hardware core. */
  readonly threads?: number;
  /** Rounds after the warm-up (default 9). */
  readonly rounds?: number;
  readonly rows?: readonly number[];
  /** Values that both K and N take. */
  readonly sizes?: readonly number[];
  /** Leave onnxruntime-node out (default false). */
  readonly withoutPeer?: boolean;
  /** Called after each round with the number done and the number in all. */
  readonly onRound?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** Median and quartiles of a measured time, in milliseconds. */
export interface Timing {
  readonly median: number;
  readonly lower: number;
  readonly upper: number;
}

export interface BenchCell {
  readonly type: BenchType;
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly milliseconds: Timing;
  /** 2·m·k·n operations over the median time, in units of 10⁹ per second. */
  readonly gops: number;
  /** gops over the ceiling of the same type. */
  readonly fraction: number;
}

export interface PeerCell {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly milliseconds: Timing;
  readonly gops: number;
  /** Peer's median time over ours in f32: above 1, ours is faster. */
  readonly ratio: number;
}

export interface BenchReport {
  /** Processor, instruction set, threads. */
  readonly machine: string;
  readonly node: string;
  readonly threads: number;
  readonly rounds: number;
  /** 10⁹ operations per second of the units, from loops that touch nothing but registers. */
  readonly ceilings: Readonly<Record<BenchType, number>>;
  /** 10⁹ bytes per second read from memory by all threads. */
  readonly memoryRead: number;
  readonly cells: readonly BenchCell[];
  readonly peer:
    | { readonly name: string; readonly version: string; readonly cells: readonly PeerCell[] }
    | { readonly missing: string };
}

/** A sample lasts at least this long. */
const SAMPLE_MS = 4;
/** Bytes read for the bandwidth: far more than any last-level cache here. */
const READ_BYTES = 256 * 2 ** 20;

export function timing(samples: readonly number[]): Timing {
  const sorted = [...samples].sort((x, y) => x - y);
  const at = (fraction: number) => {
    const position = fraction * (sorted.length - 1);
    const low = Math.floor(position);
    return sorted[low] + (sorted[Math.ceil(position)] - sorted[low]) * (position - low);
  };
  return { median: at(0.5), lower: at(0.25), upper: at(0.75) };
}

/** Repetitions that make a sample long enough, from one timed call. */
function repetitions(run: () => void): number {
  run();
  const started = performance.now();
  run();
  return Math.max(1, Math.ceil(SAMPLE_MS / Math.max(performance.now() - started, 1e-4)));
}

/** Units' ceilings and the memory's, sampled once per call. */
export function ceilingProbe(library: NativeLibrary, threads: number) {
  const kernels = nativeKernels(library);
  const operations = new Float64Array(1);
  const peak = (kernel: PeakKernel) => {
    const run = (iterations: number) => kernels[kernel]({ iterations, operations });
    let iterations = 1000;
    for (let elapsed = 0; elapsed < SAMPLE_MS;) {
      const started = performance.now();
      run(iterations);
      elapsed = performance.now() - started;
      if (elapsed < SAMPLE_MS) iterations *= 2;
    }
    return (): number => {
      const started = performance.now();
      run(iterations);
      return operations[0] / (performance.now() - started) / 1e6;
    };
  };
  const sink = new Float32Array(1);
  return {
    threads,
    peaks: TYPES.map((type) => peak(PEAK_KERNEL[type])),
    /** Codes by weights of 4 bits, where a level multiplies them in a way of their own; else as int8. */
    int4: peak("peakI4"),
    /** 10⁹ bytes per second. */
    memory(x: Buffer): number {
      const started = performance.now();
      kernels.readMemory({ x, length: x.length, sink });
      return (x.length * 4) / (performance.now() - started) / 1e6;
    },
  };
}

/** Numbers in [−1, 1); their values do not matter, except that denormals and infinities would. */
function numbers(length: number): Float32Array {
  let state = 1;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

interface Job {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly type: BenchType | "peer";
  readonly samples: number[];
  sample(): Promise<number> | number;
}

/**
 * Measures; see the head of this file. Takes about rounds × 1.5 s on two cores. Throws PlanishError when the native
 * library is missing or onnxruntime-node disagrees with our product, and rejects when `signal` aborts.
 */
export async function benchKernels(options: BenchOptions = {}): Promise<BenchReport> {
  const { rounds = 9, rows = [1, 32, 512, 2048], sizes = [576, 1536] } = options;
  using backend = createCpuBackend({ threads: options.threads });
  const library = loadNativeLibrary();
  const threads = library.threads();
  const probe = ceilingProbe(library, threads);
  const memory = backend.alloc("f32", READ_BYTES / 4);
  backend.fill(memory, 1);

  const largestM = Math.max(...rows);
  const largest = Math.max(...sizes);
  const x = backend.alloc("f32", largestM * largest);
  const w = backend.alloc("f32", largest * largest);
  const out = backend.alloc("f32", largestM * largest);
  const xCodes = backend.alloc("i8", largestM * largest);
  const wCodes = backend.alloc("i8", largest * largest);
  const scale = backend.alloc("f32", Math.max(largestM, largest));
  const xNumbers = numbers(largestM * largest);
  const wNumbers = numbers(largest * largest);
  backend.write(x, xNumbers);
  backend.write(w, wNumbers);
  backend.write(
    xCodes,
    xNumbers.map((value) => value * 127),
  );
  backend.write(
    wCodes,
    wNumbers.map((value) => value * 127),
  );
  backend.fill(scale, 1 / 127);

  const jobs: Job[] = [];
  const peer = options.withoutPeer ? undefined : loadPeer();
  for (const m of rows) {
    for (const k of sizes) {
      for (const n of sizes) {
        for (const type of TYPES) {
          const run =
            type === "int8"
              ? () =>
                  backend.kernels.intMatmul({
                    m,
                    n,
                    k,
                    a: xCodes,
                    aScale: scale,
                    b: wCodes,
                    bScale: scale,
                    out,
                  })
              : () =>
                  backend.kernels.matmul({
                    m,
                    n,
                    k,
                    a: { buffer: x },
                    // Linear layers store their weights [n, k].
                    b: { buffer: w, transposed: true },
                    out: { buffer: out },
                    precision: type,
                  });
          const count = repetitions(run);
          jobs.push({
            m,
            k,
            n,
            type,
            samples: [],
            sample() {
              const started = performance.now();
              for (let i = 0; i < count; i++) run();
              return (performance.now() - started) / count;
            },
          });
        }
        if (!peer) continue;
        const xPart = xNumbers.subarray(0, m * k);
        const wPart = wNumbers.subarray(0, k * n);
        let compared = false;
        jobs.push({
          m,
          k,
          n,
          type: "peer",
          samples: [],
          // A session for each sample: its threads spin for long after a run, on the cores that we measure next.
          async sample() {
            const product = await peer.product(m, k, n, xPart, wPart, threads);
            try {
              const result = await product.run();
              if (!compared) {
                const [a, b] = [{ buffer: x }, { buffer: w }];
                backend.kernels.matmul({ m, n, k, a, b, out: { buffer: out }, precision: "f32" });
                compare(result, backend.read(out, 0, m * n) as Float32Array, k);
                compared = true;
              }
              const started = performance.now();
              await product.run();
              const count = Math.max(1, Math.ceil(SAMPLE_MS / (performance.now() - started)));
              const begin = performance.now();
              for (let i = 0; i < count; i++) await product.run();
              return (performance.now() - begin) / count;
            } finally {
              await product.release();
            }
          },
        });
      }
    }
  }

  const peaks = TYPES.map(() => 0);
  let memoryRead = 0;
  for (let round = 0; round <= rounds; round++) {
    options.signal?.throwIfAborted();
    probe.peaks.forEach((measure, index) => (peaks[index] = Math.max(peaks[index], measure())));
    memoryRead = Math.max(memoryRead, probe.memory(memory));
    for (const job of jobs) {
      const elapsed = await job.sample();
      if (round > 0) job.samples.push(elapsed);
    }
    if (round > 0) options.onRound?.(round, rounds);
    // Lets signals and progress through.
    await new Promise((done) => setImmediate(done));
  }
  const ceilings = Object.fromEntries(TYPES.map((type, index) => [type, peaks[index]])) as Record<
    BenchType,
    number
  >;
  const rate = (job: Job, time: Timing) => (2 * job.m * job.k * job.n) / time.median / 1e6;
  const cells = jobs.flatMap((job): BenchCell[] => {
    if (job.type === "peer") return [];
    const milliseconds = timing(job.samples);
    const gops = rate(job, milliseconds);
    return [
      {
        type: job.type,
        m: job.m,
        k: job.k,
        n: job.n,
        milliseconds,
        gops,
        fraction: gops / ceilings[job.type],
      },
    ];
  });
  const peerCells = jobs.flatMap((job): PeerCell[] => {
    if (job.type !== "peer") return [];
    const milliseconds = timing(job.samples);
    const ours = cells.find(
      (c) => c.type === "f32" && c.m === job.m && c.k === job.k && c.n === job.n,
    );
    const ratio = milliseconds.median / (ours?.milliseconds.median ?? NaN);
    return [{ m: job.m, k: job.k, n: job.n, milliseconds, gops: rate(job, milliseconds), ratio }];
  });
  return {
    machine: backend.description,
    node: process.version,
    threads,
    rounds,
    ceilings,
    memoryRead,
    cells,
    peer: peer
      ? { name: peer.name, version: peer.version, cells: peerCells }
      : {
          missing: options.withoutPeer
            ? "left out"
            : `onnxruntime-node is not installed; ${PEER_INSTALL}`,
        },
  };
}

/** A comparison with a peer counts only if both computed the same thing. */
function compare(theirs: Float32Array, ours: Float32Array, k: number): void {
  // Both sum k products of numbers below 1 in f32, in some order of their own: each errs by at most k·2⁻²⁴·k.
  const bound = 2 * k * k * 2 ** -24;
  for (let i = 0; i < ours.length; i++) {
    if (!(Math.abs(theirs[i] - ours[i]) <= bound)) {
      throw new PlanishError(
        `the peer's product differs at element ${i}: ${theirs[i]} against ${ours[i]}; the comparison would be void`,
      );
    }
  }
}

const round = (value: number, digits: number): string => value.toFixed(digits);

/** The report as a table for a terminal. */
export function formatBenchReport(report: BenchReport): string {
  const { ceilings, peer } = report;
  const lines = [
    `${report.machine}, Node ${report.node}; medians of ${report.rounds} rounds [quartiles]`,
    `ceilings (registers only): f32 ${round(ceilings.f32, 0)}, bf16 ${round(ceilings.bf16, 0)}, int8 ` +
      `${round(ceilings.int8, 0)} GOP/s; memory read ${round(report.memoryRead, 1)} GB/s`,
    "",
  ];
  const header = ["M", "K", "N", "type", "ms", "[quartiles]", "GOP/s", "of ceiling"];
  const withPeer = "cells" in peer;
  if (withPeer) header.push(`${peer.name} ${peer.version}`, "ratio");
  const table = [header];
  for (const cell of report.cells) {
    const { median, lower, upper } = cell.milliseconds;
    const line = [
      String(cell.m),
      String(cell.k),
      String(cell.n),
      cell.type,
      round(median, 3),
      `[${round(lower, 3)}–${round(upper, 3)}]`,
      round(cell.gops, 0),
      `${round(100 * cell.fraction, 0)}%`,
    ];
    const theirs =
      withPeer && cell.type === "f32"
        ? peer.cells.find((each) => each.m === cell.m && each.k === cell.k && each.n === cell.n)
        : undefined;
    if (theirs)
      line.push(
        `${round(theirs.milliseconds.median, 3)} ms, ${round(theirs.gops, 0)} GOP/s`,
        `${round(theirs.ratio, 1)}×`,
      );
    table.push(line);
  }
  const widths = header.map((_, column) =>
    Math.max(...table.map((line) => (line[column] ?? "").length)),
  );
  for (const line of table) {
    lines.push(
      line
        .map((text, column) => text.padStart(widths[column]))
        .join("  ")
        .trimEnd(),
    );
  }
  lines.push("");
  lines.push(
    withPeer
      ? `ratio: ${peer.name}'s time over ours, f32, ${report.threads} threads each; its weights are packed beforehand, ours in every call`
      : `peer: ${peer.missing}`,
  );
  return lines.join("\n");
}
