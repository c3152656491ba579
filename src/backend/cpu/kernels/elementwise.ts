/** Bindings of native/kernels/elementwise.h: maps, broadcasts, sums, losses over rows, the AdamW step. */
import type { BinaryArgs, BinaryOp, Kernels, ReduceArgs, UnaryOp } from "../../backend.js";
import type { NativeLibrary } from "../library.js";
import { copyArrays } from "../mapping.js";
import { indices, optionalReal, real, realArrays } from "./views.js";

/** Numbers of the enums in native/kernels/elementwise.h. */
const UNARY: Readonly<Record<UnaryOp, number>> = {
  sigmoid: 0,
  silu: 1,
  relu: 2,
  gelu: 3,
  geluTanh: 4,
  reciprocal: 5,
  negate: 6,
};
const BINARY: Readonly<Record<BinaryOp, number>> = { add: 0, sub: 1, mul: 2 };
const BROADCAST: Readonly<Record<BinaryArgs["broadcast"] | ReduceArgs["keep"], number>> = {
  full: 0,
  row: 1,
  column: 2,
  scalar: 3,
};

type ElementwiseKernels = Pick<
  Kernels,
  | "unary"
  | "unaryBackward"
  | "binary"
  | "reduce"
  | "columnMaxima"
  | "scale"
  | "siluMul"
  | "siluMulBackward"
  | "mse"
  | "nll"
  | "softmaxKl"
  | "adamW"
>;

export function elementwiseKernels(library: NativeLibrary): ElementwiseKernels {
  const unary = library.kernel(
    "int pl_unary(int32_t op, const void* x, int64_t length, void* out)",
  );
  const unaryBackward = library.kernel(
    "int pl_unary_backward(int32_t op, const void* x, int64_t length, const void* grad, void* gradX)",
  );
  const binary = library.kernel(
    "int pl_binary(int32_t op, int64_t rows, int64_t cols, const void* a, const void* b, int32_t broadcast, void* out)",
  );
  const reduce = library.kernel(
    "int pl_reduce(int64_t rows, int64_t cols, const void* x, const void* y, int32_t keep, double alpha, void* out)",
  );
  const scale = library.kernel(
    "int pl_scale(const void* x, int64_t length, float alpha, int32_t accumulate, void* out)",
  );
  const siluMul = library.kernel(
    "int pl_silu_mul(const void* gate, const void* up, int64_t length, void* out)",
  );
  const siluMulBackward = library.kernel(
    "int pl_silu_mul_backward(const void* gate, const void* up, int64_t length, const void* grad, void* gradGate, " +
      "void* gradUp)",
  );
  const mse = library.kernel(
    "int pl_mse(const void* a, const void* b, int64_t length, void* loss)",
  );
  const nll = library.kernel(
    "int pl_nll(const void* logits, int64_t rows, int64_t cols, const void* targets, void* out)",
  );
  const softmaxKl = library.kernel(
    "int pl_softmax_kl(const void* teacher, const void* student, int64_t rows, int64_t cols, void* kl, " +
      "void* gradStudent, float gradScale)",
  );
  const adamW = library.kernel(
    "int pl_adamw(void* param, const void* grad, void* moment1, void* moment2, int64_t length, int64_t step, " +
      "double learningRate, double beta1, double beta2, double epsilon, double weightDecay, double gradScale, " +
      "double bound)",
  );
  return {
    unary(args) {
      const { length } = args;
      unary(
        UNARY[args.op],
        real(args.x, length, "unary x"),
        length,
        real(args.out, length, "unary out"),
      );
    },
    unaryBackward(args) {
      const { length } = args;
      unaryBackward(
        UNARY[args.op],
        real(args.x, length, "unaryBackward x"),
        length,
        real(args.grad, length, "unaryBackward grad"),
        real(args.gradX, length, "unaryBackward gradX"),
      );
    },
    binary(args) {
      const { rows, cols, broadcast } = args;
      const lengths = { full: rows * cols, row: cols, column: rows, scalar: 1 };
      binary(
        BINARY[args.op],
        rows,
        cols,
        real(args.a, rows * cols, "binary a"),
        real(args.b, lengths[broadcast], "binary b"),
        BROADCAST[broadcast],
        real(args.out, rows * cols, "binary out"),
      );
    },
    reduce(args) {
      const { rows, cols, keep } = args;
      const lengths = { row: cols, column: rows, scalar: 1 };
      reduce(
        rows,
        cols,
        real(args.x, rows * cols, "reduce x"),
        optionalReal(args.y, rows * cols, "reduce y"),
        BROADCAST[keep],
        args.alpha,
        real(args.out, lengths[keep], "reduce out"),
      );
    },
    columnMaxima({ rows, cols, x, out }) {
      // One pass over memory, a few times in a calibration: not worth a native kernel.
      const maxima = new Float32Array(cols);
      copyArrays(realArrays(out, cols, "columnMaxima out"), [maxima]);
      let c = 0;
      for (const values of realArrays(x, rows * cols, "columnMaxima x"))
        for (let i = 0; i < values.length; i++) {
          maxima[c] = Math.max(maxima[c], Math.abs(values[i]));
          if (++c === cols) c = 0;
        }
      copyArrays([maxima], realArrays(out, cols, "columnMaxima out"));
    },
    scale(args) {
      const { length } = args;
      scale(
        real(args.x, length, "scale x"),
        length,
        args.alpha,
        args.accumulate ? 1 : 0,
        real(args.out, length, "scale out"),
      );
    },
    siluMul(args) {
      const { length } = args;
      siluMul(
        real(args.gate, length, "siluMul gate"),
        real(args.up, length, "siluMul up"),
        length,
        real(args.out, length, "siluMul out"),
      );
    },
    siluMulBackward(args) {
      const { length } = args;
      siluMulBackward(
        real(args.gate, length, "siluMulBackward gate"),
        real(args.up, length, "siluMulBackward up"),
        length,
        real(args.grad, length, "siluMulBackward grad"),
        real(args.gradGate, length, "siluMulBackward gradGate"),
        real(args.gradUp, length, "siluMulBackward gradUp"),
      );
    },
    mse(args) {
      const { length } = args;
      mse(
        real(args.a, length, "mse a"),
        real(args.b, length, "mse b"),
        length,
        real(args.loss, 1, "mse loss"),
      );
    },
    nll(args) {
      const { rows, cols } = args;
      nll(
        real(args.logits, rows * cols, "nll logits"),
        rows,
        cols,
        indices(args.targets, rows, "nll targets"),
        real(args.nll, rows, "nll nll"),
      );
    },
    softmaxKl(args) {
      const { rows, cols } = args;
      softmaxKl(
        real(args.teacher, rows * cols, "softmaxKl teacher"),
        real(args.student, rows * cols, "softmaxKl student"),
        rows,
        cols,
        real(args.kl, rows, "softmaxKl kl"),
        optionalReal(args.gradStudent, rows * cols, "softmaxKl gradStudent"),
        args.gradScale,
      );
    },
    adamW(args) {
      const { length } = args;
      adamW(
        real(args.param, length, "adamW param"),
        real(args.grad, length, "adamW grad"),
        real(args.moment1, length, "adamW moment1"),
        real(args.moment2, length, "adamW moment2"),
        length,
        args.step,
        args.learningRate,
        args.beta1,
        args.beta2,
        args.epsilon,
        args.weightDecay,
        args.gradScale,
        // Below zero: no bound.
        args.bound ?? -1,
      );
    },
  };
}
