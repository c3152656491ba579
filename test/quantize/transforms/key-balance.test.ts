/** Keys balanced before they are turned: scores stay what they are, and a cache of few bits keeps them better. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../../src/common/random.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { HeadSums } from "../../../src/quantize/calibration/head-moments.js";
import {
  balanceKeys,
  balanceQueries,
  keyBalance,
} from "../../../src/quantize/transforms/key-balance.js";
import { Graph } from "../../../src/tensor/tensor.js";

const backend = createReferenceBackend({ realType: "f64" });

interface Heads {
  readonly kvHeads: number;
  readonly each: number;
  readonly headDim: number;
}

/** Keys with a mean of their own and channels of very different sizes; queries small where keys are large. */
function drawn({ kvHeads, each, headDim }: Heads, rows: number, random: Random) {
  const width = kvHeads * headDim;
  const size = Float64Array.from({ length: width }, () => Math.exp(1.5 * random.normal()));
  const mean = size.map((x) => 3 * x * random.normal());
  const k = Float64Array.from(
    { length: rows * width },
    (_, i) => mean[i % width] + size[i % width] * random.normal(),
  );
  const q = Float64Array.from({ length: rows * each * width }, (_, i) => {
    const head = Math.floor(i / headDim) % (kvHeads * each);
    return random.normal() / size[Math.floor(head / each) * headDim + (i % headDim)];
  });
  return { k, q };
}

/** Scores of each query against all keys of its KV head, less the first key's: softmax sees no more. */
function scores(q: ArrayLike<number>, k: ArrayLike<number>, { kvHeads, each, headDim }: Heads) {
  const rows = k.length / (kvHeads * headDim);
  const all: number[] = [];
  for (let row = 0; row < rows; row++)
    for (let head = 0; head < kvHeads * each; head++) {
      const of = (key: number): number => {
        let sum = 0;
        for (let i = 0; i < headDim; i++)
          sum +=
            q[(row * kvHeads * each + head) * headDim + i] *
            k[(key * kvHeads + Math.floor(head / each)) * headDim + i];
        return sum;
      };
      const first = of(0);
      for (let key = 1; key < rows; key++) all.push(of(key) - first);
    }
  return all;
}

const heads = fc.record({
  kvHeads: fc.constantFrom(1, 2, 3),
  each: fc.constantFrom(1, 3),
  headDim: fc.constantFrom(8, 16),
});

/** Keys and queries as they go on, balanced by what is known of them. */
function balanced(shape: Heads, q: Float64Array, k: Float64Array, shifts: boolean) {
  const { kvHeads, each, headDim } = shape;
  const rows = k.length / (kvHeads * headDim);
  const sums = new HeadSums(kvHeads, headDim, rows);
  sums.addKeys(k);
  sums.addQueries(q, kvHeads * each);
  const found = keyBalance(sums.moments, headDim, shifts);
  using g = new Graph(backend);
  const put = (x: ArrayLike<number>, ...extents: number[]) =>
    g.constant(extents, Float64Array.from(x));
  const bound = {
    diag: put(found.diag, found.diag.length),
    shift: put(found.shift, found.shift.length),
  };
  return {
    found,
    k: Float64Array.from(g.read(balanceKeys(g, put(k, rows, kvHeads * headDim), bound))),
    q: Float64Array.from(
      g.read(balanceQueries(g, put(q, rows, kvHeads * each * headDim), bound, headDim)),
    ),
  };
}

describe("balanced keys", () => {
  it("leave attention as it was", () => {
    fc.assert(
      fc.property(heads, fc.nat(), fc.boolean(), (shape, seed, shifts) => {
        const { q, k } = drawn(shape, 12, new Random(seed));
        const after = balanced(shape, q, k, shifts);
        const [want, got] = [scores(q, k, shape), scores(after.q, after.k, shape)];
        const largest = Math.max(...want.map(Math.abs));
        want.forEach((x, i) => expect(Math.abs(x - got[i])).toBeLessThan(1e-9 * largest));
        if (!shifts) expect(after.found.shift.every((x) => x === 0)).toBe(true);
      }),
      { numRuns: 40 },
    );
  });

  it("have factors of geometric mean 1 in each head, as 16 bits hold them, also where a channel is still", () => {
    const shape = { kvHeads: 2, each: 3, headDim: 16 };
    const { q, k } = drawn(shape, 40, new Random(3));
    for (let row = 0; row < 40; row++) k[row * 32 + 5] = q[row * 96 + 9] = 0;
    const { diag } = balanced(shape, q, k, true).found;
    for (const head of [0, 1]) {
      const logs = Array.from(diag.subarray(16 * head, 16 * head + 16), Math.log);
      expect(logs.reduce((sum, x) => sum + x, 0) / 16).toBeCloseTo(0, 2);
    }
    expect(diag.every((x) => Number.isFinite(x) && x > 0)).toBe(true);
  });

  it("lose less to 4 bits after a rotation than keys that are turned alone", () => {
    const shape = { kvHeads: 1, each: 2, headDim: 16 };
    const { q, k } = drawn(shape, 60, new Random(8));
    const after = balanced(shape, q, k, true);
    const lost = (queries: Float64Array, keys: Float64Array): number => {
      const want = scores(queries, keys, shape);
      const got = scores(queries, rounded(keys, 16), shape);
      return want.reduce((sum, x, i) => sum + (x - got[i]) ** 2, 0);
    };
    expect(lost(after.q, after.k)).toBeLessThan(lost(q, k) / 2);
  });
});

/** Turned by a Hadamard matrix, on a grid of 4 bits per row, and turned back. */
function rounded(keys: Float64Array, dim: number): Float64Array {
  const sign = (i: number, j: number): number => {
    let bits = i & j;
    let odd = 0;
    for (; bits > 0; bits >>= 1) odd ^= bits & 1;
    return (odd ? -1 : 1) / Math.sqrt(dim);
  };
  const turned = (x: Float64Array): Float64Array =>
    Float64Array.from({ length: dim }, (_, i) => x.reduce((sum, v, j) => sum + sign(i, j) * v, 0));
  const out = new Float64Array(keys.length);
  for (let at = 0; at < keys.length; at += dim) {
    const x = turned(keys.subarray(at, at + dim));
    const [low, high] = [Math.min(0, ...x), Math.max(0, ...x)];
    const step = (high - low) / 15;
    const zero = Math.round(low / step);
    out.set(turned(x.map((v) => (Math.round(v / step - zero) + zero) * step)), at);
  }
  return out;
}
