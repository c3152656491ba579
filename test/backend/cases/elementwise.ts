/** Conformance cases of elementwise maps, sums, losses and the optimizer. */

import type {
  AdamWArgs,
  BinaryArgs,
  ReduceArgs,
  UnaryOp,
} from "../../../src/backend/contract/training.js";
import { ids, output, Random, real, U, type CaseGroup, type ConformanceCase } from "../harness.js";

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
/** The last is past the point where kernels split their work over threads. */
const LENGTHS = [1, 5, 16, 33, 1000, 70001] as const;

/**
 * Sizes that errors of f32 are relative to, in units of u. A library exponential is taken to be good to 2 roundings
 * after an argument reduction that may cost u·|x|.
 */
const UNARY_SIZE: Readonly<
  Record<UnaryOp, { value(x: number): number; slope(x: number): number }>
> = {
  sigmoid: {
    value: (x) => sigmoid(x) * (8 + 2 * Math.abs(x) * (1 - sigmoid(x))),
    // 1 − σ loses up to u to cancellation.
    slope: (x) => sigmoid(x) * (1 - sigmoid(x)) * (12 + 2 * Math.abs(x)) + 2 * sigmoid(x),
  },
  silu: {
    value: (x) => Math.abs(x) * sigmoid(x) * (9 + 2 * Math.abs(x) * (1 - sigmoid(x))),
    slope: siluSlopeSize,
  },
  relu: { value: () => 0, slope: () => 0 },
  // 1 + erf cancels for negative x, so errors are relative to |x|, not to the result.
  gelu: { value: (x) => 8 * Math.abs(x), slope: (x) => 8 + 8 * Math.abs(x) },
  geluTanh: { value: (x) => 8 * Math.abs(x), slope: (x) => 8 + 16 * Math.abs(x) },
  reciprocal: { value: (x) => 2 / Math.abs(x), slope: (x) => 4 / (x * x) },
  negate: { value: () => 0, slope: () => 0 },
  relu2: { value: (x) => x * x, slope: (x) => 4 * Math.abs(x) },
};

/** Terms of σ(x)·(1 + x·(1−σ(x))) in absolute value. */
function siluSlopeSize(x: number): number {
  const s = sigmoid(x);
  return s * (12 + Math.abs(x) * ((1 - s) * (16 + 2 * Math.abs(x)) + 2));
}

function unaryInput(op: UnaryOp, random: Random, length: number): Float64Array {
  if (op !== "reciprocal") return random.normals(length, 3);
  return random.normals(length).map((v) => Math.fround(Math.sign(v) * (Math.abs(v) + 0.1)));
}

function unaryCase(op: UnaryOp, length: number): ConformanceCase {
  const x = unaryInput(op, new Random(`unary ${op} ${length}`), length);
  return {
    kernel: "unary",
    title: `${op}, length ${length}`,
    buffers: { x: real(x), out: output(length) },
    outputs: ["out"],
    run: (kernels, { x: given, out }) => kernels.unary({ op, x: given, length, out }),
    bounds: () => ({ out: x.map((v) => U * UNARY_SIZE[op].value(v)) }),
  };
}

function unaryBackwardCase(op: UnaryOp, length: number): ConformanceCase {
  const random = new Random(`unaryBackward ${op} ${length}`);
  const x = unaryInput(op, random, length);
  const grad = random.normals(length);
  return {
    kernel: "unaryBackward",
    title: `${op}, length ${length}`,
    buffers: { x: real(x), grad: real(grad), gradX: output(length) },
    outputs: ["gradX"],
    run: (kernels, b) =>
      kernels.unaryBackward({ op, x: b.x, length, grad: b.grad, gradX: b.gradX }),
    bounds: () => ({ gradX: x.map((v, i) => U * UNARY_SIZE[op].slope(v) * Math.abs(grad[i])) }),
  };
}

function binaryCase(
  op: BinaryArgs["op"],
  broadcast: BinaryArgs["broadcast"],
  rows: number,
  cols: number,
  inPlace: boolean,
): ConformanceCase {
  const title = `${op}, ${broadcast}, ${rows}×${cols}${inPlace ? ", in place" : ""}`;
  const random = new Random(`binary ${title}`);
  const length = { full: rows * cols, row: cols, column: rows, scalar: 1 }[broadcast];
  const name = inPlace ? "a" : "out";
  return {
    kernel: "binary",
    title,
    buffers: {
      a: real(random.normals(rows * cols)),
      b: real(random.normals(length)),
      ...(inPlace ? {} : { out: output(rows * cols) }),
    },
    outputs: [name],
    run: (kernels, given) =>
      kernels.binary({ op, rows, cols, a: given.a, b: given.b, broadcast, out: given[name] }),
    bounds: (truth) => ({ [name]: truth[name].map((v) => 1.01 * U * Math.abs(v)) }),
  };
}

