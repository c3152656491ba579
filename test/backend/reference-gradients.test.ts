/**
 * The reference's backward kernels against central differences of its forward kernels, in float64.
 *
 * With L = Σ out·cotangent, (L(x+h) − L(x−h))/2h has a truncation error of h²·L'''/6 and a rounding error of about
 * 2⁻⁵³·|L|/h; h = 1e-5 balances them near 1e-10 for values of size 1, and the bound of 1e-7 of the largest element
 * leaves room for third derivatives of up to 1e3. Grids are no smooth functions: for them the straight-through rule is
 * written as a smooth surrogate first, whose rounding residuals are frozen.
 */

import { describe, expect, test } from "vitest";
import type { Buffer, Kernels, UnaryOp } from "../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { roundHalfEven } from "../../src/backend/reference/train/quantize.js";
import {
  recurrenceInputs,
  runRecurrenceBackward,
  type RecurrenceOptions,
} from "./cases/recurrent.js";
import { evaluate, output, Random, real, type Buffers, type BufferSpec } from "./harness.js";

const STEP = 1e-5;
const BOUND = 1e-7;

const backend = createReferenceBackend({ realType: "f64" });

type Inputs = Readonly<Record<string, Float64Array>>;

/** dL/dx by central differences for every element of every input. */
function numericGradients(
  inputs: Inputs,
  loss: (inputs: Inputs) => number,
): Record<string, Float64Array> {
  const gradients: Record<string, Float64Array> = {};
  for (const [name, values] of Object.entries(inputs)) {
    gradients[name] = values.map((value, i) => {
      const at = (x: number) => loss({ ...inputs, [name]: values.with(i, x) });
      return (at(value + STEP) - at(value - STEP)) / (2 * STEP);
    });
  }
  return gradients;
}

function expectGradients(actual: Inputs, expected: Inputs): void {
  expect(Object.keys(actual).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, values] of Object.entries(expected)) {
    const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    expect(largest, `gradient of ${name} is not all zero`).toBeGreaterThan(0);
    values.forEach((value, i) => {
      const error = Math.abs(actual[name][i] - value);
      if (!(error <= BOUND * Math.max(1, largest))) {
        expect.fail(`gradient of ${name}[${i}]: kernel ${actual[name][i]}, differences ${value}`);
      }
    });
  }
}

interface Smooth {
  readonly inputs: Inputs;
  readonly outLength: number;
  readonly forward: (kernels: Kernels, b: Buffers, out: Buffer) => void;
  /** Reads `b.out` and `b.cotangent`, writes `b["grad " + input]`. */
  readonly backward: (kernels: Kernels, b: Buffers) => void;
}

const specs = (inputs: Inputs): Record<string, BufferSpec> =>
  Object.fromEntries(
    Object.entries(inputs).map(([name, data]) => [name, { type: "real" as const, data }]),
  );

function checkSmooth({ inputs, outLength, forward, backward }: Smooth): void {
  const cotangent = new Random(`cotangent ${outLength}`).normals(outLength);
  const run = (given: Inputs) =>
    evaluate(backend, { ...specs(given), out: output(outLength) }, (kernels, b) =>
      forward(kernels, b, b.out),
    ).out;
  const loss = (given: Inputs) => run(given).reduce((sum, v, i) => sum + v * cotangent[i], 0);
  const gradients = Object.fromEntries(
    Object.entries(inputs).map(([name, { length }]) => [`grad ${name}`, output(length)]),
  );
  const result = evaluate(
    backend,
    {
      ...specs(inputs),
      ...gradients,
      out: real(new Float64Array(outLength)),
      cotangent: real(cotangent),
    },
    (kernels, b) => {
      forward(kernels, b, b.out);
      backward(kernels, b);
    },
  );
  const actual = Object.fromEntries(
    Object.keys(inputs).map((name) => [name, result[`grad ${name}`]]),
  );
  expectGradients(actual, numericGradients(inputs, loss));
}

const random = new Random("gradients");

