/** Binding of native/kernels/flatten.h: a static grid per tensor with split channels. */
import type { Kernels } from "../../backend.js";
import { checkFlattenRows } from "../../flatten-check.js";
import type { NativeLibrary } from "../library.js";
import { codes, optionalIndices, optionalReal, real } from "./views.js";

export function flattenKernels(library: NativeLibrary): Pick<Kernels, "flattenRows"> {
  const flattenRows = library.kernel(
    "int pl_flatten_rows(const void* x, int64_t rows, int64_t cols, int32_t bits, float step, const void* factor, " +
      "int64_t extras, const void* channel, const void* part, int64_t stride, const void* copies, void* codes, " +
      "void* scale, void* clipped)",
  );
  return {
    flattenRows(args) {
      checkFlattenRows(args);
      const { rows, cols, bits, step, extras, stride } = args;
      flattenRows(
        real(args.x, rows * cols, "flattenRows x"),
        rows,
        cols,
        bits,
        step,
        optionalReal(args.factor, cols, "flattenRows factor"),
        extras,
        optionalIndices(args.channel, extras, "flattenRows channel"),
        optionalIndices(args.part, extras, "flattenRows part"),
        stride,
        optionalIndices(args.copies, cols, "flattenRows copies"),
        codes(args.codes, rows * stride, "flattenRows codes"),
        optionalReal(args.scale, rows, "flattenRows scale"),
        optionalIndices(args.clipped, rows, "flattenRows clipped"),
      );
    },
  };
}
