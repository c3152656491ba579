/** Binding of native/cuda/flatten.cu: a static grid per tensor with split channels. */
import type { Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import { checkFlattenRows } from "../../../contract/flatten-check.js";
import {
  codes,
  launch,
  optionalIndices,
  optionalReal,
  real,
  type CudaContext,
} from "../../context.js";
import { readFlag, startFlag } from "./flag.js";

export function flattenKernels(ctx: CudaContext): Pick<Kernels, "flattenRows"> {
  return {
    flattenRows(args) {
      checkFlattenRows(args);
      const { rows, cols, bits, step, extras, stride } = args;
      const flag = startFlag(ctx);
      launch(ctx, ctx.modules.get("flatten", "flatten_rows"), [rows], 256, [
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
        flag,
      ]);
      // Only extra columns can be wrong, and only asking for the flag waits for the device.
      const bad = extras > 0 ? readFlag(ctx, flag) : undefined;
      if (bad !== undefined)
        throw new PlanishError(
          `flattenRows: extra column ${bad} names a channel or part that does not exist; there are ${cols} channels`,
        );
    },
  };
}
