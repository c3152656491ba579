/** Bindings of native/kernels/quantize.h: grids over rows, their gradients, row clipping. */
import type { Buffer, Kernels } from "../../backend.js";
import { PlanishError } from "../../../common/errors.js";
import type { NativeLibrary } from "../library.js";
import { codes, optionalReal, real } from "./views.js";

type QuantizeKernels = Pick<
  Kernels,
  | "quantizeRows"
  | "quantizeRowsBackward"
  | "dequantizeRows"
  | "fakeQuantizeAsym"
  | "fakeQuantizeAsymBackward"
  | "clipRows"
  | "clipRowsBackward"
>;

/** Symmetric codes are stored in 8 bits; the asymmetric grid is only simulated, but its zero point must stay exact. */
function checkBits(bits: number, what: string): void {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8)) {
    throw new PlanishError(`${what}: bits is ${bits}; give 2 … 8`);
  }
}

/** Scalar clipping logits: both or neither. */
function scalarClips(clipMax: Buffer | undefined, clipMin: Buffer | undefined, what: string) {
  if ((clipMax === undefined) !== (clipMin === undefined)) {
    throw new PlanishError(`${what}: clipMax and clipMin go together`);
  }
  return [
    optionalReal(clipMax, 1, `${what} clipMax`),
    optionalReal(clipMin, 1, `${what} clipMin`),
  ] as const;
}

export function quantizeKernels(library: NativeLibrary): QuantizeKernels {
  const quantizeRows = library.kernel(
    "int pl_quantize_rows(const void* x, int64_t rows, int64_t cols, int32_t bits, const void* clipMax, " +
      "const void* clipMin, float scaleFloor, const void* offset, void* codes, void* scale)",
  );
  const quantizeRowsBackward = library.kernel(
    "int pl_quantize_rows_backward(const void* x, int64_t rows, int64_t cols, int32_t bits, const void* clipMax, " +
      "const void* clipMin, float scaleFloor, const void* offset, const void* codes, const void* scale, " +
      "const void* grad, void* gradX, void* gradClipMax, void* gradClipMin, void* gradOffset)",
  );
  const dequantizeRows = library.kernel(
    "int pl_dequantize_rows(const void* codes, const void* scale, int64_t rows, int64_t cols, void* out)",
  );
  const fakeQuantizeAsym = library.kernel(
    "int pl_fake_quantize_asym(const void* x, int64_t rows, int64_t cols, int32_t bits, const void* clipMax, " +
      "const void* clipMin, void* out)",
  );
  const fakeQuantizeAsymBackward = library.kernel(
    "int pl_fake_quantize_asym_backward(const void* x, int64_t rows, int64_t cols, int32_t bits, " +
      "const void* clipMax, const void* clipMin, const void* grad, void* gradX, void* gradClipMax, void* gradClipMin)",
  );
  const clipRows = library.kernel(
    "int pl_clip_rows(const void* x, int64_t rows, int64_t cols, const void* clipMax, const void* clipMin, void* out)",
  );
  const clipRowsBackward = library.kernel(
    "int pl_clip_rows_backward(const void* x, int64_t rows, int64_t cols, const void* clipMax, const void* clipMin, " +
      "const void* grad, void* gradX, void* gradClipMax, void* gradClipMin)",
  );
  return {
    quantizeRows(args) {
      const { rows, cols, bits } = args;
      const n = rows * cols;
      checkBits(bits, "quantizeRows");
      quantizeRows(
        real(args.x, n, "quantizeRows x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "quantizeRows"),
        args.scaleFloor,
        optionalReal(args.offset, n, "quantizeRows offset"),
        codes(args.codes, n, "quantizeRows codes"),
        real(args.scale, rows, "quantizeRows scale"),
      );
    },
    quantizeRowsBackward(args) {
      const { rows, cols, bits } = args;
      const n = rows * cols;
      checkBits(bits, "quantizeRowsBackward");
      quantizeRowsBackward(
        real(args.x, n, "quantizeRowsBackward x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "quantizeRowsBackward"),
        args.scaleFloor,
        optionalReal(args.offset, n, "quantizeRowsBackward offset"),
        codes(args.codes, n, "quantizeRowsBackward codes"),
        real(args.scale, rows, "quantizeRowsBackward scale"),
        real(args.grad, n, "quantizeRowsBackward grad"),
        optionalReal(args.gradX, n, "quantizeRowsBackward gradX"),
        optionalReal(args.gradClipMax, 1, "quantizeRowsBackward gradClipMax"),
        optionalReal(args.gradClipMin, 1, "quantizeRowsBackward gradClipMin"),
        optionalReal(args.gradOffset, n, "quantizeRowsBackward gradOffset"),
      );
    },
    dequantizeRows(args) {
      const { rows, cols } = args;
      dequantizeRows(
        codes(args.codes, rows * cols, "dequantizeRows codes"),
        real(args.scale, rows, "dequantizeRows scale"),
        rows,
        cols,
        real(args.out, rows * cols, "dequantizeRows out"),
      );
    },
    fakeQuantizeAsym(args) {
      const { rows, cols, bits } = args;
      checkBits(bits, "fakeQuantizeAsym");
      fakeQuantizeAsym(
        real(args.x, rows * cols, "fakeQuantizeAsym x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsym"),
        real(args.out, rows * cols, "fakeQuantizeAsym out"),
      );
    },
    fakeQuantizeAsymBackward(args) {
      const { rows, cols, bits } = args;
      checkBits(bits, "fakeQuantizeAsymBackward");
      fakeQuantizeAsymBackward(
        real(args.x, rows * cols, "fakeQuantizeAsymBackward x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsymBackward"),
        real(args.grad, rows * cols, "fakeQuantizeAsymBackward grad"),
        real(args.gradX, rows * cols, "fakeQuantizeAsymBackward gradX"),
        optionalReal(args.gradClipMax, 1, "fakeQuantizeAsymBackward gradClipMax"),
        optionalReal(args.gradClipMin, 1, "fakeQuantizeAsymBackward gradClipMin"),
      );
    },
    clipRows(args) {
      const { rows, cols } = args;
      clipRows(
        real(args.x, rows * cols, "clipRows x"),
        rows,
        cols,
        real(args.clipMax, rows, "clipRows clipMax"),
        real(args.clipMin, rows, "clipRows clipMin"),
        real(args.out, rows * cols, "clipRows out"),
      );
    },
    clipRowsBackward(args) {
      const { rows, cols } = args;
      clipRowsBackward(
        real(args.x, rows * cols, "clipRowsBackward x"),
        rows,
        cols,
        real(args.clipMax, rows, "clipRowsBackward clipMax"),
        real(args.clipMin, rows, "clipRowsBackward clipMin"),
        real(args.grad, rows * cols, "clipRowsBackward grad"),
        real(args.gradX, rows * cols, "clipRowsBackward gradX"),
        optionalReal(args.gradClipMax, rows, "clipRowsBackward gradClipMax"),
        optionalReal(args.gradClipMin, rows, "clipRowsBackward gradClipMin"),
      );
    },
  };
}
