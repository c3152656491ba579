/**
 * The native matrix products at every instruction-set level that this machine and build have, against plain float64
 * loops: awkward sizes, orientations, strides, batches, int8 operands and every epilogue.
 *
 * Bounds. With u = 2⁻²⁴ and S = Σ|a·kScale·b|·|alpha·nScale| + |bias| + |out₀| per element:
 * - f32: summing k products in any order errs by at most (k − 1)·u·S, each product by u (none when fused); kScale, alpha,
 *   nScale (two roundings), bias and accumulation add one rounding each, and an accumulation per block of k at most one
 *   more per 256 elements: (1.01·k + 8)·u·S.
 * - bf16: operands are rounded to bf16 (nearest, ties to even) in the truth too, so only the sums differ. The bf16 unit
 *   rounds each product and each pair's sum: at most two more roundings per product: (3·k + 8)·u·S.
 * - int8: the integer sum is exact, and the epilogue is (float(sum)·aScale)·bScale + bias in this order: bit-equal.
 */
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import type {
  Backend,
  Buffer,
  MatmulArgs,
  Precision,
} from "../../src/backend/contract/training.js";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary, nativeLibraryExists } from "../../src/backend/cpu/library.js";

const U = 2 ** -24;
const GUARD = 21;
const GUARD_VALUE = 12345;
/** Around every blocking size: lanes (4, 8, 16), micro-kernel rows (4, 6, 12, 32) and columns, 64-byte steps. */
const SIZES = [
  1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 129,
];
const DEPTHS = [
  0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 257, 513, 1025,
];

/** float32 → bfloat16 → float32, nearest with ties to even. */
function roundBf16(value: number): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0];
}

/** Seeded numbers in (−1, 1) of uneven size; mulberry32. */
function random(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  };
}

const real = (next: () => number) => Math.fround(next() * 2 ** Math.floor(next() * 3));
const code = (next: () => number) => Math.max(-128, Math.min(127, Math.round(next() * 128)));

interface ProductCase {
  m: number;
  n: number;
  k: number;
  batch: number;
  aTransposed: boolean;
  bTransposed: boolean;
  aCodes: boolean;
  bCodes: boolean;
  sharedB: boolean;
  padding: number;
  kScale: boolean;
  nScale: boolean;
  bias: boolean;
  alpha: number;
  accumulate: boolean;
  precision: Precision;
  seed: number;
}

const productCase: fc.Arbitrary<ProductCase> = fc.record({
  m: fc.constantFrom(...SIZES),
  n: fc.constantFrom(...SIZES),
  k: fc.constantFrom(...DEPTHS),
  batch: fc.constantFrom(1, 1, 1, 2, 9),
  aTransposed: fc.boolean(),
  bTransposed: fc.boolean(),
  aCodes: fc.boolean(),
  bCodes: fc.boolean(),
  sharedB: fc.boolean(),
  padding: fc.constantFrom(0, 0, 1, 5),
  kScale: fc.boolean(),
  nScale: fc.boolean(),
  bias: fc.boolean(),
  alpha: fc.constantFrom(1, 1, -0.375),
  accumulate: fc.boolean(),
  precision: fc.constantFrom<Precision>("f32", "bf16"),
  seed: fc.integer(),
});

