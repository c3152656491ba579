/**
 * Mixtures of experts: the choice and its gradient against plain statements, native and tape against one another, and rows
 * that do not depend on what they are computed with.
 */
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { nativeKernels } from "../../src/backend/cpu/native-kernels.js";
import { Random } from "../../src/common/random.js";
import { openIntegerExecutor } from "../../src/engine/processor.js";
import {
  attention,
  clampedGate,
  collectRows,
  binary,
  joinRows,
  route,
  splitRows,
  spreadRows,
  type RouteOptions,
} from "../../src/tensor/ops/index.js";
import { Graph, parameter, type Tensor } from "../../src/tensor/tensor.js";

const backend = createReferenceBackend({ realType: "f64" });
const ROWS = 5;
const EXPERTS = 6;

const KINDS: Readonly<Record<string, RouteOptions>> = {
  softmax: { chosen: 2, scores: "softmax", normalize: false, factor: 1 },
  "softmax of the chosen": { chosen: 3, scores: "softmax", normalize: true, factor: 1 },
  "sigmoid, corrected, in groups": {
    ...{ chosen: 2, scores: "sigmoid", normalize: true, factor: 2.5 },
    correction: [0.3, -0.2, 0.1, 0, 0.25, -0.1],
    groups: { count: 3, chosen: 2 },
  },
};

/** Rows through experts that multiply them by their number + 1. */
function mixture(g: Graph, x: Tensor, logits: Tensor, options: RouteOptions): Tensor {
  const routing = route(g, logits, options);
  const parts = splitRows(g, spreadRows(g, x, routing), routing.ranges).flatMap((part, e) =>
    part ? [binary(g, "mul", part, g.constant([1], Float64Array.of(e + 1)), "scalar")] : [],
  );
  return collectRows(g, binary(g, "mul", joinRows(g, parts), routing.weights, "column"), routing);
}

/** Gradients of Σ out·cotangent by both ways agree. */
function checkGradient(
  inputs: readonly Float64Array[],
  shapes: readonly (readonly number[])[],
  run: (g: Graph, tensors: readonly Tensor[]) => Tensor,
): void {
  const evaluate = (values: readonly Float64Array[], train: boolean) => {
    const tensors = values.map((data, i) => parameter(backend, shapes[i], data));
    const g = new Graph(backend, { train });
    const out = run(g, tensors);
    const cotangent = Float64Array.from({ length: out.size }, (_, i) => Math.sin(3 * i + 1));
    const value = Float64Array.from(g.read(out)).reduce((sum, x, i) => sum + x * cotangent[i], 0);
    if (train) g.backward(out, cotangent);
    return { value, grads: tensors.map(({ grad }) => grad && backend.read(grad)) };
  };
  const { grads } = evaluate(inputs, true);
  inputs.forEach((input, which) => {
    for (let i = 0; i < input.length; i++) {
      const moved = (by: number) =>
        inputs.map((data, j) => (j === which ? data.with(i, data[i] + by) : data));
      const slope =
        (evaluate(moved(1e-5), false).value - evaluate(moved(-1e-5), false).value) / 2e-5;
      expect(Math.abs((grads[which]?.[i] ?? NaN) - slope)).toBeLessThan(
        1e-6 * (1 + Math.abs(slope)),
      );
    }
  });
}

const random = new Random(5);
const normal = (length: number): Float64Array =>
  Float64Array.from({ length }, () => random.normal());

