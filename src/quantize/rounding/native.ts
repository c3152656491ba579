/** Bindings of native/kernels/gptq.h: GPTQ's float64 factorization and rounding, on every thread of the pool. */
import type { Backend } from "../../backend/backend.js";
import {
  loadNativeLibrary,
  nativeLibraryExists,
  type NativeLibrary,
} from "../../backend/cpu/library.js";
import { plainGptq, type GptqSolver } from "./gptq.js";

function bindSolver(library: NativeLibrary): GptqSolver {
  const factor = library.kernel(
    "int pl_gptq_factor(int64_t n, const void* moment, const void* order, double damp, void* factor, void* factored)",
  );
  const round = library.kernel(
    "int pl_gptq_round(int64_t rows, int64_t cols, const void* weight, const void* scale, int64_t scales, int32_t bits, const void* factor, const void* order, void* codes)",
  );
  return {
    factor(moment, cols, order, damp) {
      const out = new Float64Array(cols * cols);
      const factored = new Int32Array(1);
      factor(cols, moment, order, damp, out, factored);
      return factored[0] === 1 ? out : undefined;
    },
    round({ weight, rows, cols, scale, bits }, factored, order) {
      const codes = new Int8Array(rows * cols);
      const [weights, scales] = [Float64Array.from(weight), Float64Array.from(scale)];
      round(rows, cols, weights, scales, scales.length, bits, factored, order, codes);
      return codes;
    },
  };
}

let solver: GptqSolver | undefined;

/** The solver of a run: plain loops beside the reference backend, and where the native library was not built. */
export function gptqSolver(backend: Backend): GptqSolver {
  return backend.name === "reference" || !nativeLibraryExists() ? plainGptq : nativeGptq();
}

/** GPTQ by the native library. @throws PlanishError when it is not built. */
export function nativeGptq(): GptqSolver {
  return (solver ??= bindSolver(loadNativeLibrary()));
}
