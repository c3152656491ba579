/**
 * Bindings of native/kernels/kronecker.h. `precision` is not passed on: the products are too small for 16 bits to save
 * time, so they are always done in f32.
 */
import type { Kernels } from "../../backend.js";
import type { NativeLibrary } from "../library.js";
import { optionalReal, real } from "./views.js";

export function kroneckerKernels(
  library: NativeLibrary,
): Pick<Kernels, "kronecker" | "kroneckerBackward"> {
  const forward = library.kernel(
    "int pl_kronecker(const void* x, int64_t rows, int64_t nLeft, int64_t nRight, const void* left, " +
      "const void* right, const void* diag, void* out)",
  );
  const backward = library.kernel(
    "int pl_kronecker_backward(const void* x, int64_t rows, int64_t nLeft, int64_t nRight, const void* left, " +
      "const void* right, const void* diag, const void* grad, void* gradX, void* gradLeft, void* gradRight, " +
      "void* gradDiag)",
  );
  return {
    kronecker(args) {
      const { rows, nLeft, nRight } = args;
      const width = nLeft * nRight;
      forward(
        real(args.x, rows * width, "kronecker x"),
        rows,
        nLeft,
        nRight,
        optionalReal(args.left, nLeft * nLeft, "kronecker left"),
        optionalReal(args.right, nRight * nRight, "kronecker right"),
        optionalReal(args.diag, width, "kronecker diag"),
        real(args.out, rows * width, "kronecker out"),
      );
    },
    kroneckerBackward(args) {
      const { rows, nLeft, nRight } = args;
      const width = nLeft * nRight;
      backward(
        real(args.x, rows * width, "kroneckerBackward x"),
        rows,
        nLeft,
        nRight,
        optionalReal(args.left, nLeft * nLeft, "kroneckerBackward left"),
        optionalReal(args.right, nRight * nRight, "kroneckerBackward right"),
        optionalReal(args.diag, width, "kroneckerBackward diag"),
        real(args.grad, rows * width, "kroneckerBackward grad"),
        optionalReal(args.gradX, rows * width, "kroneckerBackward gradX"),
        optionalReal(args.gradLeft, nLeft * nLeft, "kroneckerBackward gradLeft"),
        optionalReal(args.gradRight, nRight * nRight, "kroneckerBackward gradRight"),
        optionalReal(args.gradDiag, width, "kroneckerBackward gradDiag"),
      );
    },
  };
}