/** Runs one case; throws where an element leaves its bound or a cell outside the output changes. */
function checkProduct(backend: Backend, c: ProductCase): void {
  using arena = backend.arena();
  const next = random(c.seed);
  const upload = (values: ArrayLike<number>, codes = false): Buffer => {
    const buffer = arena.alloc(codes ? "i8" : "f32", values.length);
    backend.write(buffer, codes ? Int8Array.from(values) : Float32Array.from(values));
    return buffer;
  };
  const offset = c.padding * 3;
  const side = (rows: number, cols: number, codes: boolean, shared: boolean) => {
    const stride = cols + c.padding;
    const batchStride = shared ? 0 : rows * stride + c.padding;
    const values = Array.from(
      { length: offset + (shared ? 1 : c.batch) * (rows * stride + c.padding) },
      () => (codes ? code(next) : real(next)),
    );
    return { values, stride, batchStride, buffer: upload(values, codes) };
  };
  const { m, n, k } = c;
  const a = side(c.aTransposed ? k : m, c.aTransposed ? m : k, c.aCodes, false);
  const b = side(c.bTransposed ? n : k, c.bTransposed ? k : n, c.bCodes, c.sharedB);
  const vector = (wanted: boolean, length: number) =>
    wanted ? Array.from({ length }, () => real(next)) : undefined;
  const kScale = vector(c.kScale, k);
  const nScale = vector(c.nScale, n);
  const bias = vector(c.bias, n);
  const outStride = n + c.padding;
  const outBatch = m * outStride + c.padding;
  const before = Float32Array.from({ length: offset + c.batch * outBatch + GUARD }, () =>
    real(next),
  );
  before.fill(GUARD_VALUE, before.length - GUARD);
  const out = upload(before);
  const args: MatmulArgs = {
    m,
    n,
    k,
    batch: c.batch,
    a: {
      buffer: a.buffer,
      offset,
      stride: a.stride,
      batchStride: a.batchStride,
      transposed: c.aTransposed,
    },
    b: {
      buffer: b.buffer,
      offset,
      stride: b.stride,
      batchStride: b.batchStride,
      transposed: c.bTransposed,
    },
    out: { buffer: out, offset, stride: outStride, batchStride: outBatch },
    kScale: kScale && upload(kScale),
    nScale: nScale && upload(nScale),
    bias: bias && upload(bias),
    alpha: c.alpha,
    accumulate: c.accumulate,
    precision: c.precision,
  };
  backend.kernels.matmul(args);
  const after = backend.read(out);

  const round = c.precision === "bf16" ? roundBf16 : (x: number) => x;
  const touched = new Uint8Array(before.length);
  for (let s = 0; s < c.batch; s++) {
    // The sides as the product uses them: [m][k] and [n][k], float64, rounded as the precision says.
    const left = new Float64Array(m * k);
    const right = new Float64Array(n * k);
    for (let x = 0; x < k; x++) {
      for (let i = 0; i < m; i++) {
        const at =
          offset + s * a.batchStride + (c.aTransposed ? x * a.stride + i : i * a.stride + x);
        const value = a.values[at];
        // Both precisions scale A in f32 before anything else.
        left[i * k + x] = round(kScale ? Math.fround(value * kScale[x]) : value);
      }
      for (let j = 0; j < n; j++) {
        const at =
          offset + s * b.batchStride + (c.bTransposed ? j * b.stride + x : x * b.stride + j);
        right[j * k + x] = round(b.values[at]);
      }
    }
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        let size = 0;
        for (let x = 0; x < k; x++) {
          const term = left[i * k + x] * right[j * k + x];
          sum += term;
          size += Math.abs(term);
        }
        const scale = c.alpha * (nScale ? nScale[j] : 1);
        const at = offset + s * outBatch + i * outStride + j;
        const rest = (bias ? bias[j] : 0) + (c.accumulate ? before[at] : 0);
        const magnitude =
          size * Math.abs(scale) +
          (bias ? Math.abs(bias[j]) : 0) +
          (c.accumulate ? Math.abs(before[at]) : 0);
        const bound = (c.precision === "bf16" ? 3 * k + 8 : 1.01 * k + 8) * U * magnitude;
        const error = Math.abs(after[at] - (sum * scale + rest));
        // Written so that NaN fails.
        if (!(error <= bound)) {
          throw new Error(
            `[${s},${i},${j}]: ${after[at]}, expected ${sum * scale + rest} ± ${bound}`,
          );
        }
        touched[at] = 1;
      }
    }
  }
  for (let at = 0; at < before.length; at++) {
    if (!touched[at] && after[at] !== before[at])
      throw new Error(`element ${at} outside the output changed`);
  }
}

