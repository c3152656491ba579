/** Conformance cases of the matrix products. */

import type { Kernels, Precision } from "../../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import {
  absolute,
  codes,
  evaluate,
  output,
  Random,
  real,
  squared,
  toBf16,
  U,
  U_BF16,
  type BufferSpec,
  type Buffers,
  type CaseGroup,
  type ConformanceCase,
} from "../harness.js";

interface MatmulOptions {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly precision?: Precision;
  readonly batch?: number;
  readonly sharedB?: boolean;
  readonly aTransposed?: boolean;
  readonly bTransposed?: boolean;
  readonly aCodes?: boolean;
  readonly bCodes?: boolean;
  /** Padding added to every row and product, and an offset into every buffer. */
  readonly padding?: number;
  readonly kScale?: boolean;
  readonly nScale?: boolean;
  readonly bias?: boolean;
  readonly alpha?: number;
  readonly accumulate?: boolean;
  /** Inputs that bfloat16 represents exactly. */
  readonly bf16Inputs?: boolean;
}

const truthBackend = createReferenceBackend({ realType: "f64" });

function describeOptions(options: MatmulOptions): string {
  const { m, n, k, ...rest } = options;
  const flags = Object.entries(rest)
    .filter(([, value]) => value !== false && value !== undefined)
    .map(([name, value]) => (value === true ? name : `${name} ${value}`));
  return [`${m}×${n}×${k}`, ...flags].join(", ");
}

function matmulCase(options: MatmulOptions): ConformanceCase {
  const { m, n, k, precision = "f32", batch = 1, padding = 0, alpha = 1 } = options;
  const title = describeOptions(options);
  const random = new Random(`matmul ${title}`);
  const geometry = (rows: number, cols: number) => ({
    stride: cols + padding,
    batchStride: rows * (cols + padding) + padding,
    length: padding + batch * (rows * (cols + padding) + padding),
  });
  const a = options.aTransposed ? geometry(k, m) : geometry(m, k);
  const b = options.bTransposed ? geometry(n, k) : geometry(k, n);
  const out = geometry(m, n);
  const fill = (length: number, isCodes?: boolean): BufferSpec => {
    if (isCodes) return codes(random.integers(length, -8, 7));
    const values = random.normals(length);
    return real(options.bf16Inputs ? values.map(toBf16) : values);
  };
  const buffers: Record<string, BufferSpec> = {
    a: fill(a.length, options.aCodes),
    b: fill(b.length, options.bCodes),
    out: real(random.normals(out.length)),
  };
  if (options.kScale) buffers.kScale = real(random.uniforms(k, 0.5, 2));
  if (options.nScale) buffers.nScale = real(random.uniforms(n, 0.5, 2));
  if (options.bias) buffers.bias = real(random.normals(n));

  const call = (kernels: Kernels, given: Buffers, sign: { alpha: number; accumulate?: boolean }) =>
    kernels.matmul({
      ...{ m, n, k, batch, precision, ...sign },
      a: { buffer: given.a, offset: padding, ...strides(a), transposed: options.aTransposed },
      b: {
        buffer: given.b,
        offset: padding,
        stride: padding ? b.stride : undefined,
        batchStride: options.sharedB ? undefined : b.batchStride,
        transposed: options.bTransposed,
      },
      out: { buffer: given.out, offset: padding, ...strides(out) },
      kScale: given.kScale,
      nScale: given.nScale,
      bias: given.bias,
    });
  const strides = (g: { stride: number; batchStride: number }) => ({
    stride: padding ? g.stride : undefined,
    batchStride: g.batchStride,
  });
  const addressed = new Set<number>();
  for (let s = 0; s < batch; s++) {
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) addressed.add(padding + s * out.batchStride + i * out.stride + j);
    }
  }
  const mapped = (transform: (values: Float64Array) => Float64Array) =>
    Object.fromEntries(
      Object.entries(buffers).map(([name, { data }]) => [
        name,
        { type: "real" as const, data: transform(data) },
      ]),
    );
  return {
    kernel: "matmul",
    title,
    buffers,
    outputs: ["out"],
    run: (kernels, given) => call(kernels, given, { alpha, accumulate: options.accumulate }),
    bounds: () => {
      const magnitude = evaluate(truthBackend, mapped(absolute), (kernels, given) =>
        call(kernels, given, { alpha: Math.abs(alpha), accumulate: options.accumulate }),
      ).out;
      const allowed = magnitude.map((v, i) => (addressed.has(i) ? (k + 6) * U * v : 0));
      if (precision === "bf16" && !(options.bf16Inputs && !options.kScale)) {
        const { bias: _bias, ...squares } = mapped(squared);
        const variance = evaluate(truthBackend, squares, (kernels, given) =>
          call(kernels, given, { alpha: alpha * alpha }),
        ).out;
        for (const i of addressed) allowed[i] += 14 * U_BF16 * Math.sqrt(variance[i]);
      }
      return { out: allowed };
    },
  };
}

const SHAPES = [
  { m: 1, n: 1, k: 1 },
  { m: 1, n: 17, k: 33 },
  { m: 5, n: 3, k: 7 },
  { m: 16, n: 16, k: 16 },
  { m: 33, n: 65, k: 129 },
  { m: 2, n: 300, k: 5 },
  { m: 70, n: 6, k: 260 },
  { m: 130, n: 97, k: 64 },
  // Past the blocks that kernels cut their operands into, in every direction.
  { m: 70, n: 150, k: 1100 },
] as const;

