/** Binding of native/kernels/flatten.h: a static grid per tensor with split channels. */
import type { FlattenRowsArgs, Kernels } from "../../backend.js";
import { PlanishError } from "../../../common/errors.js";
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

/** @throws PlanishError naming the argument that does not fit. */
function checkFlattenRows(args: FlattenRowsArgs): void {
  const { bits, step, cols, extras, stride } = args;
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8))
    throw new PlanishError(`flattenRows: bits is ${bits}; give 2 … 8`);
  if (!(step > 0 && Number.isFinite(step)))
    throw new PlanishError(`flattenRows: step is ${step}; give a positive number`);
  if (stride < cols + extras)
    throw new PlanishError(
      `flattenRows: stride is ${stride}; ${cols} channels and ${extras} extra columns need ${cols + extras}`,
    );
  if (extras > 0 && !(args.channel && args.part))
    throw new PlanishError("flattenRows: extra columns need both channel and part");
  if ((args.clipped === undefined) !== (args.copies === undefined))
    throw new PlanishError("flattenRows: clipped and copies go together");
}
