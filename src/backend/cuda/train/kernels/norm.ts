/** Bindings of native/cuda/norm.cu: RMS and layer norm, rotary embedding. */
import type { Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import {
  blocksFor,
  launch,
  launchRows,
  optionalReal,
  real,
  type CudaContext,
} from "../../context.js";
import { rowChunks } from "./elementwise.js";

const THREADS = 256;

export function normKernels(ctx: CudaContext): Pick<Kernels, "norm" | "normBackward" | "rope"> {
  const { modules, scratch } = ctx;
  return {
    norm(args) {
      const { rows, cols } = args;
      launchRows(ctx, "norm", "norm", rows, cols, [
        args.kind === "layer" ? 1 : 0,
        real(args.x, rows * cols, "norm x"),
        rows,
        cols,
        real(args.gain, cols, "norm gain"),
        optionalReal(args.bias, cols, "norm bias"),
        args.epsilon,
        real(args.out, rows * cols, "norm out"),
      ]);
    },
    normBackward(args) {
      const { rows, cols } = args;
      const x = real(args.x, rows * cols, "normBackward x");
      const grad = real(args.grad, rows * cols, "normBackward grad");
      const gradGain = optionalReal(args.gradGain, cols, "normBackward gradGain");
      const gradBias = optionalReal(args.gradBias, cols, "normBackward gradBias");
      const stats = scratch.take(rows * 8);
      launchRows(ctx, "norm", "norm_backward", rows, cols, [
        args.kind === "layer" ? 1 : 0,
        x,
        rows,
        cols,
        real(args.gain, cols, "normBackward gain"),
        args.epsilon,
        grad,
        optionalReal(args.gradX, rows * cols, "normBackward gradX"),
        stats,
      ]);
      if (gradGain === 0 && gradBias === 0) return;
      const { chunk, chunks, columns } = rowChunks(ctx, rows, cols);
      const [partialGain, partialBias] = [
        scratch.take(chunks * cols * 4),
        scratch.take(chunks * cols * 4),
      ];
      launch(ctx, modules.get("norm", "norm_gain_partial"), [columns, chunks], THREADS, [
        x,
        grad,
        stats,
        rows,
        cols,
        chunk,
        partialGain,
        partialBias,
      ]);
      const finish = modules.get("elementwise", "sum_finish");
      for (const [partial, out] of [
        [partialGain, gradGain],
        [partialBias, gradBias],
      ])
        if (out !== 0) launch(ctx, finish, [columns], THREADS, [partial, chunks, cols, 1, out]);
    },
    rope(args) {
      const { rows, heads, headDim, period } = args;
      if (headDim % 2 !== 0) throw new PlanishError(`rope: headDim is ${headDim}; it must be even`);
      const n = rows * heads * headDim;
      launch(ctx, modules.get("norm", "rope"), [blocksFor(ctx, n / 2, THREADS)], THREADS, [
        real(args.x, n, "rope x"),
        rows,
        heads,
        headDim,
        period,
        real(args.cos, (period * headDim) / 2, "rope cos"),
        real(args.sin, (period * headDim) / 2, "rope sin"),
        args.inverse ? -1 : 1,
        real(args.out, n, "rope out"),
      ]);
    },
  };
}
