/** Conformance cases of kernels that work row by row: Kronecker transform, norms, rotary embedding, table lookup. */

import type { Kernels, Precision } from "../../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import {
  absolute,
  evaluate,
  ids,
  output,
  Random,
  real,
  U,
  U_BF16,
  type Buffers,
  type BufferSpec,
  type CaseGroup,
  type ConformanceCase,
} from "../harness.js";

const truthBackend = createReferenceBackend({ realType: "f64" });

const titleOf = (o: object) =>
  Object.entries(o)
    .filter(([, value]) => value !== false && value !== undefined)
    .map(([name, value]) => (value === true ? name : `${name} ${String(value)}`))
    .join(", ");

interface KroneckerOptions {
  readonly rows: number;
  readonly nLeft: number;
  readonly nRight: number;
  readonly left?: boolean;
  readonly right?: boolean;
  readonly diag?: boolean;
  readonly precision: Precision;
}

/** All terms of the transform and its gradients are products, so their absolute sums are the kernel of absolute inputs. */
function kroneckerMagnitude(
  buffers: Readonly<Record<string, BufferSpec>>,
  call: (kernels: Kernels, given: Buffers) => void,
) {
  const inputs = Object.entries(buffers).map(
    ([name, spec]) => [name, { ...spec, data: absolute(spec.data) }] as const,
  );
  return evaluate(truthBackend, Object.fromEntries(inputs), call);
}

function kroneckerInputs(options: KroneckerOptions, name: string) {
  const { rows, nLeft, nRight } = options;
  const random = new Random(name);
  const width = nLeft * nRight;
  const specs: Record<string, BufferSpec> = { x: real(random.normals(rows * width)) };
  if (options.left) specs.left = real(random.normals(nLeft * nLeft));
  if (options.right) specs.right = real(random.normals(nRight * nRight));
  if (options.diag) specs.diag = real(random.uniforms(width, 0.5, 2));
  return { random, width, specs };
}

function kroneckerCase(options: KroneckerOptions): ConformanceCase {
  const { rows, nLeft, nRight, precision } = options;
  const title = titleOf(options);
  const { width, specs } = kroneckerInputs(options, `kronecker ${title}`);
  const buffers = { ...specs, out: output(rows * width) };
  const run = (kernels: Kernels, b: Buffers) =>
    kernels.kronecker({
      rows,
      nLeft,
      nRight,
      precision,
      x: b.x,
      left: b.left,
      right: b.right,
      diag: b.diag,
      out: b.out,
    });
  const factor = precision === "bf16" ? 4 * U_BF16 * (1 + U_BF16) ** 3 : 0;
  return {
    ...{ kernel: "kronecker", title, buffers, outputs: ["out"], run },
    bounds: () => ({
      out: kroneckerMagnitude(buffers, run).out.map((v) => (factor + (nLeft + nRight + 4) * U) * v),
    }),
    norms: precision === "bf16" ? { out: 4 * U_BF16 } : undefined,
  };
}

function kroneckerBackwardCase(options: KroneckerOptions): ConformanceCase {
  const { rows, nLeft, nRight, precision } = options;
  const title = titleOf(options);
  const { random, width, specs } = kroneckerInputs(options, `kroneckerBackward ${title}`);
  const gradients: Record<string, BufferSpec> = { gradX: output(rows * width) };
  if (options.left) gradients.gradLeft = output(nLeft * nLeft);
  if (options.right) gradients.gradRight = output(nRight * nRight);
  if (options.diag) gradients.gradDiag = output(width);
  const buffers = { ...specs, grad: real(random.normals(rows * width)), ...gradients };
  const run = (kernels: Kernels, b: Buffers) =>
    kernels.kroneckerBackward({ rows, nLeft, nRight, precision, ...b } as never);
  const factor = precision === "bf16" ? 5 * U_BF16 * (1 + U_BF16) ** 4 : 0;
  const lengths: Record<string, number> = {
    gradX: nLeft + nRight,
    gradLeft: rows * nRight + nRight,
    gradRight: rows * nLeft + nLeft,
    gradDiag: rows + nLeft + nRight,
  };
  return {
    ...{ kernel: "kroneckerBackward", title, buffers, outputs: Object.keys(gradients), run },
    bounds: () => {
      const magnitude = kroneckerMagnitude(buffers, run);
      return Object.fromEntries(
        Object.keys(gradients).map((name) => [
          name,
          magnitude[name].map((v) => (factor + (lengths[name] + 5) * U) * v),
        ]),
      );
    },
    norms:
      precision === "bf16"
        ? Object.fromEntries(Object.keys(gradients).map((name) => [name, 5 * U_BF16]))
        : undefined,
  };
}

const KRONECKER_SHAPES = [
  [1, 1, 1],
  [3, 1, 7],
  [5, 4, 6],
  [17, 16, 16],
  [9, 24, 24],
  [33, 12, 20],
  [4, 32, 48],
  [65, 8, 8],
  [300, 12, 16],
] as const;

