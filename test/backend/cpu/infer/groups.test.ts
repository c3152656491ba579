/**
 * Products with a scale per group, at every instruction-set level of this machine, against their definition.
 *
 * Bounds, u = 2⁻²⁴. A group's sum of products of codes is exact: where scales are powers of two and offsets their
 * multiples, everything is, and results are equal. Elsewhere a group's terms are at most three, rounded a few times each
 * (two products, a fused or separate addition; a shifted offset once more): with S the sum of the terms' magnitudes,
 * groups·4 + 8 roundings of at most u·S.
 *
 * Sites with a scale per group are those with one per row, on rows of a group: bit-equal. With an offset, a value in f32
 * lies within half a step of what its code stands for, and some ulp of the range.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { engineKernels } from "../../../../src/backend/cpu/infer/kernels.js";
import { createCpuBackend } from "../../../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../../../src/backend/cpu/library.js";
import type { GroupProductArgs } from "../../../../src/backend/contract/inference-kernels.js";
import type { QuantizedMatrix } from "../../../../src/backend/contract/packed.js";
import {
  defineGroupProduct,
  defineSite,
  dequantized,
} from "../../../../src/backend/reference/infer/kernels.js";
import { Random } from "../../../../src/common/random.js";

const U = 2 ** -24;
const LEVELS = process.env.PLANISH_NO_NATIVE === "1" ? [] : loadNativeLibrary().levels();

const integers = (random: Random, length: number, low: number, high: number) =>
  Int8Array.from({ length }, () => low + Math.floor(random.uniform() * (high - low + 1)));
const reals = (random: Random, length: number) =>
  Float32Array.from({ length }, () => random.normal() / 8);
const half = (x: number) => Math.round(x * 256) / 256;
/** 1 or 2: then all sums are integers, of at most some 10⁶ where the codes' signs are random. */
const powers = (random: Random, length: number) =>
  Float32Array.from({ length }, () => 1 + Math.floor(random.uniform() * 2));

interface Case {
  readonly m: number;
  readonly n: number;
  readonly group: number;
  readonly groups: number;
  readonly bits: number;
  readonly aBits: number;
  readonly offset: boolean;
  readonly activations: "row" | "group" | "offset";
  /** Groups of the weights to one of the activations. */
  readonly wider: number;
  readonly halves: boolean;
  readonly bias: boolean;
  readonly add: boolean;
  readonly seed: number;
}

const cases = fc.record<Case>({
  m: fc.constantFrom(1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 25, 31),
  n: fc.constantFrom(1, 3, 16, 17, 31, 33, 65, 130),
  group: fc.constantFrom(16, 32, 64, 128),
  groups: fc.constantFrom(1, 2, 3, 4, 9),
  bits: fc.constantFrom(2, 4, 5, 6, 8),
  aBits: fc.constantFrom(4, 8),
  offset: fc.boolean(),
  activations: fc.constantFrom("row", "group", "offset"),
  wider: fc.constantFrom(1, 2),
  halves: fc.boolean(),
  bias: fc.boolean(),
  add: fc.boolean(),
  seed: fc.nat(),
});