function checkIntProduct(
  backend: Backend,
  m: number,
  n: number,
  k: number,
  withBias: boolean,
  seed: number,
  // Of the activations and of the weights: weights of 4 bits have a path of their own at avx2.
  bits: readonly [number, number] = [8, 8],
): void {
  using arena = backend.arena();
  const next = random(seed);
  // Extreme codes often, so that a saturating or overflowing unit shows.
  const codes = (length: number, width: number) => {
    const top = 2 ** (width - 1);
    return Int8Array.from({ length }, () =>
      next() > 0.5 ? -top : next() > 0.5 ? top - 1 : code(next) >> (8 - width),
    );
  };
  const reals = (length: number) => Float32Array.from({ length }, () => real(next));
  const [a, b] = [codes(m * k, bits[0]), codes(n * k, bits[1])];
  const [aScale, bScale] = [reals(m), reals(n)];
  const bias = withBias ? reals(n) : undefined;
  const upload = (values: Int8Array | Float32Array) => {
    const buffer = arena.alloc(values instanceof Int8Array ? "i8" : "f32", values.length);
    backend.write(buffer, values);
    return buffer;
  };
  const out = upload(new Float32Array(m * n + GUARD).fill(GUARD_VALUE));
  backend.kernels.intMatmul({
    m,
    n,
    k,
    a: upload(a),
    aScale: upload(aScale),
    b: upload(b),
    bScale: upload(bScale),
    bias: bias && upload(bias),
    out,
  });
  const expected = new Float32Array(m * n + GUARD).fill(GUARD_VALUE);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let x = 0; x < k; x++) sum += a[i * k + x] * b[j * k + x];
      const product = Math.fround(Math.fround(Math.fround(sum) * aScale[i]) * bScale[j]);
      expected[i * n + j] = bias ? Math.fround(product + bias[j]) : product;
    }
  }
  expect(backend.read(out)).toEqual(expected);
}

