/** Bindings of native/cuda/elementwise.cu: maps, broadcasts, sums, row lookup, the AdamW step. */
import type {
  BinaryArgs,
  BinaryOp,
  Kernels,
  ReduceArgs,
  UnaryOp,
} from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import {
  blocksFor,
  indices,
  launch,
  launchRows,
  optionalReal,
  real,
  type CudaContext,
} from "../../context.js";
import { readFlag, startFlag } from "./flag.js";

/** Numbers of the operations in elementwise.cu. */
const UNARY: Readonly<Record<UnaryOp, number>> = {
  sigmoid: 0,
  silu: 1,
  relu: 2,
  gelu: 3,
  geluTanh: 4,
  reciprocal: 5,
  negate: 6,
  relu2: 7,
};
const BINARY: Readonly<Record<BinaryOp, number>> = { add: 0, sub: 1, mul: 2 };
const BROADCAST: Readonly<Record<BinaryArgs["broadcast"], number>> = {
  full: 0,
  row: 1,
  column: 2,
  scalar: 3,
};

const THREADS = 256;
/** Elements per thread and access. */
const WIDTH = 4;

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
  | "adamW"
  | "gatherRows"
>;

/** Rows per chunk and chunks for sums over rows: enough blocks to fill the device, chunks of at least 16 rows. */
export function rowChunks(ctx: CudaContext, rows: number, cols: number) {
  const wanted = Math.ceil((ctx.driver.info.multiprocessors * 8) / Math.ceil(cols / THREADS));
  const chunk = Math.max(16, Math.ceil(rows / Math.max(1, wanted)));
  return { chunk, chunks: Math.ceil(rows / chunk), columns: Math.ceil(cols / THREADS) };
}