/** Random sizes and options: what tiles, tails and packings meet beside the chosen shapes. */
function randomOptions(precision: Precision, count: number): MatmulOptions[] {
  const random = new Random(`matmul options ${precision}`);
  const maybe = () => random.uniform() < 0.3;
  return Array.from({ length: count }, () => ({
    ...{ m: random.integer(1, 40), n: random.integer(1, 80), k: random.integer(1, 150), precision },
    ...{
      aTransposed: maybe(),
      bTransposed: random.uniform() < 0.6,
      aCodes: maybe(),
      bCodes: maybe(),
    },
    ...{ kScale: maybe(), nScale: maybe(), bias: maybe(), accumulate: maybe(), sharedB: maybe() },
    ...{ batch: maybe() ? random.integer(2, 4) : 1, padding: maybe() ? random.integer(1, 9) : 0 },
  }));
}

const VARIANTS: readonly Omit<MatmulOptions, "m" | "n" | "k" | "precision">[] = [
  {},
  { bTransposed: true },
  { aTransposed: true },
  { aTransposed: true, bTransposed: true, padding: 3 },
  { bTransposed: true, bCodes: true, nScale: true, bias: true },
  { aCodes: true, bCodes: true, bTransposed: true, alpha: -0.5 },
  { bCodes: true, kScale: true, accumulate: true },
  { kScale: true, nScale: true, bias: true, alpha: 0.3, accumulate: true, padding: 5 },
  { batch: 3, bTransposed: true, padding: 1 },
  { batch: 2, sharedB: true, accumulate: true },
  { aTransposed: true, aCodes: true, bias: true },
];

function matmulCases(precision: Precision): ConformanceCase[] {
  const cases: ConformanceCase[] = [];
  SHAPES.forEach((shape, s) => {
    // Every variant on two shapes, every shape with several variants.
    VARIANTS.forEach((variant, v) => {
      if ((v + s) % 4 === 0) cases.push(matmulCase({ ...shape, ...variant, precision }));
    });
  });
  cases.push(...randomOptions(precision, 40).map(matmulCase));
  if (precision === "bf16") {
    for (const shape of SHAPES)
      cases.push(matmulCase({ ...shape, precision, bf16Inputs: true, bTransposed: true }));
  }
  return cases;
}

function intMatmulCase(
  m: number,
  n: number,
  k: number,
  bias: boolean,
  extreme: boolean,
): ConformanceCase {
  const title = `${m}×${n}×${k}${bias ? ", bias" : ""}${extreme ? ", all codes −128" : ""}`;
  const random = new Random(`intMatmul ${title}`);
  const fill = (length: number) =>
    extreme ? new Float64Array(length).fill(-128) : random.integers(length, -128, 127);
  const biasValues = random.normals(n);
  return {
    kernel: "intMatmul",
    title,
    buffers: {
      a: codes(fill(m * k)),
      b: codes(fill(n * k)),
      aScale: real(random.uniforms(m, 0.001, 0.1)),
      bScale: real(random.uniforms(n, 0.001, 0.1)),
      ...(bias ? { bias: real(biasValues) } : {}),
      out: output(m * n),
    },
    outputs: ["out"],
    run: (kernels, { a, b, aScale, bScale, bias: given, out }) =>
      kernels.intMatmul({ m, n, k, a, aScale, b, bScale, bias: given, out }),
    bounds: ({ out }) => ({
      out: out.map((v, i) => {
        const added = bias ? biasValues[i % n] : 0;
        return 4 * U * (Math.abs(v - added) + Math.abs(added));
      }),
    }),
  };
}

export const matmulGroups: CaseGroup[] = [
  {
    bound:
      "matmul f32: |error| ≤ (k+6)·u·(|A|·|B|·|scales| + |bias| + |out₀|): k sums in any order, 6 other roundings",
    cases: matmulCases("f32"),
  },
  {
    bound:
      "matmul bf16: as f32 for inputs that bf16 holds; else + 14·2⁻⁸·√Σ(a·b)², Hoeffding for two independent roundings per term (p < 1e-10)",
    cases: matmulCases("bf16"),
  },
  {
    bound: "intMatmul: exact sum, then four roundings: |error| ≤ 4u·(|scaled sum| + |bias|)",
    cases: [
      ...[1, 2, 3, 16, 33, 64, 130].flatMap((m, i) => [
        intMatmulCase(
          m,
          [1, 17, 32, 96, 5][i % 5],
          [1, 7, 64, 129, 256, 300][i % 6],
          i % 2 === 1,
          false,
        ),
        intMatmulCase(m, [48, 3, 100][i % 3], [100, 576, 33][i % 3], i % 2 === 0, false),
      ]),
      // Sizes that 8-bit matrix units take.
      intMatmulCase(16, 48, 64, true, false),
      intMatmulCase(64, 100, 576, false, false),
      intMatmulCase(3, 5, 1000, false, true),
      intMatmulCase(17, 20, 131, true, true),
    ],
  },
];