const kroneckerOptions = (precision: Precision): KroneckerOptions[] =>
  KRONECKER_SHAPES.flatMap(([rows, nLeft, nRight], i) => [
    { rows, nLeft, nRight, left: true, right: true, diag: i % 2 === 0, precision },
    ...(i % 3 === 0 ? [{ rows, nLeft, nRight, left: true, precision }] : []),
    ...(i % 3 === 1 ? [{ rows, nLeft, nRight, right: true, diag: true, precision }] : []),
  ]);

interface NormOptions {
  readonly kind: "rms" | "layer";
  readonly rows: number;
  readonly cols: number;
  readonly bias?: boolean;
  readonly size?: number;
  readonly mean?: number;
}

const EPSILON = 1e-5;

/** Per row: mean |x|, and the normalizing factor. */
function rowMoments(kind: "rms" | "layer", row: Float64Array) {
  const cols = row.length;
  const mean = kind === "layer" ? row.reduce((a, b) => a + b, 0) / cols : 0;
  const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / cols;
  // What subtracting the mean costs: its own rounding errors, relative to |x|.
  const shift = kind === "layer" ? row.reduce((a, b) => a + Math.abs(b), 0) / cols : 0;
  return { mean, shift, inverse: 1 / Math.sqrt(variance + EPSILON) };
}

function normCase(options: NormOptions): ConformanceCase {
  const { kind, rows, cols, size = 1, mean = 0 } = options;
  const title = titleOf(options);
  const random = new Random(`norm ${title}`);
  const x = random.normals(rows * cols, size, mean);
  const gain = random.normals(cols);
  const bias = options.bias ? random.normals(cols) : undefined;
  return {
    kernel: "norm",
    title,
    buffers: {
      x: real(x),
      gain: real(gain),
      ...(bias ? { bias: real(bias) } : {}),
      out: output(rows * cols),
    },
    outputs: ["out"],
    run: (kernels, b) =>
      kernels.norm({
        kind,
        rows,
        cols,
        epsilon: EPSILON,
        x: b.x,
        gain: b.gain,
        bias: b.bias,
        out: b.out,
      }),
    bounds: () => {
      const bound = new Float64Array(rows * cols);
      for (let r = 0; r < rows; r++) {
        const row = x.subarray(r * cols, (r + 1) * cols);
        const m = rowMoments(kind, row);
        row.forEach((v, c) => {
          const size = (Math.abs(v - m.mean) + m.shift) * m.inverse * Math.abs(gain[c]);
          bound[r * cols + c] = U * ((cols + 12) * size + 2 * Math.abs(bias ? bias[c] : 0));
        });
      }
      return { out: bound };
    },
  };
}

function normBackwardCase(options: NormOptions): ConformanceCase {
  const { kind, rows, cols, size = 1, mean = 0 } = options;
  const title = titleOf(options);
  const random = new Random(`normBackward ${title}`);
  const x = random.normals(rows * cols, size, mean);
  const gain = random.normals(cols);
  const grad = random.normals(rows * cols);
  return {
    kernel: "normBackward",
    title,
    buffers: {
      ...{
        x: real(x),
        gain: real(gain),
        grad: real(grad),
        gradX: output(rows * cols),
        gradGain: output(cols),
      },
      ...(kind === "layer" ? { gradBias: output(cols) } : {}),
    },
    outputs: ["gradX", "gradGain", "gradBias"],
    run: (kernels, b) =>
      kernels.normBackward({ kind, rows, cols, epsilon: EPSILON, ...b } as never),
    bounds: () => {
      const gradX = new Float64Array(rows * cols);
      const gradGain = new Float64Array(cols);
      const gradBias = new Float64Array(cols);
      for (let r = 0; r < rows; r++) {
        const row = x.subarray(r * cols, (r + 1) * cols);
        const m = rowMoments(kind, row);
        const n = row.map((v) => (Math.abs(v - m.mean) + m.shift) * m.inverse);
        const g = grad.subarray(r * cols, (r + 1) * cols);
        const d = g.map((v, c) => Math.abs(v * gain[c]));
        const meanD = kind === "layer" ? d.reduce((a, b) => a + b, 0) / cols : 0;
        const meanDN = d.reduce((a, v, c) => a + v * n[c], 0) / cols;
        for (let c = 0; c < cols; c++) {
          gradX[r * cols + c] = (2 * cols + 24) * U * m.inverse * (d[c] + n[c] * meanDN + meanD);
          gradGain[c] += (rows + cols + 12) * U * Math.abs(g[c]) * n[c];
          gradBias[c] += (rows + 2) * U * Math.abs(g[c]);
        }
      }
      return { gradX, gradGain, gradBias };
    },
  };
}

