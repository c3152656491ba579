/**
 * Runs one golden op case on a backend's kernels, forward and backward. The op is found by the family in the case's
 * name (`act_sym3_b` is family act_sym, 3 bits); sizes come from the tensors. A new family is one entry of FAMILIES.
 */

import type { Backend, Buffer } from "../../src/backend/contract/training.js";
import type { GoldenCase, GoldenTensor } from "./support.js";

const NORM_EPSILON = 1e-5;
const ROPE_THETA = 10000;
/** Floor of a weight row's scale (docs/methods.md, Grids). */
const WEIGHT_SCALE_FLOOR = 1e-5;

export interface OpResult {
  readonly out: Float64Array;
  /** By input name, without `grad.`. */
  readonly grads: Readonly<Record<string, Float64Array>>;
}

/** What a family's runner sees: its inputs and cotangent as device buffers, and a way to make outputs. */
class CaseRun {
  readonly used = new Set<string>(["out", "cotangent"]);
  constructor(
    readonly backend: Backend,
    readonly golden: GoldenCase,
  ) {}

  shape(name: string): readonly number[] {
    return this.tensor(name).shape;
  }

  input(name: string): Buffer {
    this.used.add(`in.${name}`).add(`grad.${name}`);
    return this.upload(this.tensor(`in.${name}`).data);
  }

  optional(name: string): Buffer | undefined {
    return this.golden.tensors.has(`in.${name}`) ? this.input(name) : undefined;
  }

  get cotangent(): Buffer {
    return this.upload(this.tensor("cotangent").data);
  }

  upload(data: Float64Array): Buffer {
    const buffer = this.backend.alloc(this.backend.realType, data.length);
    this.backend.write(buffer, data);
    return buffer;
  }

  real(length: number): Buffer {
    const buffer = this.backend.alloc(this.backend.realType, length);
    this.backend.fill(buffer, NaN);
    return buffer;
  }

  /** Like another buffer in size; undefined for undefined. */
  like(buffer: Buffer): Buffer;
  like(buffer: Buffer | undefined): Buffer | undefined;
  like(buffer: Buffer | undefined): Buffer | undefined {
    return buffer && this.real(buffer.length);
  }

  private tensor(name: string): GoldenTensor {
    const tensor = this.golden.tensors.get(name);
    if (!tensor) throw new Error(`golden case ${this.golden.name} has no ${name}`);
    return tensor;
  }
}

interface Outputs {
  out: Buffer;
  grads: Record<string, Buffer | undefined>;
}

type Runner = (run: CaseRun, bits: number) => Outputs;

const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

function normRunner(kind: "rms" | "layer"): Runner {
  return (run) => {
    const { kernels } = run.backend;
    const shape = run.shape("in.x");
    const cols = shape[shape.length - 1];
    const x = run.input("x");
    const gain = run.input("g");
    const bias = run.optional("b");
    const common = { kind, x, rows: product(shape) / cols, cols, gain, epsilon: NORM_EPSILON };
    const out = run.like(x);
    kernels.norm({ ...common, bias, out });
    const [gradX, gradGain, gradBias] = [run.like(x), run.like(gain), run.like(bias)];
    kernels.normBackward({ ...common, grad: run.cotangent, gradX, gradGain, gradBias });
    return { out, grads: { x: gradX, g: gradGain, b: gradBias } };
  };
}

/** x is [batch, heads, time, dim]; each (batch, head) plane is [time, 1 head, dim] to the kernel. */
const rope: Runner = (run) => {
  const { kernels } = run.backend;
  const [batch, heads, time, headDim] = run.shape("in.x");
  const half = headDim / 2;
  const angle = (i: number) => Math.floor(i / half) * ROPE_THETA ** (-(2 * (i % half)) / headDim);
  const x = run.input("x");
  const [out, gradX] = [run.like(x), run.like(x)];
  const common = {
    rows: batch * heads * time,
    heads: 1,
    headDim,
    period: time,
    cos: run.upload(Float64Array.from({ length: time * half }, (_, i) => Math.cos(angle(i)))),
    sin: run.upload(Float64Array.from({ length: time * half }, (_, i) => Math.sin(angle(i)))),
  };
  kernels.rope({ ...common, x, inverse: false, out });
  kernels.rope({ ...common, x: run.cotangent, inverse: true, out: gradX });
  return { out, grads: { x: gradX } };
};

const attention: Runner = (run) => {
  const { kernels } = run.backend;
  const [batch, heads, queryLength, headDim] = run.shape("in.q");
  const [, kvHeads, keyLength] = run.shape("in.k");
  const layout = (count: number, time: number) => ({
    batchStride: count * time * headDim,
    timeStride: headDim,
    headStride: time * headDim,
  });
  const [q, k, v] = [run.input("q"), run.input("k"), run.input("v")];
  const [out, logSumExp] = [run.like(q), run.real(batch * heads * queryLength)];
  const common = {
    ...{ batch, heads, kvHeads, headDim, queryLength, keyLength, q, k, v, out, logSumExp },
    ...{ causal: true, scale: 1 / Math.sqrt(headDim), precision: "f32" as const },
    qLayout: layout(heads, queryLength),
    kvLayout: layout(kvHeads, keyLength),
    outLayout: layout(heads, queryLength),
  };
  kernels.attention(common);
  const [gradQ, gradK, gradV] = [run.like(q), run.like(k), run.like(v)];
  kernels.attentionBackward({ ...common, grad: run.cotangent, gradQ, gradK, gradV });
  return { out, grads: { q: gradQ, k: gradK, v: gradV } };
};

