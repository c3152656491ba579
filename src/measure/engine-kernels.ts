/**
 * The engine's kernels beside their ceilings: packed 4-bit products at a prompt's size, what a block's fused sites add to
 * its linears in a small and in a large model, and decoding through weights that no cache holds.
 */
import { createCpuBackend } from "../backend/cpu/train/backend.js";
import { engineKernels } from "../backend/cpu/infer/kernels.js";
import type { PackedArray, SiteArgs } from "../backend/contract/inference-kernels.js";
import { loadNativeLibrary } from "../backend/cpu/library.js";
import { nativeBuffer } from "../backend/cpu/memory.js";
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

/** What the four sites of a block add to its linears, with Kronecker transforms at every site. */
export interface BlockCell {
  readonly model: string;
  readonly rows: number;
  readonly sites: Timing;
  readonly linears: Timing;
  /** Time of the sites over that of the linears. */
  readonly share: number;
  /** The same had the transforms' multiply-adds run at the f32 ceiling and the rest cost nothing. */
  readonly floor: number;
}

export interface EngineKernelsReport {
  /** 10⁹ operations and 10⁹ bytes per second. */
  readonly ceilings: {
    readonly f32: number;
    readonly int8: number;
    readonly int4: number;
    readonly memory: number;
  };
  readonly products: readonly PackedCell[];
  readonly blocks: readonly BlockCell[];
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

/** Shapes of blocks, with the factors of their transforms: of the hidden width, and of the MLP's. */
interface BlockShape {
  readonly model: string;
  readonly hidden: number;
  readonly ffn: number;
  readonly kv: number;
  readonly heads: number;
  readonly hiddenFactors: readonly [number, number];
  readonly ffnFactors: readonly [number, number];
}

const BLOCKS: readonly BlockShape[] = [
  {
    model: "SmolLM2-135M",
    hidden: 576,
    ffn: 1536,
    kv: 192,
    heads: 9,
    hiddenFactors: [24, 24],
    ffnFactors: [32, 48],
  },
  {
    model: "LLaMA-2-7B",
    hidden: 4096,
    ffn: 11008,
    kv: 4096,
    heads: 32,
    hiddenFactors: [64, 64],
    ffnFactors: [86, 128],
  },
];
const BLOCK_ROWS = 512;
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

  const widest = Math.max(LARGE.n, ...BLOCKS.map(({ ffn }) => 2 * ffn));
  const ones = new Float32Array(widest).fill(1);
  const out = new Float32Array(BLOCK_ROWS * widest);
  const product = (weights: PackedArray, m: number, a: Int8Array): Job =>
    job(() => kernels.packedProduct({ m, a, aScale: ones, weights, bScale: ones, out }));

  // As the schemes w4a4 and w8a8 have them.
  const most = Math.max(2048 * 1536, ...BLOCKS.map(({ ffn }) => BLOCK_ROWS * ffn));
  const activations = { int4: codes(most, 4), int8: codes(2048 * 1536, 8) };
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

  const blocks = BLOCKS.map((shape) => {
    const { hidden, ffn, kv } = shape;
    const linears = (
      [
        [hidden + 2 * kv, hidden],
        [hidden, hidden],
        [2 * ffn, hidden],
        [hidden, ffn],
      ] as const
    ).map(([n, k]) =>
      product(kernels.packWeights("int4", n, k, codes(n * k, 4)), BLOCK_ROWS, activations.int4),
    );
    const sites = blockSites(shape).map((args) => job(() => kernels.site(args)));
    return { shape, linears, sites };
  });

  // In memory like the engine's, and like that which is read for the ceiling: both ask for huge pages.
  const packed = kernels.packWeights("int4", LARGE.n, LARGE.k, codes(LARGE.n * LARGE.k, 4));
  const [data] = nativeBuffer(backend.alloc("u8", packed.bytes.length)).arrays();
  const large = { ...packed, bytes: data as Uint8Array };
  large.bytes.set(packed.bytes);
  const decode = product(large, 1, activations.int4);

  const ceilings = { f32: 0, int8: 0, int4: 0, memory: 0 };
  const jobs = [
    ...cells.map(({ timed }) => timed),
    ...blocks.flatMap(({ linears, sites }) => [...linears, ...sites]),
    decode,
  ];
  for (let round = 0; round <= rounds; round++) {
    options.signal?.throwIfAborted();
    ceilings.f32 = Math.max(ceilings.f32, probe.peaks[0]());
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
  const decodeTime = timing(decode.samples);
  const rate = large.bytes.length / decodeTime.median / 1e6;
  return {
    ceilings,
    products: cells.map(({ kind, m, k, n, timed }) => {
      const milliseconds = timing(timed.samples);
      const gops = (2 * m * n * k) / milliseconds.median / 1e6;
      const [fraction, fractionOfInt8] = [gops / ceilings[kind], gops / ceilings.int8];
      return { kind, m, k, n, milliseconds, gops, fraction, fractionOfInt8 };
    }),
    blocks: blocks.map(({ shape, ...timed }) => {
      const [sites, linears] = [total(timed.sites), total(timed.linears)];
      const transforms = (2 * BLOCK_ROWS * transformWork(shape)) / ceilings.f32 / 1e6;
      return {
        model: shape.model,
        rows: BLOCK_ROWS,
        sites,
        linears,
        share: sites.median / linears.median,
        floor: transforms / linears.median,
      };
    }),
    decode: {
      ...LARGE,
      milliseconds: decodeTime,
      gigabytesPerSecond: rate,
      fraction: rate / ceilings.memory,
    },
  };
}

/** Multiply-adds of a row's transforms: a width of m·n with factors m×m and n×n takes m·n·(m + n). */
function transformWork({ hidden, ffn, heads, hiddenFactors, ffnFactors }: BlockShape): number {
  const sum = ([left, right]: readonly [number, number]) => left + right;
  return hidden * (2 * sum(hiddenFactors) + heads) + ffn * sum(ffnFactors);
}

/** The four sites of a block: two norms, heads with a left factor alone, the gated MLP. */
function blockSites({ hidden, ffn, heads, hiddenFactors, ffnFactors }: BlockShape): SiteArgs[] {
  const rows = BLOCK_ROWS;
  const site = ([nLeft, nRight]: readonly [number, number], rest: Partial<SiteArgs>): SiteArgs => {
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
  return [
    site(hiddenFactors, { input: "rms" }),
    site([heads, hidden / heads], { right: undefined }),
    site(hiddenFactors, { input: "rms" }),
    site(ffnFactors, { input: "gated", activation: "silu", x2: reals(rows * ffn) }),
  ];
}

export function formatEngineKernels(report: EngineKernelsReport): string {
  const { ceilings, products, blocks, decode } = report;
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
    ...blocks.map(
      ({ model, rows, sites, linears, share, floor }) =>
        `sites of a ${model} block at M=${rows}: ${show(sites)}; its linears ${show(linears)}: ${(100 * share).toFixed(1)}%, ` +
        `of which the transforms at the f32 ceiling of ${ceilings.f32.toFixed(0)} GFLOP/s ${(100 * floor).toFixed(1)}%`,
    ),
    `decode, one row through int4 ${decode.n}×${decode.k}: ${show(decode.milliseconds)}, ` +
      `${decode.gigabytesPerSecond.toFixed(1)} of ${ceilings.memory.toFixed(1)} GB/s: ${(100 * decode.fraction).toFixed(0)}%`,
  ].join("\n");
}
