/** GPTQ against the paper's own form (inverse, Cholesky factor of the inverse, explicit updates), and its fallbacks. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../../src/common/random.js";
import {
  addMoment,
  factorMoment,
  gptqRound,
  plainGptq,
  roundWithFactor,
} from "../../../src/quantize/rounding/gptq.js";
import { nativeGptq } from "../../../src/quantize/rounding/native.js";
import { invertMatrix } from "../../../src/quantize/transforms/matrix.js";

interface Case {
  rows: number;
  cols: number;
  tokens: number;
  bits: number;
  seed: number;
  actOrder: boolean;
  perTensor: boolean;
}

const cases: fc.Arbitrary<Case> = fc.record({
  rows: fc.integer({ min: 1, max: 7 }),
  cols: fc.integer({ min: 1, max: 19 }),
  tokens: fc.integer({ min: 1, max: 60 }),
  bits: fc.constantFrom(2, 3, 4, 8),
  seed: fc.nat(1e6),
  actOrder: fc.boolean(),
  perTensor: fc.boolean(),
});

function make({ rows, cols, tokens, bits, seed, perTensor }: Case) {
  const random = new Random(seed);
  const weight = Float64Array.from({ length: rows * cols }, () => random.normal());
  // Neighbouring channels are correlated, otherwise there is nothing to make up for.
  const inputs = new Float64Array(tokens * cols);
  for (let t = 0; t < tokens; t++)
    for (let j = 0; j < cols; j++)
      inputs[t * cols + j] =
        random.normal() * (1 + (j % 3)) + (j > 0 ? 0.8 * inputs[t * cols + j - 1] : 0);
  const moment = new Float64Array(cols * cols);
  addMoment(moment, inputs, cols);
  const top = 2 ** (bits - 1) - 1;
  const scale = Float64Array.from({ length: perTensor ? 1 : rows }, (_, r) => {
    const part = perTensor ? weight : weight.subarray(r * cols, (r + 1) * cols);
    return Math.max(...part.map(Math.abs)) / top;
  });
  return { weight, inputs, moment, scale };
}

/** Algorithm 1 of the paper as written, one column at a time. */
function paperGptq(c: Case, weight: Float64Array, moment: Float64Array, scale: Float64Array) {
  const { rows, cols, bits } = c;
  const diagonal = Array.from({ length: cols }, (_, i) => moment[i * cols + i]);
  const order = diagonal.map((_, i) => i);
  if (c.actOrder) order.sort((a, b) => diagonal[b] - diagonal[a] || a - b);
  const damp = (0.01 * diagonal.reduce((a, b) => a + b, 0)) / cols;
  const h = new Float64Array(cols * cols);
  for (let i = 0; i < cols; i++)
    for (let j = 0; j < cols; j++)
      h[i * cols + j] = moment[order[i] * cols + order[j]] + (i === j ? damp : 0);
  const inverse = invertMatrix(h);
  // Upper U with inverse = UᵀU.
  const u = new Float64Array(cols * cols);
  for (let i = 0; i < cols; i++)
    for (let j = i; j < cols; j++) {
      let sum = inverse[i * cols + j];
      for (let k = 0; k < i; k++) sum -= u[k * cols + i] * u[k * cols + j];
      u[i * cols + j] = i === j ? Math.sqrt(sum) : sum / u[i * cols + i];
    }
  const codes = new Int8Array(rows * cols);
  /** Smallest distance of any value from a rounding boundary: below rounding noise the two forms may differ. */
  let margin = Infinity;
  for (let r = 0; r < rows; r++) {
    const step = scale[c.perTensor ? 0 : r];
    const row = order.map((j) => weight[r * cols + j]);
    for (let i = 0; i < cols; i++) {
      const x = row[i] / step;
      margin = Math.min(margin, Math.abs(x - Math.floor(x) - 0.5));
      const code = Math.min(Math.max(Math.round(x), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1);
      codes[r * cols + order[i]] = code;
      const e = (row[i] - code * step) / u[i * cols + i];
      for (let j = i; j < cols; j++) row[j] -= e * u[i * cols + j];
    }
  }
  return { codes, margin };
}

/** ‖(W − Q)·X‖² from the second moment. */
function outputError(
  { rows, cols, perTensor }: Case,
  weight: Float64Array,
  codes: ArrayLike<number>,
  scale: Float64Array,
  moment: Float64Array,
): number {
  let sum = 0;
  for (let r = 0; r < rows; r++) {
    const e = Array.from(
      { length: cols },
      (_, j) => weight[r * cols + j] - codes[r * cols + j] * scale[perTensor ? 0 : r],
    );
    for (let i = 0; i < cols; i++)
      for (let j = 0; j < cols; j++) sum += e[i] * moment[i * cols + j] * e[j];
  }
  return sum;
}

describe.each([
  ["plain loops", plainGptq],
  ["native", nativeGptq()],
])("gptq, %s", (_, solver) => {
  it("is the paper's algorithm: per row and per tensor, in order and by size of the activations", () => {
    fc.assert(
      fc.property(cases, (c) => {
        const { weight, moment, scale } = make(c);
        const expected = paperGptq(c, weight, moment, scale);
        fc.pre(expected.margin > 1e-9);
        const { codes } = gptqRound({ ...c, weight, moment, scale }, solver);
        expect(Array.from(codes)).toEqual(Array.from(expected.codes));
      }),
    );
  });

  it("block sizes change nothing", () => {
    fc.assert(
      fc.property(cases, fc.integer({ min: 1, max: 20 }), (c, blockSize) => {
        const { weight, moment, scale } = make(c);
        const codes = gptqRound({ ...c, weight, moment, scale, blockSize }).codes;
        expect(codes).toEqual(gptqRound({ ...c, weight, moment, scale, blockSize: 1 }).codes);
      }),
    );
  });

  it("lowers the output's error well below plain rounding on correlated activations", () => {
    const c = {
      rows: 16,
      cols: 48,
      tokens: 400,
      bits: 4,
      seed: 5,
      actOrder: false,
      perTensor: false,
    };
    const { weight, moment, scale } = make(c);
    const rounded = Array.from(weight, (w, i) => Math.round(w / scale[Math.floor(i / c.cols)]));
    const plain = outputError(c, weight, rounded, scale, moment);
    for (const actOrder of [false, true]) {
      const { codes } = gptqRound({ ...c, actOrder, weight, moment, scale }, solver);
      expect(outputError(c, weight, codes, scale, moment)).toBeLessThan(0.6 * plain);
    }
  });

  it("codes stay on the grid when the scale is too small for the weights", () => {
    const c = { rows: 3, cols: 10, tokens: 30, bits: 3, seed: 9, actOrder: false, perTensor: true };
    const { weight, moment } = make(c);
    const { codes } = gptqRound({ ...c, weight, moment, scale: [1e-3] }, solver);
    expect(new Set(codes)).toEqual(new Set([-4, 3]));
  });
});

describe("native", () => {
  it.each([
    [70, 33, false],
    [129, 100, true],
    [576, 64, false],
  ])("gives the plain loops' codes: %i columns, %i rows, act-order %s", (cols, rows, actOrder) => {
    const c = { rows, cols, tokens: 2 * cols, bits: 4, seed: cols, actOrder, perTensor: false };
    const { weight, moment, scale } = make(c);
    const problem = { ...c, weight, moment, scale };
    expect(gptqRound(problem, nativeGptq()).codes).toEqual(gptqRound(problem).codes);
  });
});

describe.each([
  ["plain loops", plainGptq],
  ["native", nativeGptq()],
])("moments that cannot be used as they are, %s", (_, solver) => {
  it("one that is not positive is damped more, and the result says so", () => {
    // Eigenvalues 3 and −1: 1% of the mean diagonal does not help, a tenfold more thrice does.
    const factored = factorMoment(Float64Array.of(1, 2, 2, 1), 2, {}, solver);
    expect(factored.damping).toBeCloseTo(10, 12);
    const problem = { weight: [0.4, -1.2], rows: 1, cols: 2, scale: [1], bits: 4 };
    expect(roundWithFactor(problem, factored).damping).toBe(factored.damping);
  });

  it("without damping, a singular one falls back to the default", () => {
    const singular = Float64Array.of(1, 1, 1, 1);
    expect(factorMoment(singular, 2, { damping: 0 }, solver).damping).toBe(0.01);
  });

  it("all-zero activations give plain rounding", () => {
    const problem = { weight: [0.4, -1.2, 2.5], rows: 1, cols: 3, scale: [1], bits: 4 };
    const { codes, damping } = gptqRound({ ...problem, moment: new Float64Array(9) }, solver);
    expect([...codes]).toEqual([0, -1, 2]);
    expect(damping).toBe(0.01);
  });

  it.each([
    [
      "values that are not finite",
      () => factorMoment(Float64Array.of(1, NaN, NaN, 1), 2),
      /finite/,
    ],
    ["wrong size", () => factorMoment(new Float64Array(3), 2), /3 values; 2 columns need 4/],
    [
      "wrong number of scales",
      () =>
        gptqRound({
          weight: [1, 2],
          rows: 1,
          cols: 2,
          scale: [1, 1],
          bits: 4,
          moment: Float64Array.of(1, 0, 0, 1),
        }),
      /2 scales given for 1×2/,
    ],
    ["negative diagonal", () => factorMoment(Float64Array.of(-1, 0, 0, 1), 2), /negative diagonal/],
  ])("%s: refused", (_name, act, message) => expect(act).toThrow(message));
});
