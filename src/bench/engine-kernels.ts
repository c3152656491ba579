/**
 * The engine's kernels beside their ceilings: packed 4-bit products at a prompt's size, what a block's fused sites add to
 * its linears, and decoding through weights that no cache holds.
 */
import { createCpuBackend } from "../backend/cpu/backend.js";
import { engineKernels, type PackedArray, type SiteArgs } from "../backend/cpu/engine-kernels.js";
import { loadNativeLibrary } from "../backend/cpu/library.js";
import { ceilingProbe, timing, type Timing } from "./kernels.js";

export interface EngineKernelsOptions {
  readonly threads?: number;
  readonly rounds?: number;
  readonly signal?: AbortSignal;
}

export interface PackedCell {
  readonly kind: "int4" | "int8";
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly milliseconds: Timing;
  readonly gops: number;
  /** Of the ceiling of its own kind. */
  readonly fraction: number;
  /** Of the int8 ceiling, which int4 may exceed: at avx2 it has a faster unit of its own. */
  readonly fractionOfInt8: number;
}

export interface EngineKernelsReport {
  /** 10⁹ operations and 10⁹ bytes per second. */
  readonly ceilings: { readonly int8: number; readonly int4: number; readonly memory: number };
  readonly products: readonly PackedCell[];
  /** A block of SmolLM2-135M's shape with Kronecker transforms at every site, 512 rows. */
  readonly block: {
    readonly rows: number;
    readonly sites: Timing;
    readonly linears: Timing;
    /** Time of the sites over that of the linears. */
    readonly share: number;
  };
  /** One row through a layer larger than the caches. */
  readonly decode: {
    readonly n: number;
    readonly k: number;
    readonly milliseconds: Timing;
    readonly gigabytesPerSecond: number;
    /** Of the memory read ceiling. */
    readonly fraction: number;
  };
}

const BLOCK = { hidden: 576, ffn: 1536, kv: 192, heads: 9, headDim: 64, rows: 512 };
const LARGE = { n: 16384, k: 8192 };
const SAMPLE_MS = 20;

/** Codes that repeat after a while: the arithmetic does not look at them, and drawing them all would take seconds. */
function codes(length: number, bits: number): Int8Array {
  const half = 2 ** (bits - 1);
  let state = 1;
  const drawn = Int8Array.from({ length: Math.min(length, 65_521) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 16) % (2 * half)) - half;
  });
  const all = new Int8Array(length);
  for (let at = 0; at < length; at += drawn.length) all.set(drawn.subarray(0, length - at), at);
  return all;
}

function reals(length: number): Float32Array {
  return Float32Array.from(codes(length, 8), (code) => code / 64);
}

/** Something to time: the medians of its samples, each repeated to last long enough. */
interface Job {
  readonly run: () => void;
  readonly count: number;
  readonly samples: number[];
}

function job(run: () => void): Job {
  run();
  const started = performance.now();
  run();
  return {
    run,
    count: Math.max(1, Math.ceil(SAMPLE_MS / (performance.now() - started))),
    samples: [],
  };
}

