/** Bindings of native/kernels/linalg.h: float64 inverse and Cayley's orthogonal matrices. */
import type { Kernels } from "../../backend.js";
import type { NativeLibrary } from "../library.js";
import { real } from "./views.js";

export function linalgKernels(
  library: NativeLibrary,
): Pick<Kernels, "inverse" | "cayley" | "cayleyBackward"> {
  const inverse = library.kernel("int pl_inverse(const void* x, int64_t n, void* out)");
  const cayley = library.kernel("int pl_cayley(const void* seed, int64_t n, void* out)");
  const cayleyBackward = library.kernel(
    "int pl_cayley_backward(const void* seed, int64_t n, const void* q, const void* grad, void* gradSeed)",
  );
  return {
    inverse(args) {
      const { n } = args;
      inverse(real(args.x, n * n, "inverse x"), n, real(args.out, n * n, "inverse out"));
    },
    cayley(args) {
      const { n } = args;
      cayley(real(args.seed, n * n, "cayley seed"), n, real(args.out, n * n, "cayley out"));
    },
    cayleyBackward(args) {
      const { n } = args;
      cayleyBackward(
        real(args.seed, n * n, "cayleyBackward seed"),
        n,
        real(args.out, n * n, "cayleyBackward out"),
        real(args.grad, n * n, "cayleyBackward grad"),
        real(args.gradSeed, n * n, "cayleyBackward gradSeed"),
      );
    },
  };
}
