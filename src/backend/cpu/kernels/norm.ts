/** Bindings of native/kernels/norm.h: RMS and layer norm, rotary embedding, row lookup. */
import type { Kernels } from "../../backend.js";
import { PlanishError } from "../../../common/errors.js";
import type { NativeLibrary } from "../library.js";
import { indices, optionalReal, real } from "./views.js";

/** Order of kLayerNorm in native/kernels/norm.h. */
const KIND = { rms: 0, layer: 1 } as const;

export function normKernels(
  library: NativeLibrary,
): Pick<Kernels, "norm" | "normBackward" | "rope" | "gatherRows"> {
  const norm = library.kernel(
    "int pl_norm(int32_t kind, const void* x, int64_t rows, int64_t cols, const void* gain, const void* bias, " +
      "float epsilon, void* out)",
  );
  const normBackward = library.kernel(
    "int pl_norm_backward(int32_t kind, const void* x, int64_t rows, int64_t cols, const void* gain, float epsilon, " +
      "const void* grad, void* gradX, void* gradGain, void* gradBias)",
  );
  const rope = library.kernel(
    "int pl_rope(const void* x, int64_t rows, int64_t heads, int64_t headDim, int64_t period, const void* cosine, " +
      "const void* sine, int32_t inverse, void* out)",
  );
  const gatherRows = library.kernel(
    "int pl_gather_rows(const void* table, int64_t tableRows, int64_t cols, const void* ids, int64_t rows, void* out)",
  );
  return {
    norm(args) {
      const { rows, cols } = args;
      norm(
        KIND[args.kind],
        real(args.x, rows * cols, "norm x"),
        rows,
        cols,
        real(args.gain, cols, "norm gain"),
        optionalReal(args.bias, cols, "norm bias"),
        args.epsilon,
        real(args.out, rows * cols, "norm out"),
      );
    },
    normBackward(args) {
      const { rows, cols } = args;
      normBackward(
        KIND[args.kind],
        real(args.x, rows * cols, "normBackward x"),
        rows,
        cols,
        real(args.gain, cols, "normBackward gain"),
        args.epsilon,
        real(args.grad, rows * cols, "normBackward grad"),
        optionalReal(args.gradX, rows * cols, "normBackward gradX"),
        optionalReal(args.gradGain, cols, "normBackward gradGain"),
        optionalReal(args.gradBias, cols, "normBackward gradBias"),
      );
    },
    rope(args) {
      const { rows, heads, headDim, period } = args;
      if (headDim % 2 !== 0) throw new PlanishError(`rope: headDim is ${headDim}; it must be even`);
      const n = rows * heads * headDim;
      rope(
        real(args.x, n, "rope x"),
        rows,
        heads,
        headDim,
        period,
        real(args.cos, (period * headDim) / 2, "rope cos"),
        real(args.sin, (period * headDim) / 2, "rope sin"),
        args.inverse ? 1 : 0,
        real(args.out, n, "rope out"),
      );
    },
    gatherRows(args) {
      const { rows, cols } = args;
      gatherRows(
        real(args.table, 0, "gatherRows table"),
        Math.floor(args.table.length / cols),
        cols,
        indices(args.ids, rows, "gatherRows ids"),
        rows,
        real(args.out, rows * cols, "gatherRows out"),
      );
    },
  };
}