export function benchEngineKernels(options: EngineKernelsOptions = {}): EngineKernelsReport {
  const { rounds = 9 } = options;
  using backend = createCpuBackend({ threads: options.threads });
  const library = loadNativeLibrary();
  const probe = ceilingProbe(library, library.threads());
  const memory = backend.alloc("f32", (256 << 20) / 4);
  backend.fill(memory, 1);
  const kernels = engineKernels();

  const ones = new Float32Array(LARGE.n).fill(1);
  const out = new Float32Array(2048 * 1536);
  const product = (weights: PackedArray, m: number, a: Int8Array): Job =>
    job(() => kernels.packedProduct({ m, a, aScale: ones, weights, bScale: ones, out }));

  // As the schemes w4a4 and w8a8 have them.
  const activations = { int4: codes(2048 * 1536, 4), int8: codes(2048 * 1536, 8) };
  const cells = (["int4", "int8"] as const).flatMap((kind) =>
    [576, 1536].flatMap((size) => {
      const weights = kernels.packWeights(
        kind,
        size,
        size,
        codes(size * size, kind === "int4" ? 4 : 8),
      );
      return [1, 16, 512, 2048].map((m) => ({
        kind,
        m,
        k: size,
        n: size,
        timed: product(weights, m, activations[kind]),
      }));
    }),
  );

  const { rows } = BLOCK;
  const linears = (
    [
      [BLOCK.hidden + 2 * BLOCK.kv, BLOCK.hidden],
      [BLOCK.hidden, BLOCK.hidden],
      [2 * BLOCK.ffn, BLOCK.hidden],
      [BLOCK.hidden, BLOCK.ffn],
    ] as const
  ).map(([n, k]) =>
    product(kernels.packWeights("int4", n, k, codes(n * k, 4)), rows, activations.int4),
  );
  const sites = blockSites().map((args) => job(() => kernels.site(args)));

  const large = kernels.packWeights("int4", LARGE.n, LARGE.k, codes(LARGE.n * LARGE.k, 4));
  const decode = product(large, 1, activations.int4);

  const ceilings = { int8: 0, int4: 0, memory: 0 };
  const jobs = [...cells.map(({ timed }) => timed), ...linears, ...sites, decode];
  for (let round = 0; round <= rounds; round++) {
    options.signal?.throwIfAborted();
    ceilings.int8 = Math.max(ceilings.int8, probe.peaks[2]());
    ceilings.int4 = Math.max(ceilings.int4, probe.int4());
    ceilings.memory = Math.max(ceilings.memory, probe.memory(memory));
    for (const { run, count, samples } of jobs) {
      const started = performance.now();
      for (let i = 0; i < count; i++) run();
      if (round > 0) samples.push((performance.now() - started) / count);
    }
  }
  const total = (parts: readonly Job[]): Timing =>
    timing(
      Array.from({ length: rounds }, (_, i) =>
        parts.reduce((sum, { samples }) => sum + samples[i], 0),
      ),
    );
  const [siteTime, linearTime, decodeTime] = [total(sites), total(linears), timing(decode.samples)];
  const rate = large.bytes.length / decodeTime.median / 1e6;
  return {
    ceilings,
    products: cells.map(({ kind, m, k, n, timed }) => {
      const milliseconds = timing(timed.samples);
      const gops = (2 * m * n * k) / milliseconds.median / 1e6;
      const [fraction, fractionOfInt8] = [gops / ceilings[kind], gops / ceilings.int8];
      return { kind, m, k, n, milliseconds, gops, fraction, fractionOfInt8 };
    }),
    block: {
      rows,
      sites: siteTime,
      linears: linearTime,
      share: siteTime.median / linearTime.median,
    },
    decode: {
      ...LARGE,
      milliseconds: decodeTime,
      gigabytesPerSecond: rate,
      fraction: rate / ceilings.memory,
    },
  };
}

/** The four sites of the block: two norms with 24×24, heads with 9, the gated MLP with 32×48. */
function blockSites(): SiteArgs[] {
  const { rows, hidden, ffn, heads, headDim } = BLOCK;
  const site = (nLeft: number, nRight: number, rest: Partial<SiteArgs>): SiteArgs => {
    const width = nLeft * nRight;
    return {
      input: "plain",
      x: reals(rows * width),
      rows,
      nLeft,
      nRight,
      gain: reals(width),
      epsilon: 1e-5,
      left: reals(nLeft * nLeft),
      right: reals(nRight * nRight),
      bits: 4,
      clips: [[4, 4]],
      codes: new Int8Array(rows * width),
      scale: new Float32Array(rows),
      ...rest,
    };
  };
  const side = Math.sqrt(hidden);
  return [
    site(side, side, { input: "rms" }),
    site(heads, headDim, { right: undefined }),
    site(side, side, { input: "rms" }),
    site(32, ffn / 32, { input: "gated", activation: "silu", x2: reals(rows * ffn) }),
  ];
}

export function formatEngineKernels(report: EngineKernelsReport): string {
  const { ceilings, products, block, decode } = report;
  const show = ({ median, lower, upper }: Timing) =>
    `${median.toFixed(3)} ms [${lower.toFixed(3)}–${upper.toFixed(3)}]`;
  return [
    "packed weights (the engine's layout), codes of as many bits as the weights, both scales;",
    `ceilings (registers only): int4 ${ceilings.int4.toFixed(0)}, int8 ${ceilings.int8.toFixed(0)} GOP/s:`,
    ...products.map(
      ({ kind, m, k, n, milliseconds, gops, fraction, fractionOfInt8 }) =>
        `  ${kind} M=${m} K=${k} N=${n}: ${show(milliseconds)}, ${gops.toFixed(0)} GOP/s, ` +
        `${(100 * fraction).toFixed(0)}% of ${kind}` +
        (kind === "int4" ? `, ${(100 * fractionOfInt8).toFixed(0)}% of int8` : ""),
    ),
    `sites of a block at M=${block.rows}: ${show(block.sites)}; its linears ${show(block.linears)}: ${(100 * block.share).toFixed(1)}%`,
    `decode, one row through int4 ${decode.n}×${decode.k}: ${show(decode.milliseconds)}, ` +
      `${decode.gigabytesPerSecond.toFixed(1)} of ${ceilings.memory.toFixed(1)} GB/s: ${(100 * decode.fraction).toFixed(0)}%`,
  ].join("\n");
}