function reduceCase(
  rows: number,
  cols: number,
  keep: ReduceArgs["keep"],
  withY: boolean,
): ConformanceCase {
  const title = `${rows}×${cols}, keep ${keep}${withY ? ", with y" : ""}`;
  const random = new Random(`reduce ${title}`);
  const alpha = -0.37;
  const x = random.normals(rows * cols);
  const y = withY ? random.normals(rows * cols) : undefined;
  const length = keep === "row" ? cols : keep === "column" ? rows : 1;
  const terms = keep === "row" ? rows : keep === "column" ? cols : rows * cols;
  return {
    kernel: "reduce",
    title,
    buffers: { x: real(x), ...(y ? { y: real(y) } : {}), out: output(length) },
    outputs: ["out"],
    run: (kernels, b) => kernels.reduce({ rows, cols, x: b.x, y: b.y, keep, alpha, out: b.out }),
    bounds: () => {
      const sums = new Float64Array(length);
      x.forEach((v, i) => {
        const at = keep === "row" ? i % cols : keep === "column" ? Math.floor(i / cols) : 0;
        sums[at] += Math.abs(alpha * v * (y ? y[i] : 1));
      });
      return { out: sums.map((v) => (terms + 3) * U * v) };
    },
  };
}

function columnMaximaCase(rows: number, cols: number): ConformanceCase {
  const title = `${rows}×${cols}`;
  const random = new Random(`columnMaxima ${title}`);
  return {
    kernel: "columnMaxima",
    title,
    buffers: {
      x: real(random.normals(rows * cols)),
      // What is there already is larger in some columns.
      out: real(random.uniforms(cols, 0, 4)),
    },
    outputs: ["out"],
    run: (kernels, { x, out }) => kernels.columnMaxima({ rows, cols, x, out }),
    bounds: () => ({ out: new Float64Array(cols) }),
  };
}

function scaleCase(length: number, accumulate: boolean): ConformanceCase {
  const title = `length ${length}${accumulate ? ", accumulate" : ""}`;
  const random = new Random(`scale ${title}`);
  const alpha = 1 / 3;
  const x = random.normals(length);
  const before = random.normals(length);
  return {
    kernel: "scale",
    title,
    buffers: { x: real(x), out: accumulate ? real(before) : output(length) },
    outputs: ["out"],
    run: (kernels, b) => kernels.scale({ x: b.x, length, alpha, accumulate, out: b.out }),
    bounds: () => ({
      out: x.map((v, i) => 3 * U * (Math.abs(alpha * v) + (accumulate ? Math.abs(before[i]) : 0))),
    }),
  };
}

function siluMulCase(length: number): ConformanceCase {
  const random = new Random(`siluMul ${length}`);
  const [gate, up] = [random.normals(length, 3), random.normals(length)];
  return {
    kernel: "siluMul",
    title: `length ${length}`,
    buffers: { gate: real(gate), up: real(up), out: output(length) },
    outputs: ["out"],
    run: (kernels, b) => kernels.siluMul({ gate: b.gate, up: b.up, length, out: b.out }),
    bounds: () => ({
      out: gate.map(
        (v, i) => U * (UNARY_SIZE.silu.value(v) + Math.abs(v) * sigmoid(v)) * Math.abs(up[i]),
      ),
    }),
  };
}

function siluMulBackwardCase(length: number): ConformanceCase {
  const random = new Random(`siluMulBackward ${length}`);
  const [gate, up, grad] = [
    random.normals(length, 3),
    random.normals(length),
    random.normals(length),
  ];
  return {
    kernel: "siluMulBackward",
    title: `length ${length}`,
    buffers: {
      ...{ gate: real(gate), up: real(up), grad: real(grad) },
      ...{ gradGate: output(length), gradUp: output(length) },
    },
    outputs: ["gradGate", "gradUp"],
    run: (kernels, b) => kernels.siluMulBackward({ length, ...b } as never),
    bounds: () => ({
      gradGate: gate.map((v, i) => U * siluSlopeSize(v) * 1.2 * Math.abs(up[i] * grad[i])),
      gradUp: gate.map((v, i) => U * UNARY_SIZE.silu.value(v) * 1.2 * Math.abs(grad[i])),
    }),
  };
}