describe("backward kernels of reference-f64: within 1e-7 of central differences", () => {
  test.each(["rms", "layer"] as const)("norm %s", (kind) => {
    const [rows, cols, epsilon] = [3, 7, 1e-5];
    const inputs: Record<string, Float64Array> = {
      x: random.normals(rows * cols),
      gain: random.normals(cols),
    };
    if (kind === "layer") inputs.bias = random.normals(cols);
    checkSmooth({
      inputs,
      outLength: rows * cols,
      forward: (kernels, b, out) =>
        kernels.norm({ kind, rows, cols, epsilon, x: b.x, gain: b.gain, bias: b.bias, out }),
      backward: (kernels, b) =>
        kernels.normBackward({
          ...{ kind, rows, cols, epsilon, x: b.x, gain: b.gain, grad: b.cotangent },
          ...{ gradX: b["grad x"], gradGain: b["grad gain"], gradBias: b["grad bias"] },
        }),
    });
  });

  test("rope: the inverse rotation", () => {
    const [rows, heads, headDim, period] = [6, 2, 4, 3];
    const angles = random.normals(period * (headDim / 2));
    const tables = (kernels: Kernels, x: Buffer, inverse: boolean, out: Buffer) => {
      const [cos, sin] = [Math.cos, Math.sin].map((f) => {
        const buffer = backend.alloc("f64", angles.length);
        backend.write(buffer, angles.map(f));
        return buffer;
      });
      kernels.rope({ x, rows, heads, headDim, period, cos, sin, inverse, out });
    };
    checkSmooth({
      inputs: { x: random.normals(rows * heads * headDim) },
      outLength: rows * heads * headDim,
      forward: (kernels, b, out) => tables(kernels, b.x, false, out),
      backward: (kernels, b) => tables(kernels, b.cotangent, true, b["grad x"]),
    });
  });

  test.each([
    { causal: true, window: 0, queryLength: 5, keyLength: 5 },
    { causal: true, window: 3, queryLength: 6, keyLength: 6 },
    { causal: false, window: 0, queryLength: 3, keyLength: 5 },
    { causal: true, window: 0, queryLength: 2, keyLength: 6 },
    { causal: true, window: 3, queryLength: 6, keyLength: 6, softcap: 0.7 },
    { causal: true, window: 0, chunk: 3, queryLength: 7, keyLength: 8, leaning: true },
  ])("attention %o", (options) => {
    const [batch, heads, kvHeads, headDim] = [2, 4, 2, 3];
    const { queryLength, keyLength } = options;
    // A stream of its own: what other tests draw stays as it was.
    const draw = "softcap" in options || "leaning" in options ? new Random("soft cap") : random;
    const slopes = "leaning" in options ? backend.alloc("f64", heads) : undefined;
    if (slopes) backend.write(slopes, Float64Array.of(0.5, 0.25, 0.125, 0));
    const layout = (time: number, count: number) => ({
      batchStride: time * count * headDim,
      timeStride: count * headDim,
      headStride: headDim,
    });
    const logSumExp = backend.alloc("f64", batch * heads * queryLength);
    const common = {
      ...{
        ...options,
        batch,
        heads,
        kvHeads,
        headDim,
        slopes,
        scale: 1 / Math.sqrt(headDim),
        precision: "f32" as const,
      },
      ...{ qLayout: layout(queryLength, heads), kvLayout: layout(keyLength, kvHeads) },
      ...{ outLayout: layout(queryLength, heads), logSumExp },
    };
    const outLength = batch * queryLength * heads * headDim;
    const kvLength = batch * keyLength * kvHeads * headDim;
    checkSmooth({
      inputs: {
        q: draw.normals(outLength),
        k: draw.normals(kvLength),
        v: draw.normals(kvLength),
      },
      outLength,
      forward: (kernels, b, out) => kernels.attention({ ...common, q: b.q, k: b.k, v: b.v, out }),
      backward: (kernels, b) =>
        kernels.attentionBackward({
          ...{ ...common, q: b.q, k: b.k, v: b.v, out: b.out, grad: b.cotangent },
          ...{ gradQ: b["grad q"], gradK: b["grad k"], gradV: b["grad v"] },
        }),
    });
  });

  test.each([["left", "right", "diag"], ["left"], ["right", "diag"], ["diag"]])(
    "kronecker with %s %s %s",
    (...names) => {
      const [rows, nLeft, nRight] = [3, 2, 4];
      const sizes: Record<string, number> = {
        left: nLeft * nLeft,
        right: nRight * nRight,
        diag: nLeft * nRight,
      };
      const inputs: Record<string, Float64Array> = { x: random.normals(rows * nLeft * nRight) };
      for (const name of names) if (name) inputs[name] = random.normals(sizes[name]);
      const common = (b: Buffers) => ({
        ...{ rows, nLeft, nRight, precision: "f32" as const },
        ...{ x: b.x, left: b.left, right: b.right, diag: b.diag },
      });
      checkSmooth({
        inputs,
        outLength: rows * nLeft * nRight,
        forward: (kernels, b, out) => kernels.kronecker({ ...common(b), out }),
        backward: (kernels, b) =>
          kernels.kroneckerBackward({
            ...{ ...common(b), grad: b.cotangent, gradX: b["grad x"], gradLeft: b["grad left"] },
            ...{ gradRight: b["grad right"], gradDiag: b["grad diag"] },
          }),
      });
    },
  );

  test.each([2, 5])("cayley n %i", (n) => {
    checkSmooth({
      inputs: { seed: random.normals(n * n) },
      outLength: n * n,
      forward: (kernels, { seed }, out) => kernels.cayley({ seed, n, out }),
      backward: (kernels, b) =>
        kernels.cayleyBackward({
          seed: b.seed,
          n,
          out: b.out,
          grad: b.cotangent,
          gradSeed: b["grad seed"],
        }),
    });
  });

  test.each(["sigmoid", "silu", "relu", "gelu", "geluTanh", "reciprocal", "negate"] as UnaryOp[])(
    "unary %s",
    (op) => {
      // Away from 0, where relu has no derivative and the reciprocal no bounded third one.
      const x = random.normals(30, 2).map((v) => v + 0.3 * Math.sign(v));
      checkSmooth({
        inputs: { x },
        outLength: x.length,
        forward: (kernels, b, out) => kernels.unary({ op, x: b.x, length: x.length, out }),
        backward: (kernels, b) =>
          kernels.unaryBackward({
            op,
            x: b.x,
            length: x.length,
            grad: b.cotangent,
            gradX: b["grad x"],
          }),
      });
    },
  );

  test("siluMul", () => {
    const length = 20;
    checkSmooth({
      inputs: { gate: random.normals(length), up: random.normals(length) },
      outLength: length,
      forward: (kernels, { gate, up }, out) => kernels.siluMul({ gate, up, length, out }),
      backward: (kernels, b) =>
        kernels.siluMulBackward({
          ...{ gate: b.gate, up: b.up, length, grad: b.cotangent },
          ...{ gradGate: b["grad gate"], gradUp: b["grad up"] },
        }),
    });
  });

  test("softmaxKl with respect to the student", () => {
    const [rows, cols] = [3, 6];
    const teacher = random.normals(rows * cols, 2);
    const student = random.normals(rows * cols, 2);
    const run = (given: Inputs, gradScale: number) =>
      evaluate(
        backend,
        { ...specs({ teacher, ...given }), kl: output(rows), gradStudent: output(rows * cols) },
        (kernels, b) => kernels.softmaxKl({ rows, cols, gradScale, ...b } as never),
      );
    const loss = (given: Inputs) => 0.7 * run(given, 0).kl.reduce((a, b) => a + b, 0);
    expectGradients(
      { student: run({ student }, 0.7).gradStudent },
      numericGradients({ student }, loss),
    );
  });
});