const kronecker: Runner = (run) => {
  const { kernels } = run.backend;
  const shape = run.shape("in.x");
  const width = shape[shape.length - 1];
  const x = run.input("x");
  const [left, right, diag] = [run.optional("left"), run.optional("right"), run.optional("diag")];
  const nLeft = left ? run.shape("in.left")[0] : right ? width / run.shape("in.right")[0] : 1;
  const common = {
    ...{ x, left, right, diag, nLeft, nRight: width / nLeft, rows: product(shape) / width },
    precision: "f32" as const,
  };
  const out = run.like(x);
  kernels.kronecker({ ...common, out });
  const [gradX, gradLeft, gradRight, gradDiag] = [x, left, right, diag].map((b) => run.like(b));
  kernels.kroneckerBackward({
    ...common,
    grad: run.cotangent,
    gradX,
    gradLeft,
    gradRight,
    gradDiag,
  });
  return { out, grads: { x: gradX, left: gradLeft, right: gradRight, diag: gradDiag } };
};

const cayley: Runner = (run) => {
  const { kernels } = run.backend;
  const n = run.shape("in.seed")[0];
  const seed = run.input("seed");
  const [out, gradSeed] = [run.like(seed), run.like(seed)];
  kernels.cayley({ seed, n, out });
  kernels.cayleyBackward({ seed, n, out, grad: run.cotangent, gradSeed });
  return { out, grads: { seed: gradSeed } };
};

/**
 * P = U·diag(t)·Vᵀ with U, V by Cayley and t = s or 1/s. With G the gradient of P and W = G·V:
 * dU = W·diag(t), dt = Σ_rows U ⊙ W, dV = Gᵀ·U·diag(t), and ds = −dt/s² for the reciprocal.
 */
function svdRunner(inverseTransposed: boolean): Runner {
  return (run) => {
    const { kernels } = run.backend;
    const n = run.shape("in.u")[0];
    const [seedU, seedV, s] = [run.input("u"), run.input("v"), run.input("s")];
    const [u, v, t, out] = [run.like(seedU), run.like(seedV), run.like(s), run.like(seedU)];
    const square = { m: n, n, k: n, precision: "f32" as const };
    kernels.cayley({ seed: seedU, n, out: u });
    kernels.cayley({ seed: seedV, n, out: v });
    if (inverseTransposed) kernels.unary({ op: "reciprocal", x: s, length: n, out: t });
    else run.backend.copy(s, t, n);
    kernels.matmul({
      ...square,
      a: { buffer: u },
      kScale: t,
      b: { buffer: v, transposed: true },
      out: { buffer: out },
    });

    const grad = run.cotangent;
    const [w, gradU, gradV, gradT, gradS] = [
      run.like(u),
      run.like(u),
      run.like(v),
      run.like(s),
      run.like(s),
    ];
    kernels.matmul({ ...square, a: { buffer: grad }, b: { buffer: v }, out: { buffer: w } });
    kernels.binary({ op: "mul", rows: n, cols: n, a: w, b: t, broadcast: "row", out: gradU });
    kernels.reduce({ rows: n, cols: n, x: u, y: w, keep: "row", alpha: 1, out: gradT });
    kernels.matmul({
      ...square,
      a: { buffer: grad, transposed: true },
      b: { buffer: u },
      nScale: t,
      out: { buffer: gradV },
    });
    if (inverseTransposed)
      kernels.unaryBackward({ op: "reciprocal", x: s, length: n, grad: gradT, gradX: gradS });
    else run.backend.copy(gradT, gradS, n);
    const [gradSeedU, gradSeedV] = [run.like(seedU), run.like(seedV)];
    kernels.cayleyBackward({ seed: seedU, n, out: u, grad: gradU, gradSeed: gradSeedU });
    kernels.cayleyBackward({ seed: seedV, n, out: v, grad: gradV, gradSeed: gradSeedV });
    return { out, grads: { u: gradSeedU, v: gradSeedV, s: gradS } };
  };
}

/** Symmetric grid of rows, as for activations. */
const activationSymmetric: Runner = (run, bits) => {
  const { kernels } = run.backend;
  const shape = run.shape("in.x");
  const cols = shape[shape.length - 1];
  const rows = product(shape) / cols;
  const x = run.input("x");
  const [clipMax, clipMin] = [run.optional("c_max"), run.optional("c_min")];
  const codes = run.backend.alloc("i8", rows * cols);
  const scale = run.real(rows);
  const common = { x, rows, cols, bits, clipMax, clipMin, scaleFloor: 0, codes, scale };
  const out = run.like(x);
  kernels.quantizeRows(common);
  kernels.dequantizeRows({ codes, scale, rows, cols, out });
  const [gradX, gradClipMax, gradClipMin] = [run.like(x), run.like(clipMax), run.like(clipMin)];
  kernels.quantizeRowsBackward({ ...common, grad: run.cotangent, gradX, gradClipMax, gradClipMin });
  return { out, grads: { x: gradX, c_max: gradClipMax, c_min: gradClipMin } };
};

