/**
 * The WebAssembly library as the loader sees it: arguments that lie elsewhere, the limit of its memory by name, threads,
 * and integers equal to the native library's bit for bit.
 */
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../../src/backend/cpu/train/backend.js";
import { EngineMemory } from "../../../src/backend/cpu/infer/memory.js";
import { loadHostLibrary } from "../../../src/backend/cpu/host.js";
import { nativeLibraryExists } from "../../../src/backend/cpu/library.js";
import type { NativeLibrary } from "../../../src/backend/contract/native-library.js";
import { nativeKernels } from "../../../src/backend/cpu/native-kernels.js";
import { loadWasmLibrary } from "../../../src/backend/wasm/library.js";
import { wasmModulePath, WASM_LEVELS } from "../../../src/backend/wasm/module.js";
import { PlanishError } from "../../../src/common/errors.js";
import { Random } from "../harness.js";
import { whyNoWasm } from "./levels.js";

const reasons = WASM_LEVELS.map((level) => ({ level, reason: whyNoWasm(level) }));

describe.each(reasons.filter(({ reason }) => reason))("wasm $level: $reason", () => {
  test.skip("library", () => {});
});

/** The codes and scales of one product, drawn by a name. */
function product(name: string, m: number, n: number, k: number, weightBits: number) {
  const random = new Random(name);
  const most = 2 ** (weightBits - 1);
  return {
    m,
    n,
    k,
    a: Int8Array.from(random.integers(m * k, -128, 127)),
    weights: Int8Array.from(random.integers(n * k, -most, most - 1)),
    aScale: Float32Array.from(random.uniforms(m, 0.01, 1)),
    bScale: Float32Array.from(random.uniforms(n, 0.01, 1)),
  };
}

/** The same through packed weights and through plain ones. */
function multiply(
  library: NativeLibrary,
  kind: "int4" | "int8",
  given: ReturnType<typeof product>,
) {
  const kernels = nativeKernels(library);
  const { m, n, k, weights, ...rest } = given;
  const size = new BigInt64Array(1);
  kernels.packedBytes({ kind, n, k, bytes: size });
  const packed = new Uint8Array(Number(size[0]));
  kernels.packWeights({ kind, n, k, source: weights, packed });
  const [byPacked, byCodes] = [new Float32Array(m * n), new Float32Array(m * n)];
  kernels.packedMatmul({ ...rest, kind, m, n, k, packed, out: byPacked, accumulate: false });
  kernels.intMatmul({ ...rest, m, n, k, b: weights, out: byCodes });
  return { byPacked, byCodes };
}

/** Products of whole numbers, scaled as the kernels do: (Σ·aScale)·bScale, rounded to f32 each time. */
function expected({ m, n, k, a, weights, aScale, bScale }: ReturnType<typeof product>) {
  const out = new Float32Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let x = 0; x < k; x++) sum += a[i * k + x] * weights[j * k + x];
      out[i * n + j] = Math.fround(Math.fround(Math.fround(sum) * aScale[i]) * bScale[j]);
    }
  return out;
}