function mseCase(length: number): ConformanceCase {
  const random = new Random(`mse ${length}`);
  return {
    kernel: "mse",
    title: `length ${length}`,
    buffers: { a: real(random.normals(length)), b: real(random.normals(length)), loss: output(1) },
    outputs: ["loss"],
    run: (kernels, { a, b, loss }) => kernels.mse({ a, b, length, loss }),
    // Terms are positive, so the sum's error is relative to the result.
    bounds: ({ loss }) => ({ loss: loss.map((v) => (length + 6) * U * v) }),
  };
}

/** Error of a row's logsumexp: a sum of cols exponentials, their arguments' rounding, the final logarithm and sum. */
function lseError(row: Float64Array): number {
  const largest = Math.max(...row.map(Math.abs));
  return (row.length + 8 + 6 * largest) * U;
}

function nllCase(rows: number, cols: number, size: number): ConformanceCase {
  const title = `${rows}×${cols}, logits of size ${size}`;
  const random = new Random(`nll ${title}`);
  const logits = random.normals(rows * cols, size);
  const targets = random.integers(rows, 0, cols - 1).map((v, r) => (r % 5 === 4 ? -1 : v));
  return {
    kernel: "nll",
    title,
    buffers: { logits: real(logits), targets: ids(targets), nll: output(rows) },
    outputs: ["nll"],
    run: (kernels, b) =>
      kernels.nll({ logits: b.logits, rows, cols, targets: b.targets, nll: b.nll }),
    bounds: ({ nll }) => ({
      nll: nll.map((v, r) =>
        targets[r] === -1
          ? 0
          : lseError(logits.subarray(r * cols, (r + 1) * cols)) + 2 * U * Math.abs(v),
      ),
    }),
  };
}

function softmaxKlCase(rows: number, cols: number, withGradient: boolean): ConformanceCase {
  const title = `${rows}×${cols}${withGradient ? ", gradient" : ""}`;
  const random = new Random(`softmaxKl ${title}`);
  const teacher = random.normals(rows * cols, 3);
  const student = teacher.map((v) => Math.fround(v + 0.3 * random.normal()));
  const gradScale = 0.01;
  return {
    kernel: "softmaxKl",
    title,
    buffers: {
      ...{ teacher: real(teacher), student: real(student), kl: output(rows) },
      ...(withGradient ? { gradStudent: output(rows * cols) } : {}),
    },
    outputs: ["kl", "gradStudent"],
    run: (kernels, b) => kernels.softmaxKl({ rows, cols, gradScale, ...b } as never),
    bounds: () => {
      const kl = new Float64Array(rows);
      const gradStudent = new Float64Array(rows * cols);
      for (let r = 0; r < rows; r++) {
        const row = (x: Float64Array) => x.subarray(r * cols, (r + 1) * cols);
        const softmax = (x: Float64Array) => {
          const shifted = x.map((v) => Math.exp(v - Math.max(...x)));
          const sum = shifted.reduce((a, b) => a + b, 0);
          return shifted.map((v) => v / sum);
        };
        const error = 2 * (lseError(row(teacher)) + lseError(row(student)));
        const [p, q] = [softmax(row(teacher)), softmax(row(student))];
        const spread = p.reduce((sum, v, c) => sum + v * Math.abs(Math.log(v / q[c])), 0);
        // log p − log q carries both rows' errors; p itself is relative, and the sum over p adds cols roundings.
        kl[r] = error + (error + cols * U) * spread;
        if (withGradient)
          p.forEach(
            (v, c) => (gradStudent[r * cols + c] = gradScale * (error + 4 * U) * (v + q[c])),
          );
      }
      return { kl, gradStudent };
    },
  };
}

type AdamWSettings = Partial<
  Record<Exclude<keyof AdamWArgs, "param" | "grad" | "moment1" | "moment2" | "length">, number>
>;

function adamWCase(length: number, options: AdamWSettings): ConformanceCase {
  const title = `length ${length}, ${Object.entries(options)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ")}`;
  const random = new Random(`adamW ${title}`);
  const settings = {
    ...{
      step: 1,
      learningRate: 5e-3,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.01,
      gradScale: 1,
    },
    ...options,
  };
  const first = settings.step === 1;
  const param = random.normals(length, settings.bound ?? 1);
  const grad = random.normals(length);
  const moment1 = first ? new Float64Array(length) : random.normals(length, 0.3);
  const moment2 = first ? new Float64Array(length) : random.uniforms(length, 0.01, 1);
  return {
    kernel: "adamW",
    title,
    buffers: {
      param: real(param),
      grad: real(grad),
      moment1: real(moment1),
      moment2: real(moment2),
    },
    outputs: ["param", "moment1", "moment2"],
    run: (kernels, b) => kernels.adamW({ length, ...settings, ...b } as never),
    bounds: () => {
      const bounds = { param: param.slice(), moment1: param.slice(), moment2: param.slice() };
      const { beta1, beta2, learningRate, step, epsilon, weightDecay, gradScale } = settings;
      for (let i = 0; i < length; i++) {
        const g = grad[i] * gradScale;
        const m = Math.abs(beta1 * moment1[i]) + Math.abs((1 - beta1) * g);
        const v = beta2 * moment2[i] + (1 - beta2) * g * g;
        const update = m / (1 - beta1 ** step) / (Math.sqrt(v / (1 - beta2 ** step)) + epsilon);
        bounds.moment1[i] = 5 * U * m;
        bounds.moment2[i] = 6 * U * v;
        bounds.param[i] =
          U *
          (3 * Math.abs(param[i] * (1 - learningRate * weightDecay)) + 20 * learningRate * update);
      }
      return bounds;
    },
  };
}

