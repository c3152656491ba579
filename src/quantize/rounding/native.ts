/** Bindings of native/kernels/gptq.h: GPTQ's float64 factorization and rounding, on every thread of the pool. */
import type { Backend } from "../../backend/contract/training.js";
import { hostDevice, loadHostLibrary, type HostDevice } from "../../backend/cpu/host.js";
import type { NativeLibrary } from "../../backend/contract/native-library.js";
import { nativeKernels } from "../../backend/cpu/native-kernels.js";
import { plainGptq, type GptqSolver } from "./gptq.js";

function bindSolver(library: NativeLibrary): GptqSolver {
  const { gptqFactor, gptqRound } = nativeKernels(library);
  return {
    factor(moment, cols, order, damp) {
      const out = new Float64Array(cols * cols);
      const factored = new Int32Array(1);
      gptqFactor({ n: cols, moment, order, damp, factor: out, factored });
      return factored[0] === 1 ? out : undefined;
    },
    round({ weight, rows, cols, scale, group, offset, bits }, factored, order) {
      const codes = new Int8Array(rows * cols);
      gptqRound({
        rows,
        cols,
        weight: Float64Array.from(weight),
        scale: Float64Array.from(scale),
        scales: scale.length,
        group: group ?? cols,
        offset: offset && Float64Array.from(offset),
        bits,
        factor: factored,
        order,
        codes,
      });
      return codes;
    },
  };
}

const solvers = new Map<HostDevice, GptqSolver>();

/** The solver of a run: plain loops beside the reference backend, and where no kernels were built. */
export function gptqSolver(backend: Backend): GptqSolver {
  const device = backend.name === "wasm" ? "wasm" : hostDevice();
  return backend.name === "reference" || !device ? plainGptq : nativeGptq(device);
}

/** GPTQ by the kernels' library. @throws PlanishError when it is not built. */
export function nativeGptq(device: HostDevice = "cpu"): GptqSolver {
  let solver = solvers.get(device);
  if (!solver) solvers.set(device, (solver = bindSolver(loadHostLibrary(device))));
  return solver;
}
