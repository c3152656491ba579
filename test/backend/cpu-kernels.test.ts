/**
 * What the conformance suite does not ask of the native kernels, at every instruction-set level of this machine: the
 * exponential over its whole range, and results at thread counts other than the machine's own.
 */

import { describe, expect, test } from "vitest";
import type { Backend } from "../../src/backend/contract/training.js";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { Random, U, evaluate, expectWithin, output, real, type Buffers } from "./harness.js";

const truth = createReferenceBackend({ realType: "f64" });
const WITHOUT = process.env.PLANISH_NO_NATIVE === "1";
const THREADS = [1, 2, 3, 8];

function at(level: string, threads?: number): Backend {
  loadNativeLibrary().selectLevel(level);
  return createCpuBackend({ threads });
}

describe.runIf(WITHOUT)("PLANISH_NO_NATIVE=1: a machine without a compiler", () => {
  test.skip("native kernels", () => {});
});

describe.each(WITHOUT ? [] : loadNativeLibrary().levels())("level %s", (level) => {
  test.each([
    ["a soft cap", { window: 0, softcap: 1.5 }],
    ["a soft cap and a window", { window: 9, softcap: 1.5 }],
    ["slopes", { window: 0 }],
    ["slopes and chunks", { window: 0, chunk: 16 }],
    ["slopes, chunks and a window", { window: 9, chunk: 25 }],
  ])(
    "attention with %s, both directions: 1e-5 of the largest",
    (what, options: { window: number; chunk?: number; softcap?: number }) => {
      const random = new Random(`soft cap ${what}`);
      const [batch, heads, kvHeads, headDim, time] = [2, 4, 2, 20, 70];
      const layout = (count: number) => ({
        batchStride: time * count * headDim,
        timeStride: count * headDim,
        headStride: headDim,
      });
      const [wide, narrow] = [heads, kvHeads].map((count) => batch * time * count * headDim);
      const inputs = {
        q: real(random.normals(wide)),
        k: real(random.normals(narrow)),
        v: real(random.normals(narrow)),
        grad: real(random.normals(wide)),
        ...(options.softcap === undefined && { slopes: real(Float64Array.of(0.25, 0.1, 0.5, 0)) }),
      };
      const shape = {
        ...{ batch, heads, kvHeads, headDim, ...options, queryLength: time, keyLength: time },
        ...{ causal: true, scale: 0.4, precision: "f32" as const },
        ...{ qLayout: layout(heads), kvLayout: layout(kvHeads), outLayout: layout(heads) },
      };
      const run = (backend: Backend) =>
        evaluate(
          backend,
          {
            ...{ ...inputs, out: output(wide), logSumExp: output(batch * heads * time) },
            ...{ gradQ: output(wide), gradK: output(narrow), gradV: output(narrow) },
          },
          (kernels, { grad, gradQ, gradK, gradV, ...forward }) => {
            kernels.attention({
              ...shape,
              ...(forward as Pick<typeof forward, "q" | "k" | "v" | "out">),
            });
            kernels.attentionBackward({ ...shape, ...forward, grad, gradQ, gradK, gradV } as never);
          },
        );
      const [own, expected] = [run(at(level)), run(truth)];
      for (const name of ["out", "gradQ", "gradK", "gradV"]) {
        const largest = expected[name].reduce((most, x) => Math.max(most, Math.abs(x)), 0);
        expectWithin(
          own[name],
          expected[name],
          expected[name].map(() => 1e-5 * largest),
          name,
        );
      }
    },
  );

  test("sigmoid from −87 to 88 is within 8u of the true value, relatively", () => {
    const x = Float64Array.from({ length: 20011 }, (_, i) => Math.fround(-87 + (175 * i) / 20010));
    const run = (backend: Backend) =>
      evaluate(backend, { x: real(x), out: output(x.length) }, (kernels, b) =>
        kernels.unary({ op: "sigmoid", x: b.x, length: x.length, out: b.out }),
      ).out;
    const expected = run(truth);
    // e^−x to 2.5u and its argument exact, a sum, a quotient.
    expectWithin(
      run(at(level)),
      expected,
      expected.map((v) => 8 * U * v),
      "sigmoid",
    );
  });

  test("sigmoid saturates where e^x leaves the range of f32", () => {
    const x = Float64Array.of(-1e30, -200, -100, 100, 200, 1e30);
    const { out } = evaluate(at(level), { x: real(x), out: output(x.length) }, (kernels, b) =>
      kernels.unary({ op: "sigmoid", x: b.x, length: x.length, out: b.out }),
    );
    expectWithin(
      out,
      Float64Array.of(0, 0, 0, 1, 1, 1),
      Float64Array.of(1e-37, 1e-37, 1e-37, 0, 0, 0),
      "out",
    );
  });

  test("codes are those of a true division, also next to ties and at scales without a reciprocal", () => {
    const random = new Random("ties");
    const bits = [2, 3, 4, 6, 8];
    const near = (value: number): number[] => {
      const float = Float32Array.of(value);
      const pattern = new Int32Array(float.buffer);
      const start = pattern[0];
      return [-9, -4, -3, -2, -1, 0, 1, 2, 3, 4, 9].map((ulps) => {
        pattern[0] = start + ulps;
        return float[0];
      });
    };
    for (const width of bits) {
      const qmax = 2 ** (width - 1) - 1;
      for (const size of [1e-42, 1e-36, 1e-20, 1, 1, 1, 1, 3e4, 1e30, 1e38]) {
        // The largest value alone sets the scale: it is outside what follows, which is at ties of that scale.
        const top = Math.fround(size * (1 + random.uniform()));
        const step = Math.fround(top / qmax);
        const ties = Array.from({ length: 2 * qmax + 1 }, (_, i) => near((i - qmax - 0.5) * step));
        const x = Float64Array.from([top, ...ties.flat().map((v) => (Math.abs(v) < top ? v : 0))]);
        const { codes, scale } = evaluate(
          at(level),
          { x: real(x), codes: output(x.length, "i8"), scale: output(1) },
          (kernels, b) =>
            kernels.quantizeRows({
              ...{ x: b.x, rows: 1, cols: x.length, bits: width, scaleFloor: 0 },
              ...{ codes: b.codes, scale: b.scale },
            }),
        );
        // A quotient rounded to 53 bits and then to 24 is the one rounded once.
        const expected = Array.from(x, (value) => {
          const ratio = Math.min(Math.max(Math.fround(value / scale[0]), -qmax - 1), qmax);
          const below = Math.floor(ratio);
          const up = ratio - below > 0.5 || (ratio - below === 0.5 && below % 2 !== 0);
          return below + (up ? 1 : 0);
        });
        expect(Array.from(codes)).toEqual(expected);
      }
    }
  });

  test("row results and scalar sums are the same bits at every thread count", () => {
    const random = new Random("threads");
    const [rows, cols] = [101, 211];
    const specs = {
      x: real(random.normals(rows * cols)),
      grad: real(random.normals(rows * cols)),
      clip: real(Float64Array.of(2)),
      codes: output(rows * cols, "i8"),
      scale: output(rows),
      gradX: output(rows * cols),
      gradMax: output(1),
      gradMin: output(1),
      sum: output(1),
      loss: output(1),
      kl: output(rows),
      gradStudent: output(rows * cols),
    };
    const run = (threads: number) =>
      evaluate(at(level, threads), specs, (kernels, b) => {
        const grid = { x: b.x, rows, cols, bits: 4, clipMax: b.clip, clipMin: b.clip };
        const shared = { ...grid, scaleFloor: 0, codes: b.codes, scale: b.scale };
        kernels.quantizeRows(shared);
        kernels.quantizeRowsBackward({
          ...shared,
          grad: b.grad,
          gradX: b.gradX,
          gradClipMax: b.gradMax,
          gradClipMin: b.gradMin,
        });
        kernels.reduce({ rows, cols, x: b.x, y: b.grad, keep: "scalar", alpha: 1, out: b.sum });
        kernels.mse({ a: b.x, b: b.grad, length: rows * cols, loss: b.loss });
        kernels.softmaxKl({
          teacher: b.x,
          student: b.grad,
          rows,
          cols,
          kl: b.kl,
          gradStudent: b.gradStudent,
          gradScale: 1,
        });
      });
    const expected = run(1);
    for (const threads of THREADS.slice(1)) expect(run(threads)).toEqual(expected);
  });

  test("attention is the same bits at every thread count; its gradient lies within summation error", () => {
    const random = new Random("attention threads");
    const [batch, heads, kvHeads, headDim, time] = [1, 4, 1, 24, 331];
    const [queries, keys] = [batch * time * heads * headDim, batch * time * kvHeads * headDim];
    const layout = (count: number) => ({
      batchStride: time * count * headDim,
      timeStride: count * headDim,
      headStride: headDim,
    });
    const specs = {
      q: real(random.normals(queries)),
      k: real(random.normals(keys)),
      v: real(random.normals(keys)),
      grad: real(random.normals(queries)),
      out: output(queries),
      logSumExp: output(batch * heads * time),
      gradQ: output(queries),
      gradK: output(keys),
      gradV: output(keys),
    };
    const run = (threads: number) =>
      evaluate(at(level, threads), specs, (kernels, b: Buffers) => {
        const shared = {
          ...{ batch, heads, kvHeads, headDim, queryLength: time, keyLength: time },
          ...{ causal: true, scale: headDim ** -0.5, precision: "f32" as const },
          ...{ q: b.q, k: b.k, v: b.v, out: b.out, logSumExp: b.logSumExp },
          ...{ qLayout: layout(heads), kvLayout: layout(kvHeads), outLayout: layout(heads) },
        };
        kernels.attention(shared);
        const { grad, gradQ, gradK, gradV } = b;
        kernels.attentionBackward({ ...shared, grad, gradQ, gradK, gradV });
      });
    const expected = run(1);
    for (const threads of THREADS.slice(1)) {
      const result = run(threads);
      for (const name of ["out", "logSumExp", "gradK", "gradV"] as const)
        expect(result[name], name).toEqual(expected[name]);
      // Query gradients are sums over at most `time` keys of terms below 1, split at other places.
      const largest = Math.max(...expected.gradQ.map(Math.abs));
      const bound = expected.gradQ.map(() => time * U * largest);
      expectWithin(result.gradQ, expected.gradQ, bound, `gradQ at ${threads} threads`);
    }
  });

  test("sums over rows agree at every thread count within rows·u of their absolute sums", () => {
    const random = new Random("kronecker threads");
    const [rows, nLeft, nRight] = [173, 11, 22];
    const width = nLeft * nRight;
    const specs = {
      x: real(random.normals(rows * width)),
      grad: real(random.normals(rows * width)),
      left: real(random.normals(nLeft * nLeft)),
      right: real(random.normals(nRight * nRight)),
      diag: real(random.uniforms(width, 0.5, 2)),
      gain: real(random.normals(width)),
      gradX: output(rows * width),
      gradLeft: output(nLeft * nLeft),
      gradRight: output(nRight * nRight),
      gradDiag: output(width),
      gradGain: output(width),
      sums: output(width),
    };
    const run = (backend: Backend) =>
      evaluate(backend, specs, (kernels, b) => {
        kernels.kroneckerBackward({
          ...{ x: b.x, rows, nLeft, nRight, left: b.left, right: b.right, diag: b.diag },
          ...{ grad: b.grad, gradLeft: b.gradLeft, gradRight: b.gradRight, gradDiag: b.gradDiag },
          ...{ gradX: b.gradX, precision: "f32" },
        });
        kernels.normBackward({
          ...{ kind: "rms", x: b.x, rows, cols: width, gain: b.gain, epsilon: 1e-5 },
          ...{ grad: b.grad, gradGain: b.gradGain },
        });
        kernels.reduce({ rows, cols: width, x: b.x, keep: "row", alpha: 1, out: b.sums });
      });
    const expected = run(truth);
    for (const threads of THREADS) {
      const result = run(at(level, threads));
      for (const name of ["gradLeft", "gradRight", "gradDiag", "gradGain", "sums"] as const) {
        const spread = Math.max(...expected[name].map(Math.abs));
        // Normal terms: the largest sum is about as large as √rows terms, the absolute sums √rows times that.
        const bound = expected[name].map(() => 2 * rows * U * spread);
        expectWithin(result[name], expected[name], bound, `${name} at ${threads} threads`);
      }
    }
  });

  test("gradDiag alone", () => {
    const random = new Random("diag alone");
    const [rows, nLeft, nRight] = [9, 3, 24];
    const specs = {
      x: real(random.normals(rows * nLeft * nRight)),
      grad: real(random.normals(rows * nLeft * nRight)),
      left: real(random.normals(nLeft * nLeft)),
      gradDiag: output(nLeft * nRight),
    };
    const run = (backend: Backend) =>
      evaluate(backend, specs, (kernels, b) =>
        kernels.kroneckerBackward({
          ...{ x: b.x, rows, nLeft, nRight, left: b.left, grad: b.grad, gradDiag: b.gradDiag },
          precision: "f32",
        }),
      ).gradDiag;
    const expected = run(truth);
    // 27 products of two normal numbers each, rounded thrice: errors stay below 64u of the largest.
    const bound = expected.map(() => 64 * U * Math.max(...expected.map(Math.abs)));
    expectWithin(run(at(level)), expected, bound, "gradDiag");
  });
});