describe("grids of reference-f64: within 1e-7 of central differences of the straight-through surrogate", () => {
  const [rows, cols] = [4, 9];
  const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
  const row = (x: Float64Array, r: number) => x.subarray(r * cols, (r + 1) * cols);
  const range = (x: Float64Array, r: number, clips?: readonly number[]) => ({
    hi: Math.max(0, ...row(x, r)) * (clips ? sigmoid(clips[0]) : 1),
    lo: Math.min(0, ...row(x, r)) * (clips ? sigmoid(clips[1]) : 1),
  });

  test.each([
    { bits: 4, clip: [0.6, 0.9], withOffset: true },
    { bits: 3, clip: [-0.5, 1.5], withOffset: false },
    { bits: 8, clip: undefined, withOffset: true },
  ])("quantizeRows %o", ({ bits, clip, withOffset }) => {
    const top = 2 ** (bits - 1) - 1;
    const x = random.normals(rows * cols, 2);
    const cotangent = random.normals(rows * cols);
    const scaleOf = (given: Inputs, r: number) => {
      const clips = given.clipMax && [given.clipMax[0], given.clipMin[0]];
      const { hi, lo } = range(given.x, r, clips);
      return Math.max(hi, -lo) / top;
    };
    const inputs: Record<string, Float64Array> = { x };
    if (clip)
      Object.assign(inputs, {
        clipMax: Float64Array.of(clip[0]),
        clipMin: Float64Array.of(clip[1]),
      });
    if (withOffset) inputs.offset = random.uniforms(rows * cols, -0.5, 0.5);
    // code = clamp(argument − residual): the residual of rounding at the starting point, and whether it clamps.
    const argument = (given: Inputs, i: number) =>
      given.x[i] / scaleOf(given, Math.floor(i / cols)) + (given.offset ? given.offset[i] : 0);
    const frozen = Array.from(x, (_, i) => {
      const level = roundHalfEven(argument(inputs, i));
      const code = Math.min(top, Math.max(-top - 1, level));
      return { residual: argument(inputs, i) - level, clamped: code === level ? undefined : code };
    });
    expect(frozen.some(({ clamped }) => clamped !== undefined)).toBe(clip !== undefined);
    const loss = (given: Inputs) =>
      frozen.reduce((sum, { residual, clamped }, i) => {
        const scale = scaleOf(given, Math.floor(i / cols));
        return sum + cotangent[i] * scale * (clamped ?? argument(given, i) - residual);
      }, 0);
    const gradients: Record<string, BufferSpec> = { gradX: output(rows * cols) };
    if (clip) Object.assign(gradients, { gradClipMax: output(1), gradClipMin: output(1) });
    if (withOffset) gradients.gradOffset = output(rows * cols);
    const result = evaluate(
      backend,
      {
        ...{ ...specs(inputs), ...gradients, grad: real(cotangent) },
        ...{ codes: output(rows * cols, "i8"), scale: output(rows) },
      },
      (kernels, b) => {
        kernels.quantizeRows({ rows, cols, bits, scaleFloor: 0, ...b } as never);
        kernels.quantizeRowsBackward({ rows, cols, bits, scaleFloor: 0, ...b } as never);
      },
    );
    const named = {
      x: "gradX",
      clipMax: "gradClipMax",
      clipMin: "gradClipMin",
      offset: "gradOffset",
    };
    const actual = Object.entries(named)
      .filter(([name]) => name in inputs)
      .map(([name, out]) => [name, result[out]] as const);
    expectGradients(Object.fromEntries(actual), numericGradients(inputs, loss));
  });

  test.each([4, 2])("fakeQuantizeAsym %i bits", (bits) => {
    const levels = 2 ** bits - 1;
    const inputs = {
      x: random.normals(rows * cols, 1, 0.5),
      clipMax: Float64Array.of(0.8),
      clipMin: Float64Array.of(0.4),
    };
    const cotangent = random.normals(rows * cols);
    const gridOf = (given: Inputs, i: number) => {
      const { hi, lo } = range(given.x, Math.floor(i / cols), [given.clipMax[0], given.clipMin[0]]);
      const scale = (hi - lo) / levels;
      return { scale, zero: roundHalfEven(-lo / scale) };
    };
    const frozen = Array.from(inputs.x, (value, i) => {
      const { scale, zero } = gridOf(inputs, i);
      const level = roundHalfEven(value / scale) + zero;
      const code = Math.min(levels, Math.max(0, level));
      return {
        residual: value / scale - roundHalfEven(value / scale),
        level: code === level ? undefined : code - zero,
      };
    });
    expect(frozen.some(({ level }) => level !== undefined)).toBe(true);
    const loss = (given: Inputs) =>
      frozen.reduce((sum, { residual, level }, i) => {
        const { scale } = gridOf(given, i);
        return sum + cotangent[i] * scale * (level ?? given.x[i] / scale - residual);
      }, 0);
    const result = evaluate(
      backend,
      {
        ...{ ...specs(inputs), grad: real(cotangent), gradX: output(rows * cols) },
        ...{ gradClipMax: output(1), gradClipMin: output(1) },
      },
      (kernels, b) => kernels.fakeQuantizeAsymBackward({ rows, cols, bits, ...b } as never),
    );
    expectGradients(
      { x: result.gradX, clipMax: result.gradClipMax, clipMin: result.gradClipMin },
      numericGradients(inputs, loss),
    );
  });

  test.each([
    { bits: 4, clip: [0.8, 0.4], withShift: true },
    { bits: 2, clip: [-0.3, 1.1], withShift: false },
    { bits: 6, clip: undefined, withShift: true },
  ])("fakeQuantizeOffset %o", ({ bits, clip, withShift }) => {
    const levels = 2 ** bits - 1;
    const inputs: Record<string, Float64Array> = { x: random.normals(rows * cols, 1, 2.5) };
    if (clip)
      Object.assign(inputs, {
        clipMax: Float64Array.of(clip[0]),
        clipMin: Float64Array.of(clip[1]),
      });
    if (withShift) inputs.shift = random.uniforms(rows * cols, -0.5, 0.5);
    const cotangent = random.normals(rows * cols);
    const gridOf = (given: Inputs, i: number) => {
      const part = row(given.x, Math.floor(i / cols));
      const [max, min] = [Math.max(...part), Math.min(...part)];
      const half = (max - min) / 2;
      const hi = max - half * (given.clipMax ? 1 - sigmoid(given.clipMax[0]) : 0);
      const lo = min + half * (given.clipMin ? 1 - sigmoid(given.clipMin[0]) : 0);
      return { lo, scale: (hi - lo) / levels };
    };
    const argument = (given: Inputs, i: number) => {
      const { lo, scale } = gridOf(given, i);
      return (given.x[i] - lo) / scale + (given.shift ? given.shift[i] : 0);
    };
    const frozen = Array.from(inputs.x, (_, i) => {
      const level = roundHalfEven(argument(inputs, i));
      const code = Math.min(levels, Math.max(0, level));
      return { residual: argument(inputs, i) - level, clamped: code === level ? undefined : code };
    });
    expect(frozen.some(({ clamped }) => clamped !== undefined)).toBe(clip !== undefined);
    const loss = (given: Inputs) =>
      frozen.reduce((sum, { residual, clamped }, i) => {
        const { lo, scale } = gridOf(given, i);
        return sum + cotangent[i] * (lo + scale * (clamped ?? argument(given, i) - residual));
      }, 0);
    const gradients: Record<string, BufferSpec> = { gradX: output(rows * cols) };
    if (clip) Object.assign(gradients, { gradClipMax: output(1), gradClipMin: output(1) });
    if (withShift) gradients.gradShift = output(rows * cols);
    const result = evaluate(
      backend,
      { ...specs(inputs), ...gradients, grad: real(cotangent) },
      (kernels, b) => kernels.fakeQuantizeOffsetBackward({ rows, cols, bits, ...b } as never),
    );
    const named = {
      x: "gradX",
      clipMax: "gradClipMax",
      clipMin: "gradClipMin",
      shift: "gradShift",
    };
    const actual = Object.entries(named)
      .filter(([name]) => name in inputs)
      .map(([name, out]) => [name, result[out]] as const);
    expectGradients(Object.fromEntries(actual), numericGradients(inputs, loss));
  });

  test("clipRows", () => {
    const inputs = {
      x: random.normals(rows * cols),
      clipMax: random.normals(rows),
      clipMin: random.normals(rows),
    };
    const cotangent = random.normals(rows * cols);
    const loss = (given: Inputs) =>
      evaluate(backend, { ...specs(given), out: output(rows * cols) }, (kernels, b) =>
        kernels.clipRows({
          rows,
          cols,
          x: b.x,
          clipMax: b.clipMax,
          clipMin: b.clipMin,
          out: b.out,
        }),
      ).out.reduce((sum, v, i) => sum + v * cotangent[i], 0);
    const result = evaluate(
      backend,
      {
        ...{ ...specs(inputs), grad: real(cotangent), gradX: output(rows * cols) },
        ...{ gradClipMax: output(rows), gradClipMin: output(rows) },
      },
      (kernels, b) => kernels.clipRowsBackward({ rows, cols, ...b } as never),
    );
    expectGradients(
      { x: result.gradX, clipMax: result.gradClipMax, clipMin: result.gradClipMin },
      numericGradients(inputs, loss),
    );
  });
});

