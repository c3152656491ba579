/**
 * The engine's kernels at every instruction-set level of this machine against their definitions.
 *
 * Bounds, u = 2⁻²⁴:
 * - products of codes: integer sums are exact and the epilogue is (float(sum)·s_x)·s_w + bias in this order: bit-equal;
 * - products of reals, S = Σ|a·w|·|s_w| + |bias| + |out₀|: k roundings of the sum in any order, as in
 *   test/backend/cpu-matmul.test.ts: (1.01·k + 8)·u·S, and (3·k + 8)·u·S where bf16 pairs round twice more;
 * - sites and cached keys and values: the statements of norm, kronecker, quantizeRows and fakeQuantizeAsym at the same
 *   level: bit-equal to those kernels, which the conformance suite holds to the reference;
 * - attention: f32 sums over headDim and over keys around exponentials of 2e-7: 1e-5 of the largest value; over the same
 *   keys and values the backend's own attention in f32: bit-equal.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../../../src/backend/cpu/train/backend.js";
import { engineKernels } from "../../../../src/backend/cpu/infer/kernels.js";
import type {
  CacheWriteArgs,
  PackedKind,
  SiteArgs,
} from "../../../../src/backend/contract/inference-kernels.js";
import { loadNativeLibrary } from "../../../../src/backend/cpu/library.js";
import {
  defineAttention,
  defineCacheWrite,
  defineSite,
} from "../../../../src/backend/reference/infer/kernels.js";
import { createReferenceBackend } from "../../../../src/backend/reference/train/backend.js";
import { Random } from "../../../../src/common/random.js";

const U = 2 ** -24;
const truth = createReferenceBackend({ realType: "f64" });
const LEVELS = process.env.PLANISH_NO_NATIVE === "1" ? [] : loadNativeLibrary().levels();

const sizes = {
  m: fc.constantFrom(1, 2, 3, 4, 5, 8, 11, 12, 13, 16, 17, 24, 31, 33, 65),
  n: fc.constantFrom(1, 3, 15, 16, 17, 31, 32, 33, 63, 65, 96, 130),
  k: fc.constantFrom(1, 2, 3, 4, 7, 16, 31, 33, 63, 64, 65, 130, 257, 576),
};

function normals(random: Random, length: number, scale = 1): Float32Array {
  return Float32Array.from({ length }, () => scale * random.normal());
}

function integers(random: Random, length: number, bits: number): Int8Array {
  const half = 2 ** (bits - 1);
  return Int8Array.from({ length }, () => Math.floor(random.uniform() * 2 * half) - half);
}

/** Nearest bf16, ties to even. */
function bf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0];
}

/** f32 with 11 significant bits or fewer: what a half holds, for |x| in [2⁻¹⁴, 2]. */
const half = (value: number): number => Math.round(value * 256) / 256;