/** Asymmetric grid of rows, as for the K and V cache. */
const activationAsymmetric: Runner = (run, bits) => {
  const { kernels } = run.backend;
  const shape = run.shape("in.x");
  const cols = shape[shape.length - 1];
  const x = run.input("x");
  const [clipMax, clipMin] = [run.optional("c_max"), run.optional("c_min")];
  const common = { x, rows: product(shape) / cols, cols, bits, clipMax, clipMin };
  const [out, gradX] = [run.like(x), run.like(x)];
  const [gradClipMax, gradClipMin] = [run.like(clipMax), run.like(clipMin)];
  kernels.fakeQuantizeAsym({ ...common, out });
  kernels.fakeQuantizeAsymBackward({
    ...common,
    grad: run.cotangent,
    gradX,
    gradClipMax,
    gradClipMin,
  });
  return { out, grads: { x: gradX, c_max: gradClipMax, c_min: gradClipMin } };
};

/** Weight rows: clamped to their learned range when there is one, then a symmetric grid without clips. */
const weightSymmetric: Runner = (run, bits) => {
  const { kernels } = run.backend;
  const [rows, cols] = run.shape("in.w");
  const w = run.input("w");
  const [clipMax, clipMin] = [run.optional("c_max"), run.optional("c_min")];
  const clips = clipMax && clipMin ? { clipMax, clipMin } : undefined;
  const clipped = clips ? run.like(w) : w;
  if (clips) kernels.clipRows({ x: w, rows, cols, ...clips, out: clipped });
  const codes = run.backend.alloc("i8", rows * cols);
  const scale = run.real(rows);
  const grid = { x: clipped, rows, cols, bits, scaleFloor: WEIGHT_SCALE_FLOOR, codes, scale };
  const [out, gradClipped] = [run.like(w), run.like(w)];
  kernels.quantizeRows(grid);
  kernels.dequantizeRows({ codes, scale, rows, cols, out });
  kernels.quantizeRowsBackward({ ...grid, grad: run.cotangent, gradX: gradClipped });
  if (!clips) return { out, grads: { w: gradClipped } };
  const [gradX, gradClipMax, gradClipMin] = [run.like(w), run.like(clipMax), run.like(clipMin)];
  kernels.clipRowsBackward({
    x: w,
    rows,
    cols,
    ...clips,
    grad: gradClipped,
    gradX,
    gradClipMax,
    gradClipMin,
  });
  return { out, grads: { w: gradX, c_max: gradClipMax, c_min: gradClipMin } };
};

/** Family patterns, first match wins; a captured number is the bit width. */
const FAMILIES: readonly (readonly [RegExp, Runner])[] = [
  [/^rmsnorm\d*(_|$)/, normRunner("rms")],
  [/^layernorm\d*(_|$)/, normRunner("layer")],
  [/^rope\d*(_|$)/, rope],
  [/^attention\d*(_|$)/, attention],
  [/^kronecker\d*(_|$)/, kronecker],
  [/^cayley\d*(_|$)/, cayley],
  [/^svd_affine\d*_inv_t\d*(_|$)/, svdRunner(true)],
  [/^svd_affine\d*(_|$)/, svdRunner(false)],
  [/^act_sym(\d+)(_|$)/, activationSymmetric],
  [/^act_asym(\d+)(_|$)/, activationAsymmetric],
  [/^weight_sym(\d+)(_|$)/, weightSymmetric],
];

/**
 * Forward and backward of one golden op case. Throws when no family matches the case's name, or when the case
 * has tensors that its family does not use (a vector that is not looked at must not count as passed).
 */
export function runOpCase(backend: Backend, golden: GoldenCase): OpResult {
  for (const [pattern, runner] of FAMILIES) {
    const match = pattern.exec(golden.name);
    if (!match) continue;
    const run = new CaseRun(backend, golden);
    const { out, grads } = runner(run, Number(match[1]));
    const unused = [...golden.tensors.keys()].filter((name) => !run.used.has(name));
    if (unused.length > 0)
      throw new Error(`golden op case ${golden.name}: nothing reads ${unused.join(", ")}`);
    const host = (buffer: Buffer) => Float64Array.from(backend.read(buffer) as Float64Array);
    const read: Record<string, Float64Array> = {};
    for (const [name, buffer] of Object.entries(grads)) if (buffer) read[name] = host(buffer);
    return { out: host(out), grads: read };
  }
  const known = FAMILIES.map(([pattern]) => pattern.source).join(" ");
  throw new Error(`golden op case ${golden.name}: unknown family; known patterns: ${known}`);
}