describe("steps that carry a state", () => {
  const random = new Random("carry");

  test("causalConv", () => {
    const [batch, time, channels, taps] = [2, 6, 3, 4];
    const weight = random.normals(channels * taps);
    const length = batch * time * channels;
    const put = (kernels: Kernels, b: Buffers, out: Buffer, from: Buffer) => {
      const shared = { batch, time, channels, taps, weight: b.weight };
      if (from === b.x) kernels.causalConv({ ...shared, x: from, out });
      else kernels.causalConvBackward({ ...shared, grad: from, gradX: out });
    };
    const cotangent = random.normals(length);
    const inputs = { x: random.normals(length) };
    const loss = (given: Inputs) =>
      evaluate(
        backend,
        { ...specs(given), weight: real(weight), out: output(length) },
        (kernels, b) => put(kernels, b, b.out, b.x),
      ).out.reduce((sum, v, i) => sum + v * cotangent[i], 0);
    const result = evaluate(
      backend,
      { ...specs(inputs), weight: real(weight), grad: real(cotangent), gradX: output(length) },
      (kernels, b) => put(kernels, b, b.gradX, b.grad),
    );
    expectGradients({ x: result.gradX }, numericGradients(inputs, loss));
  });

  const sizes = { batch: 2, time: 5, heads: 4, keyHeads: 2, keyDim: 3, valueDim: 2 };
  test.each<RecurrenceOptions>([
    { ...sizes, delta: true, normed: true },
    { ...sizes, delta: true },
    { ...sizes, skip: true },
    { ...sizes, skip: true, limited: true },
  ])("recurrence %o", (options) => {
    const { shape, buffers, rows } = recurrenceInputs(options, "gradient");
    const { heads, valueDim, width } = shape;
    const length = rows * heads * valueDim;
    const cotangent = random.normals(length);
    const learned = ["x", "step", ...(options.delta ? ["beta"] : [])];
    const inputs = Object.fromEntries(learned.map((name) => [name, buffers[name].data]));
    const loss = (given: Inputs) =>
      evaluate(backend, { ...buffers, ...specs(given), out: output(length) }, (kernels, b) =>
        kernels.recurrence({ ...shape, ...b } as never),
      ).out.reduce((sum, v, i) => sum + v * cotangent[i], 0);
    const result = evaluate(
      backend,
      {
        ...{ ...buffers, grad: real(cotangent), gradX: output(rows * width) },
        ...{ gradStep: output(rows * heads), gradBeta: output(rows * heads) },
      },
      (kernels, b) => runRecurrenceBackward(kernels, shape, b),
    );
    const actual = { x: result.gradX, step: result.gradStep };
    expectGradients(
      options.delta ? { ...actual, beta: result.gradBeta } : actual,
      numericGradients(inputs, loss),
    );
  });
});