describe.each(LEVELS)("level %s", (level) => {
  loadNativeLibrary().selectLevel(level);
  const kernels = engineKernels();
  const backend = createCpuBackend();
  const atLevel = () => loadNativeLibrary().selectLevel(level);

  test("products of codes are exact", () => {
    atLevel();
    fc.assert(
      fc.property(
        fc.record({
          ...sizes,
          bits: fc.constantFrom(4, 8),
          aBits: fc.constantFrom(4, 8),
          bias: fc.boolean(),
          add: fc.boolean(),
          seed: fc.nat(),
        }),
        ({ m, n, k, bits, aBits, bias, add, seed }) => {
          const random = new Random(seed);
          const a = integers(random, m * k, aBits);
          const w = integers(random, n * k, bits);
          const aScale = normals(random, m).map(Math.abs);
          const bScale = normals(random, n).map(Math.abs);
          const shift = bias ? normals(random, n) : undefined;
          const before = normals(random, m * n);
          const out = before.slice();
          const weights = kernels.packWeights(bits === 4 ? "int4" : "int8", n, k, w);
          kernels.packedProduct({
            m,
            a,
            aScale,
            weights,
            bScale,
            bias: shift,
            out,
            accumulate: add,
          });
          const expected = before.map((old, index) => {
            const [i, j] = [Math.floor(index / n), index % n];
            let sum = 0;
            for (let c = 0; c < k; c++) sum += a[i * k + c] * w[j * k + c];
            let value = Math.fround(Math.fround(Math.fround(sum) * aScale[i]) * bScale[j]);
            if (shift) value = Math.fround(value + shift[j]);
            return add ? Math.fround(old + value) : value;
          });
          expect(out).toEqual(expected);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("codes at the ends of their range do not overflow on the way", () => {
    atLevel();
    const [m, n, k] = [17, 33, 4096];
    for (const bits of [4, 8]) {
      const w = new Int8Array(n * k).fill(-(2 ** (bits - 1)));
      const a = new Int8Array(m * k).fill(-128);
      const out = new Float32Array(m * n);
      const [aScale, bScale] = [new Float32Array(m).fill(1), new Float32Array(n).fill(1)];
      const weights = kernels.packWeights(bits === 4 ? "int4" : "int8", n, k, w);
      kernels.packedProduct({ m, a, aScale, weights, bScale, out });
      expect(new Set(out)).toEqual(new Set([Math.fround(128 * 2 ** (bits - 1) * k)]));
    }
  });

  test("products of real activations, and their rows alone", () => {
    atLevel();
    fc.assert(
      fc.property(
        fc.record({
          ...sizes,
          kind: fc.constantFrom<PackedKind>("int4F32", "int8F32", "bf16Bf16", "halfF32", "bf16F32"),
          extras: fc.boolean(),
          seed: fc.nat(),
        }),
        ({ m, n, k, kind, extras, seed }) => {
          const random = new Random(seed);
          const codes = kind === "int4F32" || kind === "int8F32";
          const w = codes
            ? integers(random, n * k, kind === "int4F32" ? 4 : 8)
            : normals(random, n * k).map((x) => (kind === "halfF32" ? half(x) : bf16(x)));
          const a = normals(random, m * k);
          const bScale = extras ? normals(random, n) : undefined;
          const bias = extras ? normals(random, n) : undefined;
          const weights = kernels.packWeights(kind, n, k, w);
          const out = new Float32Array(m * n);
          kernels.packedProduct({ m, a, weights, bScale, bias, out });
          const roundings = kind === "bf16Bf16" ? 3 : 1.01;
          for (let i = 0; i < m; i++)
            for (let j = 0; j < n; j++) {
              let sum = 0;
              let size = 0;
              for (let c = 0; c < k; c++) {
                const term =
                  (kind === "bf16Bf16" ? bf16(a[i * k + c]) : a[i * k + c]) *
                  w[j * k + c] *
                  (bScale?.[j] ?? 1);
                sum += term;
                size += Math.abs(term);
              }
              const bound = (roundings * k + 8) * U * (size + Math.abs(bias?.[j] ?? 0));
              expect(Math.abs(out[i * n + j] - sum - (bias?.[j] ?? 0))).toBeLessThanOrEqual(bound);
            }
          const row = Math.floor(random.uniform() * m);
          const alone = new Float32Array(n);
          kernels.packedProduct({
            m: 1,
            a: a.slice(row * k, (row + 1) * k),
            weights,
            bScale,
            bias,
            out: alone,
          });
          expect(alone).toEqual(out.slice(row * n, (row + 1) * n));
        },
      ),
      { numRuns: 40 },
    );
  });

  test("a site is its norm or activation, transform and grids, bit for bit", () => {
    atLevel();
    fc.assert(
      fc.property(
        fc.record({
          rows: fc.constantFrom(1, 2, 5, 37),
          nLeft: fc.constantFrom(1, 3, 8, 24),
          nRight: fc.constantFrom(1, 5, 16, 24, 33),
          input: fc.constantFrom<SiteArgs["input"]>("plain", "rms", "layer", "activation", "gated"),
          activation: fc.constantFrom<NonNullable<SiteArgs["activation"]>>(
            "silu",
            "relu",
            "gelu",
            "geluTanh",
          ),
          left: fc.boolean(),
          right: fc.boolean(),
          bits: fc.constantFrom(4, 8, 16),
          sets: fc.constantFrom(1, 3),
          seed: fc.nat(),
        }),
        ({ rows, nLeft, nRight, input, activation, left, right, bits, sets, seed }) => {
          const random = new Random(seed);
          const width = nLeft * nRight;
          const clip = (): readonly [number, number] =>
            random.uniform() < 0.3
              ? [Infinity, Infinity]
              : [2 + random.normal(), 2 + random.normal()];
          const args: SiteArgs = {
            input,
            activation,
            x: normals(random, rows * width, 3),
            x2: normals(random, rows * width),
            rows,
            nLeft,
            nRight,
            gain: normals(random, width),
            bias: input === "layer" ? normals(random, width) : undefined,
            epsilon: 1e-5,
            left: left ? normals(random, nLeft * nLeft) : undefined,
            right: right ? normals(random, nRight * nRight) : undefined,
            bits,
            clips: Array.from({ length: sets }, clip),
            codes: new Int8Array(sets * rows * width),
            scale: new Float32Array(sets * rows),
            out: new Float32Array(rows * width),
          };
          kernels.site(args);
          const definition = defineSite(backend, args);
          if (bits === 16) expect(args.out).toEqual(definition.values);
          else
            for (let set = 0; set < sets; set++) {
              const part = args.codes?.slice(set * rows * width, (set + 1) * rows * width);
              expect(args.scale?.slice(set * rows, (set + 1) * rows)).toEqual(
                definition.scales[set],
              );
              expect(part).toEqual(definition.codes[set]);
            }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("stretches of one page written in one call do not disturb each other", () => {
    atLevel();
    // Tokens t and t + 32 of a page share bytes of keys. Repeated, since threads meet there by chance.
    const shape = { heads: 1, kvHeads: 4, headDim: 64 };
    const random = new Random(5);
    const [q, k, v] = [shape.headDim, 256, 256].map((width) => normals(random, 64 * width));
    const write = (calls: readonly { row: number; rows: number; start: number }[][]) => {
      const cache = kernels.layerCache(shape.headDim, shape.kvHeads, 4, 1);
      for (const chunks of calls)
        kernels.cacheWrite({
          ...shape,
          chunks: chunks.map((chunk) => ({ ...chunk, pages: [0] })),
          q: q.slice(),
          k: k.slice(),
          v: v.slice(),
          epsilon: 1e-5,
          queryBits: 16,
          clips: [Infinity, Infinity, Infinity, Infinity],
          cache,
        });
      return cache.bytes;
    };
    const halves = [0, 32].map((row) => ({ row, rows: 32, start: row }));
    const expected = write(halves.map((half) => [half]));
    let disturbed = 0;
    for (let i = 0; i < 500; i++) if (Buffer.compare(write([halves]), expected) !== 0) disturbed++;
    expect(disturbed).toBe(0);
  });

  test("products of codes at their limits are exact over long sums", () => {
    atLevel();
    // 16-bit sums, where a level has them, must be widened in time: the largest products of one sign, in every lane or in
    // one of two, from the start or after a quiet stretch. At 4 bits each a block may be 136 groups of 4, at 8 bits 8.
    const patterns: ((c: number, k: number) => number)[] = [
      () => 1,
      (c) => (c % 4 < 2 ? 1 : 0),
      (c) => (c % 4 < 2 ? 0 : 1),
      (c, k) => (c < k / 2 ? 0 : 1),
      (c) => (c % 300 === 0 ? 1 : 0),
    ];
    for (const [low, high] of [
      [-8, 7],
      [-128, 127],
    ])
      for (const limit of [low, high])
        for (const code of [-8, 7])
          for (const pattern of patterns)
            for (const m of [1, 2, 7]) {
              const [n, k] = [17, 2309];
              // The last row alone is extreme: the others share its panel.
              const a = Int8Array.from({ length: m * k }, (_, i) =>
                i < (m - 1) * k ? 1 : limit * pattern(i % k, k),
              );
              const w = new Int8Array(n * k).fill(code);
              const out = new Float32Array(m * n);
              const ones = (length: number) => new Float32Array(length).fill(1);
              for (const kind of ["int4", "int8"] as const) {
                const weights = kernels.packWeights(kind, n, k, w);
                kernels.packedProduct({ m, a, aScale: ones(m), weights, bScale: ones(n), out });
                // Below 2²⁴, so exact in f32.
                const sum = (row: number) =>
                  code * a.subarray(row * k, (row + 1) * k).reduce((total, x) => total + x, 0);
                expect(out).toEqual(
                  Float32Array.from({ length: m * n }, (_, i) => sum(Math.floor(i / n))),
                );
              }
            }
  });

  test("the cache returns its grid's keys and values, and attention over it is attention", () => {
    atLevel();
    fc.assert(
      fc.property(
        fc.record({
          time: fc.constantFrom(1, 5, 64, 65, 150),
          shape: fc.constantFrom(
            { heads: 1, kvHeads: 1, headDim: 8 },
            { heads: 6, kvHeads: 2, headDim: 24 },
            { heads: 3, kvHeads: 1, headDim: 64 },
            { heads: 4, kvHeads: 4, headDim: 36 },
          ),
          bits: fc.constantFrom(2, 4, 6, 8, 16),
          queryBits: fc.constantFrom(8, 16),
          window: fc.constantFrom(0, 40),
          matrices: fc.boolean(),
          balanced: fc.boolean(),
          gains: fc.boolean(),
          rotary: fc.boolean(),
          clipped: fc.boolean(),
          seed: fc.nat(),
        }),
        ({
          time,
          shape,
          bits,
          queryBits,
          window,
          matrices,
          balanced,
          gains,
          rotary,
          clipped,
          seed,
        }) => {
          const random = new Random(seed);
          const { heads, kvHeads, headDim } = shape;
          const table = (length: number) => normals(random, length);
          const rows = time * kvHeads * headDim;
          const angles = rotary ? table((time * headDim) / 2) : undefined;
          const clips: CacheWriteArgs["clips"] = clipped
            ? [2, 3, 1, 4]
            : [Infinity, Infinity, Infinity, Infinity];
          // One sequence on pages out of order, in two chunks when it is long enough.
          const pages = [4, 0, 2];
          const cut = Math.floor(time / 2);
          const chunks = [
            { row: 0, rows: cut, start: 0, pages },
            { row: cut, rows: time - cut, start: cut, pages },
          ].filter((chunk) => chunk.rows > 0);
          const args = {
            ...shape,
            chunks,
            q: table(time * heads * headDim),
            k: table(rows),
            v: table(rows),
            qGain: gains ? table(headDim) : undefined,
            kGain: gains ? table(headDim) : undefined,
            epsilon: 1e-5,
            cosine: angles?.map(Math.cos),
            sine: angles?.map(Math.sin),
            qMatrix: matrices
              ? normals(random, headDim * headDim, 1 / Math.sqrt(headDim))
              : undefined,
            kMatrix: matrices
              ? normals(random, headDim * headDim, 1 / Math.sqrt(headDim))
              : undefined,
            kDiag: balanced
              ? table(kvHeads * headDim).map((x) => 2 ** Math.max(-1, Math.min(1, x)))
              : undefined,
            kShift: balanced ? table(kvHeads * headDim) : undefined,
            queryBits,
            clips,
            cache: kernels.layerCache(headDim, kvHeads, bits, 5),
          };
          const expected = defineCacheWrite(backend, args);
          // Chunks one after another, as a scheduler would, then together: the same.
          kernels.cacheWrite(args);
          expect(args.q).toEqual(expected.q);
          const out = new Float32Array(args.q.length);
          kernels.pagedAttention({ ...shape, chunks, window, q: args.q, cache: args.cache, out });
          const attended = defineAttention(
            truth,
            { ...shape, window },
            expected.q,
            expected.k,
            expected.v,
          );
          const largest = Float64Array.from(expected.v).reduce(
            (most, x) => Math.max(most, Math.abs(x)),
            0,
          );
          // Halves perturb scores by 2⁻¹¹ of Σ|q·k| and values by 2⁻¹¹.
          const bound = bits === 16 ? 2e-2 : 1e-5;
          const worst = out.reduce((most, x, i) => Math.max(most, Math.abs(x - attended[i])), 0);
          expect(worst).toBeLessThanOrEqual(bound * largest);
          // Over the grid's own keys and values the simulated model's attention takes the same steps.
          if (bits < 16)
            expect(out).toEqual(
              defineAttention(backend, { ...shape, window }, expected.q, expected.k, expected.v),
            );
        },
      ),
      { numRuns: 60 },
    );
  });

  test("decoding gives the same bits alone, in a batch and as a prompt's last token, on any number of threads", () => {
    atLevel();
    const library = loadNativeLibrary();
    const threads = library.threads();
    const random = new Random(11);
    const lengths = [200, 1, 64, 131];
    const pageCount = (tokens: number) => Math.ceil(tokens / 64);
    const sequences = lengths.map((tokens, i) => ({
      tokens,
      pages: Array.from(
        { length: pageCount(tokens) },
        (_, page) => lengths.slice(0, i).reduce((sum, x) => sum + pageCount(x), 0) + page,
      ),
    }));
    try {
      for (const [heads, kvHeads, headDim] of [
        [9, 3, 64],
        [5, 1, 36],
        [4, 2, 8],
      ])
        for (const bits of [4, 8, 16])
          for (const window of [0, 40]) {
            const shape = { heads, kvHeads, headDim };
            const cache = kernels.layerCache(headDim, kvHeads, bits, 10);
            const rows = lengths.reduce((sum, x) => sum + x, 0);
            const q = normals(random, rows * heads * headDim);
            let row = 0;
            const chunks = sequences.map(({ tokens, pages }) => {
              const chunk = { row, rows: tokens, start: 0, pages };
              row += tokens;
              return chunk;
            });
            kernels.cacheWrite({
              ...shape,
              chunks,
              q,
              k: normals(random, rows * kvHeads * headDim),
              v: normals(random, rows * kvHeads * headDim),
              epsilon: 1e-5,
              queryBits: 16,
              clips: [Infinity, Infinity, Infinity, Infinity],
              cache,
            });
            const width = heads * headDim;
            const whole = new Float32Array(q.length);
            kernels.pagedAttention({ ...shape, chunks, window, q, cache, out: whole });
            const lastOf = (values: Float32Array) =>
              chunks.map((chunk) => {
                const at = (chunk.row + chunk.rows - 1) * width;
                return values.slice(at, at + width);
              });
            const [queries, expected] = [lastOf(q), lastOf(whole)];
            const decode = (chosen: readonly number[]) => {
              const out = new Float32Array(chosen.length * width);
              kernels.pagedAttention({
                ...shape,
                chunks: chosen.map((i, at) => ({
                  row: at,
                  rows: 1,
                  start: sequences[i].tokens - 1,
                  pages: sequences[i].pages,
                })),
                window,
                q: Float32Array.from(chosen.flatMap((i) => [...queries[i]])),
                cache,
                out,
              });
              return chosen.map((_, at) => out.slice(at * width, (at + 1) * width));
            };
            // With 1 to 7 threads the tasks of a sequence or a batch do and do not come out even.
            for (const count of [1, 2, 3, 4, 7]) {
              library.setThreads(count);
              expect(lengths.map((_, i) => decode([i])[0])).toEqual(expected);
              expect(decode([0, 1, 2, 3])).toEqual(expected);
              expect(decode([3, 0])).toEqual([expected[3], expected[0]]);
            }
          }
    } finally {
      library.setThreads(threads);
    }
  });
});