/** Operands of a case; `exact`: such that f32 sums have nothing to round. */
function operands(of: Case, exact: boolean) {
  const { m, n, group, groups, bits, aBits, offset, activations, halves } = of;
  const random = new Random(of.seed);
  const k = group * groups;
  const wider = groups % of.wider === 0 ? of.wider : 1;
  const span = activations === "row" ? k : group * wider;
  const scales = (length: number) => (exact ? powers(random, length) : reals(random, length));
  const own = (length: number) => (halves ? scales(length).map(half) : scales(length));
  const weights: QuantizedMatrix = {
    codes: offset
      ? Int8Array.from(integers(random, n * k, 0, 127), (code) => code % 2 ** bits)
      : integers(random, n * k, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    scale: own(n * groups),
    offset: offset ? own(n * groups) : undefined,
    group,
  };
  const args = {
    m,
    a: integers(random, m * k, -(2 ** (aBits - 1)), 2 ** (aBits - 1) - 1),
    span,
    aScale: scales((m * k) / span),
    aOffset: activations === "offset" ? scales((m * k) / span) : undefined,
    bias: of.bias ? scales(n) : undefined,
  } satisfies Partial<GroupProductArgs>;
  const before = of.add ? scales(m * n) : new Float32Array(m * n);
  return { k, weights, args, before };
}

describe.each(LEVELS)("level %s", (level) => {
  loadNativeLibrary().selectLevel(level);
  const kernels = engineKernels();
  const atLevel = () => loadNativeLibrary().selectLevel(level);

  const product = (of: Case, { k, weights, args, before }: ReturnType<typeof operands>) => {
    const out = before.slice();
    const packed = kernels.packGroups(of.n, k, of.bits, weights);
    kernels.groupProduct({ ...args, weights: packed, out, accumulate: of.add });
    return out;
  };

  test("sums of codes are exact", () => {
    atLevel();
    fc.assert(
      fc.property(cases, (of) => {
        const given = operands(of, true);
        const expected = defineGroupProduct(given.args, given.weights, of.n);
        expect(product(of, given)).toEqual(
          Float32Array.from(expected, (value, at) => value + given.before[at]),
        );
      }),
      { numRuns: 80 },
    );
  });

  test("real scales and offsets, and rows alone", () => {
    atLevel();
    fc.assert(
      fc.property(cases, (of) => {
        const given = operands(of, false);
        const { args, weights, before, k } = given;
        const out = product(of, given);
        const expected = defineGroupProduct(args, weights, of.n);
        const magnitudes = defineGroupProduct(
          {
            ...args,
            a: args.a.map(Math.abs),
            aScale: args.aScale.map(Math.abs),
            aOffset: args.aOffset?.map(Math.abs),
            bias: args.bias?.map(Math.abs),
          },
          {
            ...weights,
            codes: weights.codes.map(Math.abs),
            scale: weights.scale.map(Math.abs),
            offset: weights.offset?.map(Math.abs),
          },
          of.n,
        );
        const roundings = 4 * of.groups + 8;
        for (const [at, value] of out.entries())
          expect(Math.abs(value - (expected[at] + before[at]))).toBeLessThanOrEqual(
            // Codes of weights are held to their middle first, which doubles what there is to round at most.
            roundings * U * 2 * (magnitudes[at] + Math.abs(before[at])) + 1e-30,
          );
        const row = of.seed % of.m;
        const scales = (values: Float32Array) =>
          values.slice((row * k) / args.span, ((row + 1) * k) / args.span);
        const alone = product(
          { ...of, m: 1 },
          {
            ...given,
            before: before.slice(row * of.n, (row + 1) * of.n),
            args: {
              ...args,
              m: 1,
              a: args.a.slice(row * k, (row + 1) * k),
              aScale: scales(args.aScale),
              aOffset: args.aOffset && scales(args.aOffset),
            },
          },
        );
        expect(alone).toEqual(out.slice(row * of.n, (row + 1) * of.n));
      }),
      { numRuns: 80 },
    );
  });

  test("codes at the ends of their range do not overflow on the way", () => {
    atLevel();
    const [m, n, k, group] = [17, 33, 4096, 128];
    const ones = (length: number) => new Float32Array(length).fill(1);
    for (const bits of [4, 8]) {
      const codes = new Int8Array(n * k).fill(-(2 ** (bits - 1)));
      const weights = kernels.packGroups(n, k, bits, {
        codes,
        scale: ones((n * k) / group),
        group,
      });
      const out = new Float32Array(m * n);
      kernels.groupProduct({
        m,
        a: new Int8Array(m * k).fill(-128),
        span: k,
        aScale: ones(m),
        weights,
        out,
      });
      expect(new Set(out)).toEqual(new Set([128 * 2 ** (bits - 1) * k]));
    }
  });

  test("8-bit codes beside offsets fill the byte", () => {
    atLevel();
    const codes = Int8Array.from({ length: 32 }, (_, i) => 255 - i);
    const matrix = { codes, scale: Float32Array.of(0.5), offset: Float32Array.of(-3), group: 32 };
    const packed = kernels.packGroups(1, 32, 8, matrix);
    const row = new Float32Array(32);
    kernels.groupRows(packed, Int32Array.of(0), row);
    expect(row).toEqual(Float32Array.from({ length: 32 }, (_, i) => 0.5 * (255 - i) - 3));
  });

  test("rows are the matrix's own numbers", () => {
    atLevel();
    fc.assert(
      fc.property(cases, (of) => {
        const { k, weights } = operands(of, true);
        const packed = kernels.packGroups(of.n, k, of.bits, weights);
        const ids = Int32Array.of(of.n - 1, 0, of.seed % of.n);
        const out = new Float32Array(3 * k);
        kernels.groupRows(packed, ids, out);
        const all = dequantized(weights, k);
        const expected = [...ids].flatMap((id) => [...all.subarray(id * k, (id + 1) * k)]);
        expect(out).toEqual(Float32Array.from(expected));
      }),
      { numRuns: 30 },
    );
  });

  test("scales that are no halves are kept as they are", () => {
    atLevel();
    for (const scale of [1 / 3, 2 ** -25, 1e6, 2 ** -15 + 2 ** -26]) {
      const matrix = { codes: new Int8Array(16).fill(1), scale: Float32Array.of(scale), group: 16 };
      const row = new Float32Array(16);
      kernels.groupRows(kernels.packGroups(1, 16, 4, matrix), Int32Array.of(0), row);
      expect(row).toEqual(new Float32Array(16).fill(scale));
    }
  });

  test("sites: codes and scales of each group are those of a row of its own", () => {
    atLevel();
    const backend = createCpuBackend();
    const [rows, nLeft, nRight] = [13, 6, 32];
    const cols = nLeft * nRight;
    for (const span of [16, 32, 64, 96, 192]) {
      const random = new Random(span);
      const args = {
        input: "rms" as const,
        x: reals(random, rows * cols),
        gain: reals(random, cols),
        epsilon: 1e-5,
        right: reals(random, nRight * nRight),
        clips: [[Infinity, Infinity] as const, [1.5, 3] as const],
        ...{ rows, nLeft, nRight, bits: 4, span },
      };
      const codes = new Int8Array(2 * rows * cols);
      const scale = new Float32Array((2 * rows * cols) / span);
      kernels.site({ ...args, codes, scale });
      const expected = defineSite(backend, args);
      expect(codes).toEqual(Int8Array.from(expected.codes.flatMap((set) => [...set])));
      expect(scale).toEqual(Float32Array.from(expected.scales.flatMap((set) => [...set])));
    }
    backend[Symbol.dispose]();
  });

  test("sites: groups with offsets", () => {
    atLevel();
    fc.assert(
      fc.property(
        fc.record({
          bits: fc.constantFrom(2, 4, 8),
          span: fc.constantFrom(16, 32, 48, 96),
          shift: fc.constantFrom(0, -7, 100),
          seed: fc.nat(),
        }),
        ({ bits, span, shift, seed }) => {
          const random = new Random(seed);
          const [rows, nRight] = [3, 96];
          const x = reals(random, rows * nRight).map((value) => value + shift);
          // A group may be all one number.
          x.fill(shift, 0, span);
          const codes = new Int8Array(x.length);
          const [scale, offset] = [0, 1].map(() => new Float32Array(x.length / span));
          const shape = { input: "plain" as const, x, rows, nLeft: 1, nRight, span, bits };
          kernels.site({ ...shape, clips: [[Infinity, Infinity]], codes, scale, offset });
          const half = 2 ** (bits - 1);
          for (let g = 0; g < scale.length; g++) {
            const group = x.subarray(g * span, (g + 1) * span);
            const [low, high] = [Math.min(...group), Math.max(...group)];
            const step = high > low ? (high - low) / (2 ** bits - 1) : 1;
            expect(Math.abs(scale[g] - step)).toBeLessThanOrEqual(4 * U * (step + Math.abs(high)));
            for (const [i, value] of group.entries()) {
              const code = codes[g * span + i];
              expect(code >= -half && code < half).toBe(true);
              const error = Math.abs(scale[g] * code + offset[g] - value);
              expect(error).toBeLessThanOrEqual(
                step / 2 + 8 * U * (Math.abs(low) + Math.abs(high) + step * 2 ** bits),
              );
            }
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  test("a group that does not divide k is refused", () => {
    atLevel();
    const matrix = { codes: new Int8Array(48), scale: new Float32Array(1), group: 32 };
    expect(() => kernels.packGroups(1, 48, 4, matrix)).toThrow(/groups of 32.*1×48/);
  });
});