const OPS: readonly UnaryOp[] = [
  "sigmoid",
  "silu",
  "relu",
  "gelu",
  "geluTanh",
  "reciprocal",
  "negate",
];
const RECTANGLES = [
  [1, 1],
  [3, 7],
  [1, 100],
  [100, 1],
  [33, 65],
  [17, 256],
  [301, 233],
] as const;

export const elementwiseGroups: CaseGroup[] = [
  {
    bound:
      "unary: 8 roundings of the result plus the exponential's 2u·|x|; gelu relative to |x|; relu and negate exact",
    cases: OPS.flatMap((op) => LENGTHS.map((length) => unaryCase(op, length))),
  },
  {
    bound: "unaryBackward: the same, of the derivative's absolute terms",
    cases: OPS.flatMap((op) => LENGTHS.map((length) => unaryBackwardCase(op, length))),
  },
  {
    bound: "binary: correctly rounded",
    cases: RECTANGLES.flatMap(([rows, cols], i) =>
      (["full", "row", "column", "scalar"] as const).map((broadcast, j) =>
        binaryCase(
          (["add", "sub", "mul"] as const)[(i + j) % 3],
          broadcast,
          rows,
          cols,
          (i + j) % 2 === 1,
        ),
      ),
    ),
  },
  {
    bound: "reduce: (terms+3)·u of the absolute sum",
    cases: [
      ...RECTANGLES.flatMap(([rows, cols], i) =>
        (["row", "column", "scalar"] as const).map((keep, j) =>
          reduceCase(rows, cols, keep, (i + j) % 2 === 0),
        ),
      ),
      reduceCase(6, 1403, "column", false),
      reduceCase(5, 2052, "column", true),
    ],
  },
  {
    bound: "columnMaxima: exact",
    cases: [
      columnMaximaCase(1, 1),
      columnMaximaCase(7, 33),
      columnMaximaCase(100, 5),
      columnMaximaCase(64, 600),
    ],
  },
  {
    bound: "scale: three roundings",
    cases: LENGTHS.flatMap((n) => [scaleCase(n, false), scaleCase(n, true)]),
  },
  { bound: "siluMul: as silu, one rounding more", cases: LENGTHS.map(siluMulCase) },
  {
    bound: "siluMulBackward: as silu's derivative, 1.2 times for two products",
    cases: LENGTHS.map(siluMulBackwardCase),
  },
  { bound: "mse: (length+6)·u relative (all terms positive)", cases: LENGTHS.map(mseCase) },
  {
    bound: "nll: (cols + 8 + 6·max|logit|)·u absolute, 2u relative; ignored rows exactly 0",
    cases: [
      nllCase(1, 1, 1),
      nllCase(7, 5, 1),
      nllCase(20, 33, 5),
      nllCase(3, 1000, 10),
      nllCase(11, 257, 40),
    ],
  },
  {
    bound:
      "softmaxKl: both rows' logsumexp errors, absolute for kl, relative to p + q for the gradient",
    cases: [
      softmaxKlCase(1, 2, true),
      softmaxKlCase(7, 5, false),
      softmaxKlCase(9, 65, true),
      softmaxKlCase(3, 1000, true),
    ],
  },
  {
    bound: "adamW: moments within 5 and 6 roundings, param within 3u·|param| + 20u·|update|",
    cases: [
      adamWCase(1, { step: 1 }),
      adamWCase(33, { step: 1, weightDecay: 0 }),
      adamWCase(1000, { step: 7, gradScale: 0.125 }),
      adamWCase(70001, { step: 1000, learningRate: 5e-2 }),
      adamWCase(64, { step: 3, bound: 0.5, learningRate: 0.3 }),
    ],
  },
];