export function elementwiseKernels(ctx: CudaContext): ElementwiseKernels {
  const { modules, scratch } = ctx;
  const kernel = (name: string) => modules.get("elementwise", name);
  const wide = (length: number): [number] => [blocksFor(ctx, Math.ceil(length / WIDTH), THREADS)];

  /** out[0] = alpha·Σ x (·y), or alpha·Σ (x−y)². */
  function sumAll(
    x: number,
    y: number,
    length: number,
    squares: boolean,
    alpha: number,
    out: number,
  ): void {
    const blocks = blocksFor(ctx, length, THREADS * 8);
    const partial = scratch.take(blocks * 4);
    launch(ctx, kernel("sum_partial"), [blocks], THREADS, [x, y, length, squares ? 1 : 0, partial]);
    launch(ctx, kernel("sum_finish_scalar"), [1], THREADS, [partial, blocks, alpha, out]);
  }

  function reduce(args: ReduceArgs): void {
    const { rows, cols, keep, alpha } = args;
    const lengths = { row: cols, column: rows, scalar: 1 };
    const x = real(args.x, rows * cols, "reduce x");
    const y = optionalReal(args.y, rows * cols, "reduce y");
    const out = real(args.out, lengths[keep], "reduce out");
    if (keep === "scalar") {
      sumAll(x, y, rows * cols, false, alpha, out);
    } else if (keep === "column") {
      launchRows(ctx, "elementwise", "sum_columns", rows, cols, [
        ...[x, y, rows, cols, alpha, out],
      ]);
    } else {
      const { chunk, chunks, columns } = rowChunks(ctx, rows, cols);
      const partial = scratch.take(chunks * cols * 4);
      launch(ctx, kernel("sum_rows_partial"), [columns, chunks], THREADS, [
        ...[x, y, rows, cols, chunk, partial],
      ]);
      launch(ctx, kernel("sum_finish"), [columns], THREADS, [
        ...[partial, chunks, cols, alpha, out],
      ]);
    }
  }

  return {
    unary({ op, x, length, out }) {
      launch(ctx, kernel("unary"), wide(length), THREADS, [
        UNARY[op],
        real(x, length, "unary x"),
        length,
        0,
        real(out, length, "unary out"),
      ]);
    },
    unaryBackward({ op, x, length, grad, gradX }) {
      launch(ctx, kernel("unary"), wide(length), THREADS, [
        UNARY[op],
        real(x, length, "unaryBackward x"),
        length,
        real(grad, length, "unaryBackward grad"),
        real(gradX, length, "unaryBackward gradX"),
      ]);
    },
    binary({ op, rows, cols, a, b, broadcast, out }) {
      const lengths = { full: rows * cols, row: cols, column: rows, scalar: 1 };
      launch(ctx, kernel("binary"), wide(rows * cols), THREADS, [
        BINARY[op],
        rows,
        cols,
        real(a, rows * cols, "binary a"),
        real(b, lengths[broadcast], "binary b"),
        BROADCAST[broadcast],
        real(out, rows * cols, "binary out"),
      ]);
    },
    reduce,
    columnMaxima({ rows, cols, x, out }) {
      const { chunk, chunks, columns } = rowChunks(ctx, rows, cols);
      launch(ctx, kernel("column_maxima"), [columns, chunks], THREADS, [
        real(x, rows * cols, "columnMaxima x"),
        rows,
        cols,
        chunk,
        real(out, cols, "columnMaxima out"),
      ]);
    },
    scale({ x, length, alpha, accumulate, out }) {
      launch(ctx, kernel("scale"), wide(length), THREADS, [
        real(x, length, "scale x"),
        length,
        alpha,
        accumulate ? 1 : 0,
        real(out, length, "scale out"),
      ]);
    },
    siluMul({ gate, up, length, out }) {
      launch(ctx, kernel("silu_mul"), wide(length), THREADS, [
        real(gate, length, "siluMul gate"),
        real(up, length, "siluMul up"),
        length,
        real(out, length, "siluMul out"),
      ]);
    },
    siluMulBackward({ gate, up, length, grad, gradGate, gradUp }) {
      launch(ctx, kernel("silu_mul_backward"), wide(length), THREADS, [
        real(gate, length, "siluMulBackward gate"),
        real(up, length, "siluMulBackward up"),
        length,
        real(grad, length, "siluMulBackward grad"),
        real(gradGate, length, "siluMulBackward gradGate"),
        real(gradUp, length, "siluMulBackward gradUp"),
      ]);
    },
    mse({ a, b, length, loss }) {
      sumAll(
        real(a, length, "mse a"),
        real(b, length, "mse b"),
        length,
        true,
        1 / length,
        real(loss, 1, "mse loss"),
      );
    },
    adamW(args) {
      const { length, step, beta1, beta2, learningRate } = args;
      launch(ctx, kernel("adamw"), [blocksFor(ctx, length, THREADS)], THREADS, [
        real(args.param, length, "adamW param"),
        real(args.grad, length, "adamW grad"),
        real(args.moment1, length, "adamW moment1"),
        real(args.moment2, length, "adamW moment2"),
        length,
        learningRate,
        beta1,
        beta2,
        args.epsilon,
        1 - learningRate * args.weightDecay,
        args.gradScale,
        1 - beta1 ** step,
        1 - beta2 ** step,
        args.bound ?? -1,
      ]);
    },
    gatherRows({ table, cols, ids, rows, out }) {
      const tableRows = Math.floor(table.length / cols);
      const flag = startFlag(ctx);
      launch(ctx, kernel("gather_rows"), [Math.min(rows, 65535)], THREADS, [
        real(table, 0, "gatherRows table"),
        tableRows,
        cols,
        indices(ids, rows, "gatherRows ids"),
        rows,
        real(out, rows * cols, "gatherRows out"),
        flag,
      ]);
      const bad = readFlag(ctx, flag);
      if (bad !== undefined)
        throw new PlanishError(
          `gatherRows: the id of row ${bad} is not in the table; give 0 … ${tableRows - 1}`,
        );
    },
  };
}