describe.each(Object.entries(KINDS))("%s", (_name, options) => {
  it("has the gradients that differences have", () => {
    checkGradient(
      [normal(ROWS * 3), normal(ROWS * EXPERTS)],
      [
        [ROWS, 3],
        [ROWS, EXPERTS],
      ],
      (g, [x, logits]) => mixture(g, x, logits, options),
    );
  });

  it("rows beyond an expert's own have no weight", () => {
    const [x, logits] = [normal(ROWS * 3), normal(ROWS * EXPERTS)];
    const run = (leastRows: number) => {
      using g = new Graph(backend);
      const counts = route(g, g.constant([ROWS, EXPERTS], logits), { ...options, leastRows });
      const out = mixture(g, g.constant([ROWS, 3], x), g.constant([ROWS, EXPERTS], logits), {
        ...options,
        leastRows,
      });
      const shares = counts.ranges.map(([start, end]) => end - start);
      return { shares, values: Array.from(g.read(out)) };
    };
    const [plain, wide] = [run(0), run(4)];
    expect(Math.min(...wide.shares)).toBeGreaterThanOrEqual(4);
    expect(plain.shares.reduce((a, b) => a + b)).toBe(ROWS * options.chosen);
    wide.values.forEach((value, i) => expect(value).toBeCloseTo(plain.values[i], 12));
  });

  it("is what the native kernel chooses, for rows of any values", () => {
    const kernels = nativeKernels(loadNativeLibrary());
    // Equal, or further apart than roundings are.
    const value = fc.integer({ min: -256, max: 256 }).map((x) => x / 64);
    fc.assert(
      fc.property(fc.array(value, { minLength: EXPERTS, maxLength: EXPERTS }), (logits) => {
        const weights = new Float32Array(options.chosen);
        const ids = new Int32Array(options.chosen);
        // One channel of 1: the router's weights are the logits themselves.
        kernels.route({
          ...{ x: Float32Array.of(1), rows: 1, width: 1, router: Float32Array.from(logits) },
          ...{ experts: EXPERTS, chosen: options.chosen, scores: options.scores, weights, ids },
          normalize: options.normalize,
          factor: options.factor,
          correction: options.correction && Float32Array.from(options.correction),
          groups: options.groups?.count ?? 1,
          openGroups: options.groups?.chosen ?? 1,
        });
        using g = new Graph(backend);
        // Corrections as the kernel has them: sums that tie in one precision must in the other.
        const correction = options.correction && Float32Array.from(options.correction);
        const routing = route(g, g.constant([1, EXPERTS], Float32Array.from(logits)), {
          ...options,
          correction,
        });
        const own = Array.from(ids).sort((a, b) => a - b);
        expect(own).toEqual([...routing.counts.keys()].filter((e) => routing.counts[e] > 0));
        const sorted = g.read(routing.weights);
        own.forEach((e, i) => {
          const weight = weights[ids.indexOf(e)];
          expect(Math.abs(weight - sorted[i])).toBeLessThan(1e-6 * (1 + weight));
        });
      }),
      { numRuns: 300 },
    );
  });
});

it("sinks take part in softmax, with their gradients", () => {
  const shape = { batch: 1, heads: 2, kvHeads: 1, headDim: 2 };
  const sinks = [0.7, -0.4];
  const run = (g: Graph, [q, k, v]: readonly Tensor[]) =>
    attention(g, q, k, v, { ...shape, sinks: g.constant([2], Float64Array.from(sinks)) });
  const inputs = [normal(3 * 4), normal(3 * 2), normal(3 * 2)];
  const shapes = [
    [3, 4],
    [3, 2],
    [3, 2],
  ];
  checkGradient(inputs, shapes, run);
  // The first query sees one key: its weight is e^s / (e^s + e^sink).
  using g = new Graph(backend);
  const tensors = inputs.map((data, i) => g.constant(shapes[i], data));
  const [q, k, v] = inputs;
  const score = (q[0] * k[0] + q[1] * k[1]) / Math.sqrt(2);
  const weight = Math.exp(score) / (Math.exp(score) + Math.exp(sinks[0]));
  expect(g.read(run(g, tensors))[0]).toBeCloseTo(weight * v[0], 12);
});

it("clamped gates are (up + 1)·gate·σ(α·gate) within their limits", () => {
  const [gate, up] = [Float64Array.of(0.5, 3, -4, 1), Float64Array.of(0.25, -5, 2.5, 9)];
  const clamp = { alpha: 1.702, limit: 2 };
  using g = new Graph(backend);
  const out = g.read(clampedGate(g, g.constant([4], gate), g.constant([4], up), clamp));
  gate.forEach((a, i) => {
    const low = Math.min(a, 2);
    const within = Math.max(-2, Math.min(up[i], 2));
    expect(out[i]).toBeCloseTo(((within + 1) * low) / (1 + Math.exp(-1.702 * low)), 12);
  });
});

const FIXTURES = join(import.meta.dirname, "../fixtures/architectures");

it.each(["mixtral", "qwen2-moe"])("%s: a row is the same alone and among others", async (name) => {
  using executor = openIntegerExecutor(join(FIXTURES, name));
  executor.reserve(4);
  const ids = Int32Array.from({ length: 30 }, (_, i) => (7 * i + 3) % 100);
  const page = (number: number) => Int32Array.of(number);
  const [whole, , other] = await executor.step([
    { tokens: ids, start: 0, pages: page(0), logits: "all" },
    { tokens: ids.subarray(0, 29), start: 0, pages: page(1), logits: "none" },
    { tokens: ids.subarray(5), start: 0, pages: page(2), logits: "all" },
  ]);
  const [alone] = await executor.step([
    { tokens: ids.subarray(29), start: 29, pages: page(1), logits: "last" },
  ]);
  const vocabulary = alone?.length ?? 0;
  expect(vocabulary).toBeGreaterThan(100);
  expect(alone).toEqual(whole?.subarray(29 * vocabulary));
  expect(other?.subarray(0, vocabulary)).not.toEqual(whole?.subarray(0, vocabulary));
});