if (process.env.PLANISH_NO_NATIVE === "1" && !nativeLibraryExists()) {
  describe.skip("native matrix products: PLANISH_NO_NATIVE=1", () => test("products"));
} else {
  const library = loadNativeLibrary();
  const backend = createCpuBackend();
  const numberOfThreads = library.threads();
  afterAll(() => {
    library.setThreads(numberOfThreads);
    backend[Symbol.dispose]();
  });

  describe.each(library.levels())("native matrix products, level %s", (level) => {
    const atLevel = (run: () => void) => {
      library.selectLevel(level);
      run();
    };

    test("real products stay within their bounds", () =>
      atLevel(() => {
        fc.assert(
          fc.property(productCase, (c) => checkProduct(backend, c)),
          { numRuns: 250 },
        );
      }));

    test("products large enough for blocks of k, chunks of n and threads", () =>
      atLevel(() => {
        const large = {
          batch: 1,
          sharedB: false,
          padding: 1,
          kScale: true,
          nScale: true,
          bias: true,
        };
        for (const precision of ["f32", "bf16"] as const) {
          const rest = {
            ...large,
            alpha: 0.5,
            accumulate: true,
            precision,
            aCodes: false,
            bCodes: precision === "bf16",
          };
          for (const aTransposed of [false, true]) {
            const orientation = { aTransposed, bTransposed: !aTransposed };
            checkProduct(backend, { ...rest, ...orientation, m: 131, n: 197, k: 1543, seed: 7 });
          }
        }
        // B packs to 13 MB: more than one chunk.
        checkProduct(backend, {
          ...large,
          alpha: 1,
          accumulate: false,
          precision: "f32",
          aCodes: false,
          bCodes: false,
          aTransposed: false,
          bTransposed: true,
          m: 13,
          n: 2101,
          k: 1543,
          seed: 8,
        });
      }));

    test("products of few rows, where B is not packed, and their neighbours", () =>
      atLevel(() => {
        for (const m of [8, 9, 24, 25, 48, 49]) {
          for (const k of [255, 256, 1024, 1031]) {
            for (const bTransposed of [false, true]) {
              const c = {
                m,
                n: 77,
                k,
                bTransposed,
                aTransposed: false,
                batch: 1,
                sharedB: false,
                padding: 1,
                kScale: true,
              };
              const rest = {
                nScale: true,
                bias: true,
                alpha: 1,
                accumulate: true,
                aCodes: false,
                bCodes: false,
              };
              checkProduct(backend, { ...c, ...rest, precision: "f32", seed: m * k });
            }
            checkIntProduct(backend, m, 77, k, true, m * k);
          }
        }
      }));

    test("integer products are exact", () =>
      atLevel(() => {
        fc.assert(
          fc.property(
            fc.constantFrom(...SIZES),
            fc.constantFrom(...SIZES),
            fc.constantFrom(...DEPTHS),
            fc.boolean(),
            fc.integer(),
            fc.constantFrom([8, 8], [4, 4], [8, 4], [4, 8]) as fc.Arbitrary<[number, number]>,
            (m, n, k, bias, seed, bits) => checkIntProduct(backend, m, n, k, bias, seed, bits),
          ),
          { numRuns: 240 },
        );
        checkIntProduct(backend, 70, 130, 2049, true, 3);
        checkIntProduct(backend, 70, 130, 2049, true, 3, [4, 4]);
        checkIntProduct(backend, 70, 130, 2049, true, 3, [8, 4]);
      }));

    test("results do not depend on the number of threads", () =>
      atLevel(() => {
        using arena = backend.arena();
        const [m, n, k] = [150, 170, 600];
        const next = random(11);
        const make = (length: number) => {
          const buffer = arena.alloc("f32", length);
          backend.write(
            buffer,
            Float32Array.from({ length }, () => real(next)),
          );
          return buffer;
        };
        const [a, b, out] = [make(m * k), make(k * n), make(m * n)];
        const results = [1, 2, 3].map((threads) => {
          expect(library.setThreads(threads)).toBe(threads);
          backend.kernels.matmul({
            m,
            n,
            k,
            a: { buffer: a },
            b: { buffer: b },
            out: { buffer: out },
            precision: "f32",
          });
          return backend.read(out);
        });
        library.setThreads(numberOfThreads);
        expect(results[1]).toEqual(results[0]);
        expect(results[2]).toEqual(results[0]);
      }));
  });

  test("unknown and absent levels are refused by name", () => {
    const have = library.levels().join(",");
    expect(() => library.selectLevel("sse9")).toThrow(
      new RegExp(`unknown instruction-set level "sse9".*have: ${have}`),
    );
    const absent = ["avx2", "avx512", "amx"].find((level) => !library.levels().includes(level));
    if (absent)
      expect(() => library.selectLevel(absent)).toThrow(
        new RegExp(`not available here.*have: ${have}`),
      );
    library.selectLevel(undefined);
    expect(library.level()).toBe(library.levels().at(-1));
  });

  test("operands that reach past their buffers are refused", () => {
    using arena = backend.arena();
    const buffer = (length: number) => ({ buffer: arena.alloc("f32", length) });
    const run = (a: number, b: number, out: number, extra: Partial<MatmulArgs> = {}) =>
      backend.kernels.matmul({
        m: 4,
        n: 5,
        k: 6,
        a: buffer(a),
        b: buffer(b),
        out: buffer(out),
        precision: "f32",
        ...extra,
      });
    run(24, 30, 20);
    expect(() => run(23, 30, 20)).toThrow(
      "matmul: a has 23 elements; the product reaches element 24",
    );
    expect(() => run(24, 29, 20)).toThrow("matmul: b has 29 elements");
    expect(() => run(24, 30, 19)).toThrow("matmul: out has 19 elements");
    expect(() => run(24, 30, 20, { kScale: arena.alloc("f32", 5) })).toThrow("kScale has 5");
    expect(() => run(24, 30, 20, { batch: 2 })).toThrow("out.batchStride is 0");
    expect(() => run(24, 30, 20, { m: -1 })).toThrow("m is -1");
  });
}