const normOptions: NormOptions[] = [
  { kind: "rms", rows: 1, cols: 1 },
  { kind: "rms", rows: 5, cols: 10 },
  { kind: "rms", rows: 33, cols: 64 },
  { kind: "rms", rows: 3, cols: 577 },
  { kind: "rms", rows: 7, cols: 96, size: 1e-3 },
  { kind: "rms", rows: 4, cols: 31, size: 100, bias: true },
  { kind: "rms", rows: 400, cols: 160 },
  { kind: "layer", rows: 5, cols: 10, bias: true },
  { kind: "layer", rows: 19, cols: 64 },
  { kind: "layer", rows: 3, cols: 577, mean: 5, bias: true },
  { kind: "layer", rows: 64, cols: 33, size: 20, bias: true },
  { kind: "rms", rows: 3, cols: 1301 },
  { kind: "layer", rows: 5, cols: 2052, mean: 1, bias: true },
];

function ropeCase(
  rows: number,
  heads: number,
  headDim: number,
  period: number,
  inverse: boolean,
): ConformanceCase {
  const title = titleOf({ rows, heads, headDim, period, inverse });
  const random = new Random(`rope ${title}`);
  const half = headDim / 2;
  const x = random.normals(rows * heads * headDim);
  const angles = Float64Array.from(
    { length: period * half },
    (_, i) => Math.floor(i / half) * 100 ** (-(i % half) / half),
  );
  return {
    kernel: "rope",
    title,
    buffers: {
      ...{ x: real(x), cos: real(angles.map(Math.cos)), sin: real(angles.map(Math.sin)) },
      out: output(x.length),
    },
    outputs: ["out"],
    run: (kernels, { x: given, cos, sin, out }) =>
      kernels.rope({ rows, heads, headDim, period, inverse, x: given, cos, sin, out }),
    bounds: () => ({
      // |a·cos| + |b·sin| ≤ √2·hypot(a, b).
      out: x.map((_, i) => {
        const first = i % headDim < half ? i : i - half;
        return 2 * U * Math.SQRT2 * Math.hypot(x[first], x[first + half]);
      }),
    }),
  };
}

function gatherCase(tableRows: number, cols: number, rows: number): ConformanceCase {
  const title = titleOf({ tableRows, cols, rows });
  const random = new Random(`gatherRows ${title}`);
  return {
    kernel: "gatherRows",
    title,
    buffers: {
      table: real(random.normals(tableRows * cols)),
      ids: ids(random.integers(rows, 0, tableRows - 1)),
      out: output(rows * cols),
    },
    outputs: ["out"],
    run: (kernels, { table, ids: given, out }) =>
      kernels.gatherRows({ table, cols, ids: given, rows, out }),
    bounds: () => ({ out: new Float64Array(rows * cols) }),
  };
}

export const rowGroups: CaseGroup[] = [
  {
    bound: "kronecker f32: |error| ≤ (nLeft+nRight+4)·u·(|leftᵀ|·|x⊙diag|·|right|)",
    cases: kroneckerOptions("f32").map(kroneckerCase),
  },
  {
    bound:
      "kronecker bf16: four roundings to bf16 in every term; in norm 4·2⁻⁸, twice the √4·2⁻⁸/√3 that independent roundings give",
    cases: kroneckerOptions("bf16").map(kroneckerCase),
  },
  {
    bound: "kroneckerBackward f32: (summed terms + 5)·u of the absolute sum, for every gradient",
    cases: kroneckerOptions("f32").map(kroneckerBackwardCase),
  },
  {
    bound: "kroneckerBackward bf16: five roundings to bf16 in every term; in norm 5·2⁻⁸",
    cases: kroneckerOptions("bf16").map(kroneckerBackwardCase),
  },
  {
    bound:
      "norm: (cols+12)·u·(|x−mean| + mean|x|)·inverse·|gain| + 2u·|bias|; the mean's share for layer norm only",
    cases: normOptions.map(normCase),
  },
  {
    bound:
      "normBackward: (2·cols+24)·u of the absolute terms for x, (rows+cols+12)·u for gain, (rows+2)·u for bias",
    cases: normOptions.map(normBackwardCase),
  },
  {
    bound: "rope: two roundings: |error| ≤ 2u·(|a·cos| + |b·sin|)",
    cases: [
      ropeCase(1, 1, 2, 1, false),
      ropeCase(7, 3, 8, 7, false),
      ropeCase(12, 2, 64, 4, true),
      ropeCase(40, 5, 20, 13, true),
      ropeCase(33, 9, 128, 33, false),
      ropeCase(5, 2, 6, 9, true),
      ropeCase(600, 4, 32, 150, false),
    ],
  },
  {
    bound: "gatherRows: exact",
    cases: [
      gatherCase(1, 1, 3),
      gatherCase(10, 7, 25),
      gatherCase(100, 64, 40),
      gatherCase(50, 577, 9),
    ],
  },
];