describe.each(reasons.filter(({ reason }) => !reason))("wasm $level", ({ level }) => {
  const library = loadWasmLibrary(wasmModulePath(level));

  test.each([
    [1, 24, 64],
    [1, 7, 33],
    [3, 17, 70],
    [5, 40, 131],
    [70, 96, 576],
  ])("integer products %i×%i×%i are exact, packed and plain, as native ones are", (m, n, k) => {
    for (const kind of ["int4", "int8"] as const) {
      const given = product(`${m} ${n} ${k} ${kind}`, m, n, k, kind === "int4" ? 4 : 8);
      const result = multiply(library, kind, given);
      const exact = expected(given);
      expect(result).toEqual({ byPacked: exact, byCodes: exact });
      if (nativeLibraryExists())
        expect(multiply(loadHostLibrary("cpu"), kind, given)).toEqual(result);
    }
  });

  test("the extremes of codes and weights of 4 bits", () => {
    for (const code of [-128, 127])
      for (const weight of [-8, 7]) {
        const given = product("extremes", 2, 9, 4096, 4);
        given.a.fill(code);
        given.weights.fill(weight);
        expect(multiply(library, "int4", given).byPacked).toEqual(expected(given));
      }
  });

  test("arrays of any memory, small and large, are read and written", () => {
    const { scale } = nativeKernels(library);
    for (const length of [3, 1000, 2_000_000]) {
      const x = Float32Array.from({ length }, (_, i) => i % 1000);
      const out = new Float32Array(length);
      scale({ x, length, alpha: 2, accumulate: false, out });
      expect(out.every((value, i) => value === 2 * x[i])).toBe(true);
      scale({ x, length, alpha: 1, accumulate: true, out });
      expect(out.every((value, i) => value === 3 * x[i])).toBe(true);
    }
  });

  test("typed arrays over its memory outlive its growth", () => {
    using memory = new EngineMemory(library);
    const place = memory.alloc<Float32Array>("f32", 1000);
    place.data.fill(1);
    using more = new EngineMemory(library);
    more.reserve(64 * 2 ** 20);
    nativeKernels(library).scale({
      x: place.data,
      length: 1000,
      alpha: 5,
      accumulate: false,
      out: place.address,
    });
    expect(place.data.every((value) => value === 5)).toBe(true);
  });

  test("beyond 4 GiB it names its limit, and what was given back is there again", () => {
    const free = library.freeBytes?.() ?? NaN;
    using memory = new EngineMemory(library);
    expect(() => memory.reserve(2 ** 32)).toThrow(PlanishError);
    expect(() => memory.reserve(2 ** 32)).toThrow(/4096 MiB.*WebAssembly memory has at most 4 GiB/);
    {
      using other = new EngineMemory(library);
      other.reserve(2 ** 29);
      expect(library.freeBytes?.()).toBe(free - 2 ** 29);
    }
    expect(library.freeBytes?.()).toBe(free);
    const size = library.freeBytes?.();
    // More than there is, one after the other.
    for (let i = 0; i < 9; i++) {
      using other = new EngineMemory(library);
      other.reserve(2 ** 29);
    }
    expect(library.freeBytes?.()).toBe(size);
  });

  test("errors are the kernels' own", () => {
    const { packedBytes } = nativeKernels(library);
    const bytes = new BigInt64Array(1);
    expect(() => packedBytes({ kind: "int4", n: -1, k: 4, bytes })).toThrow(
      /no packed weights of kind 0 and shape -1×4/,
    );
  });

  test("results do not depend on the number of threads", async () => {
    const given = product("threads", 40, 300, 500, 8);
    const results = [];
    for (const threads of [1, 2, 4, 2]) {
      expect(library.setThreads(threads)).toBe(threads);
      // Threads begin while others compute: once without them, once surely with them.
      results.push(multiply(library, "int8", given));
      await new Promise((resolve) => setTimeout(resolve, 200));
      results.push(multiply(library, "int8", given));
    }
    for (const result of results) expect(result).toEqual(results[0]);
  });
});

test.skipIf(reasons[0].reason)(
  "the backend names itself, its level and what is left of its memory",
  () => {
    using backend = createCpuBackend({ device: "wasm", threads: 2 });
    expect(backend.name).toBe("wasm");
    expect(backend.description).toMatch(/^WebAssembly, (simd128|relaxed), 2 threads$/);
    expect(backend.freeBytes?.()).toBeLessThan(2 ** 32);
  },
);

test.skipIf(reasons[0].reason)("a level that is none is refused by name", () => {
  process.env.PLANISH_ISA = "avx2";
  try {
    expect(() => createCpuBackend({ device: "wasm" })).toThrow(
      /--device wasm: .*"avx2" is not available.*simd128/,
    );
  } finally {
    delete process.env.PLANISH_ISA;
  }
});
