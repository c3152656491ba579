/** Bindings of native/cuda/quantize.cu: grids over rows, their gradients, row clipping. */
import type { Buffer, Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import {
  blocksFor,
  codes,
  launch,
  launchRows,
  optionalReal,
  real,
  scalarClips,
  type CudaContext,
} from "../../context.js";

type QuantizeKernels = Pick<
  Kernels,
  | "quantizeRows"
  | "quantizeRowsBackward"
  | "dequantizeRows"
  | "fakeQuantizeAsym"
  | "fakeQuantizeAsymBackward"
  | "fakeQuantizeOffset"
  | "fakeQuantizeOffsetBackward"
  | "clipRows"
  | "clipRowsBackward"
>;

function checkBits(bits: number, what: string): void {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8))
    throw new PlanishError(`${what}: bits is ${bits}; give 2 … 8`);
}

export function quantizeKernels(ctx: CudaContext): QuantizeKernels {
  const { modules, scratch } = ctx;

  /** Sums rows' shares of the clipping logits' gradients. */
  function clipGradients(
    args: {
      readonly clipMax?: Buffer;
      readonly clipMin?: Buffer;
      readonly gradClipMax?: Buffer;
      readonly gradClipMin?: Buffer;
    },
    rows: number,
    shares: readonly [number, number],
    what: string,
  ): void {
    if (!args.gradClipMax && !args.gradClipMin) return;
    launch(ctx, modules.get("quantize", "clip_gradient"), [2], 1024, [
      ...shares,
      rows,
      ...scalarClips(args.clipMax, args.clipMin, what),
      optionalReal(args.gradClipMax, 1, `${what} gradClipMax`),
      optionalReal(args.gradClipMin, 1, `${what} gradClipMin`),
    ]);
  }

  function rowShares(args: {
    rows: number;
    gradClipMax?: Buffer;
    gradClipMin?: Buffer;
  }): readonly [number, number] {
    if (!args.gradClipMax && !args.gradClipMin) return [0, 0];
    return [scratch.take(args.rows * 4), scratch.take(args.rows * 4)];
  }

  return {
    quantizeRows(args) {
      const { rows, cols, bits } = args;
      const n = rows * cols;
      checkBits(bits, "quantizeRows");
      launchRows(ctx, "quantize", "quantize_rows", rows, cols, [
        real(args.x, n, "quantizeRows x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "quantizeRows"),
        args.scaleFloor,
        optionalReal(args.offset, n, "quantizeRows offset"),
        codes(args.codes, n, "quantizeRows codes"),
        real(args.scale, rows, "quantizeRows scale"),
      ]);
    },
    quantizeRowsBackward(args) {
      const { rows, cols, bits } = args;
      const n = rows * cols;
      checkBits(bits, "quantizeRowsBackward");
      const shares = rowShares(args);
      launchRows(ctx, "quantize", "quantize_rows_backward", rows, cols, [
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
        optionalReal(args.gradOffset, n, "quantizeRowsBackward gradOffset"),
        ...shares,
      ]);
      clipGradients(args, rows, shares, "quantizeRowsBackward");
    },
    dequantizeRows(args) {
      const { rows, cols } = args;
      launch(
        ctx,
        modules.get("quantize", "dequantize_rows"),
        [blocksFor(ctx, rows * cols, 1024)],
        256,
        [
          codes(args.codes, rows * cols, "dequantizeRows codes"),
          real(args.scale, rows, "dequantizeRows scale"),
          rows,
          cols,
          real(args.out, rows * cols, "dequantizeRows out"),
        ],
      );
    },
    fakeQuantizeAsym(args) {
      const { rows, cols, bits } = args;
      checkBits(bits, "fakeQuantizeAsym");
      launchRows(ctx, "quantize", "asym", rows, cols, [
        real(args.x, rows * cols, "fakeQuantizeAsym x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsym"),
        real(args.out, rows * cols, "fakeQuantizeAsym out"),
      ]);
    },
    fakeQuantizeAsymBackward(args) {
      const { rows, cols, bits } = args;
      checkBits(bits, "fakeQuantizeAsymBackward");
      const shares = rowShares(args);
      launchRows(ctx, "quantize", "asym_backward", rows, cols, [
        real(args.x, rows * cols, "fakeQuantizeAsymBackward x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeAsymBackward"),
        real(args.grad, rows * cols, "fakeQuantizeAsymBackward grad"),
        real(args.gradX, rows * cols, "fakeQuantizeAsymBackward gradX"),
        ...shares,
      ]);
      clipGradients(args, rows, shares, "fakeQuantizeAsymBackward");
    },
    fakeQuantizeOffset(args) {
      const { rows, cols, bits } = args;
      checkBits(bits, "fakeQuantizeOffset");
      launchRows(ctx, "quantize", "offset_grid", rows, cols, [
        real(args.x, rows * cols, "fakeQuantizeOffset x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeOffset"),
        optionalReal(args.shift, rows * cols, "fakeQuantizeOffset shift"),
        real(args.out, rows * cols, "fakeQuantizeOffset out"),
      ]);
    },
    fakeQuantizeOffsetBackward(args) {
      const { rows, cols, bits } = args;
      const n = rows * cols;
      checkBits(bits, "fakeQuantizeOffsetBackward");
      const shares = rowShares(args);
      launchRows(ctx, "quantize", "offset_grid_backward", rows, cols, [
        real(args.x, n, "fakeQuantizeOffsetBackward x"),
        rows,
        cols,
        bits,
        ...scalarClips(args.clipMax, args.clipMin, "fakeQuantizeOffsetBackward"),
        optionalReal(args.shift, n, "fakeQuantizeOffsetBackward shift"),
        real(args.grad, n, "fakeQuantizeOffsetBackward grad"),
        real(args.gradX, n, "fakeQuantizeOffsetBackward gradX"),
        optionalReal(args.gradShift, n, "fakeQuantizeOffsetBackward gradShift"),
        ...shares,
      ]);
      clipGradients(args, rows, shares, "fakeQuantizeOffsetBackward");
    },
    clipRows(args) {
      const { rows, cols } = args;
      launchRows(ctx, "quantize", "clip_rows", rows, cols, [
        real(args.x, rows * cols, "clipRows x"),
        rows,
        cols,
        real(args.clipMax, rows, "clipRows clipMax"),
        real(args.clipMin, rows, "clipRows clipMin"),
        real(args.out, rows * cols, "clipRows out"),
      ]);
    },
    clipRowsBackward(args) {
      const { rows, cols } = args;
      launchRows(ctx, "quantize", "clip_rows_backward", rows, cols, [
        real(args.x, rows * cols, "clipRowsBackward x"),
        rows,
        cols,
        real(args.clipMax, rows, "clipRowsBackward clipMax"),
        real(args.clipMin, rows, "clipRowsBackward clipMin"),
        real(args.grad, rows * cols, "clipRowsBackward grad"),
        real(args.gradX, rows * cols, "clipRowsBackward gradX"),
        optionalReal(args.gradClipMax, rows, "clipRowsBackward gradClipMax"),
        optionalReal(args.gradClipMin, rows, "clipRowsBackward gradClipMin"),
      ]);
    },
  };
}
