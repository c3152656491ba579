/**
 * The Kronecker transform and its gradients. In bf16 one kernel of native/cuda/kronecker.cu, compiled for the matrices'
 * sizes, does a whole row in shared memory; in f32, and where a tile does not fit there, products of cuBLASLt do it in
 * two passes.
 */
import type {
  Buffer,
  Kernels,
  KroneckerArgs,
  KroneckerBackwardArgs,
} from "../../../contract/training.js";
import { launch, optionalReal, real, type CudaContext } from "../../context.js";
import { CudaBuffer } from "../../memory.js";
import { elementwiseKernels } from "./elementwise.js";
import { matmulKernels } from "./matmul.js";

const pad16 = (n: number) => Math.ceil(n / 16) * 16;
/** Tile rows without a left matrix and columns without a right one, as in kronecker.cu. */
const FREE_ROWS = 64;
const FREE_COLS = 128;
const PADDING = 8;
/** Products of a batch that one call of cuBLASLt takes. */
const MOST_PRODUCTS = 32768;
/** Elements of partial products held at once by the f32 gradient of the left matrix. */
const PARTIAL_ELEMENTS = 16 * 2 ** 20;

type Sizes = Pick<KroneckerArgs, "rows" | "nLeft" | "nRight" | "left" | "right" | "diag">;

interface TilePlan {
  readonly defines: readonly string[];
  readonly items: number;
  readonly threads: number;
  readonly forwardBytes: number;
  readonly backwardBytes: number;
}

/** How kronecker.cu cuts the work; the sizes mirror its constants. */
function planTiles({ rows, nLeft, nRight, left, right, diag }: Sizes, backward: boolean): TilePlan {
  const tileRows = left ? pad16(nLeft) : FREE_ROWS;
  const tileCols = right ? pad16(nRight) : FREE_COLS;
  const tile = tileRows * (tileCols + PADDING) * 2;
  const matrices =
    (left ? tileRows * (tileRows + PADDING) * 2 : 0) +
    (right ? tileCols * (tileCols + PADDING) * 2 : 0);
  const items =
    left && right
      ? rows
      : right
        ? Math.ceil((rows * nLeft) / FREE_ROWS)
        : rows * Math.ceil(nRight / FREE_COLS);
  const sumsDiag = backward && diag ? 1 : 0;
  return {
    defines: [`LEFT=${left ? nLeft : 0}`, `RIGHT=${right ? nRight : 0}`, `DIAG=${sumsDiag}`],
    items,
    threads: Math.max(left ? tileRows : 0, right ? tileCols : 0) > 96 ? 512 : 256,
    // High and low parts.
    forwardBytes: 2 * (tile + matrices),
    backwardBytes: 3 * tile + matrices + sumsDiag * tileRows * tileCols * 4,
  };
}

/** diag needs whole rows as tiles. */
function fitsTiles(args: Sizes): boolean {
  if (!args.left && !args.right) return false;
  return args.diag === undefined || (args.left !== undefined && args.right !== undefined);
}

export function kroneckerKernels(
  ctx: CudaContext,
): Pick<Kernels, "kronecker" | "kroneckerBackward"> {
  const { modules, scratch, driver } = ctx;
  const { matmul } = matmulKernels(ctx);
  const { binary, reduce, scale } = elementwiseKernels(ctx);
  const { sharedBytesPerBlock, multiprocessors } = driver.info;
  const temporary = (length: number): CudaBuffer =>
    new CudaBuffer("f32", length, scratch.take(length * 4), false);

  /** x ⊙ diag, or x itself. */
  function scaled(args: Sizes, x: Buffer): Buffer {
    if (!args.diag) return x;
    const [rows, cols] = [args.rows, args.nLeft * args.nRight];
    const out = temporary(rows * cols);
    binary({ op: "mul", rows, cols, a: x, b: args.diag, broadcast: "row", out });
    return out;
  }

  /** out = x·right (or ·rightᵀ) for every row of every part. */
  function rightProduct(
    { rows, nLeft, nRight }: Sizes,
    x: Buffer,
    right: Buffer,
    transposed: boolean,
    out: Buffer,
  ): void {
    matmul({
      m: rows * nLeft,
      n: nRight,
      k: nRight,
      a: { buffer: x },
      b: { buffer: right, transposed },
      out: { buffer: out },
      precision: "f32",
    });
  }

  /** out = leftᵀ·x (or left·x) for every row. */
  function leftProduct(
    { rows, nLeft, nRight }: Sizes,
    x: Buffer,
    left: Buffer,
    transposed: boolean,
    out: Buffer,
  ): void {
    const width = nLeft * nRight;
    for (let first = 0; first < rows; first += MOST_PRODUCTS) {
      matmul({
        m: nLeft,
        n: nRight,
        k: nLeft,
        batch: Math.min(MOST_PRODUCTS, rows - first),
        a: { buffer: left, transposed },
        b: { buffer: x, offset: first * width, batchStride: width },
        out: { buffer: out, offset: first * width, batchStride: width },
        precision: "f32",
      });
    }
  }

  /** gradLeft = Σ over rows of t·gᵀ. */
  function leftGradient({ rows, nLeft, nRight }: Sizes, t: Buffer, g: Buffer, out: Buffer): void {
    const [width, square] = [nLeft * nRight, nLeft * nLeft];
    const chunk = Math.max(1, Math.min(rows, MOST_PRODUCTS, Math.floor(PARTIAL_ELEMENTS / square)));
    const chunks = Math.ceil(rows / chunk);
    const products = temporary(chunk * square);
    const sums = temporary(chunks * square);
    for (let i = 0; i < chunks; i++) {
      const offset = i * chunk * width;
      const count = Math.min(chunk, rows - i * chunk);
      matmul({
        m: nLeft,
        n: nLeft,
        k: nRight,
        batch: count,
        a: { buffer: t, offset, batchStride: width },
        b: { buffer: g, offset, batchStride: width, transposed: true },
        out: { buffer: products, batchStride: square },
        precision: "f32",
      });
      const part = new CudaBuffer("f32", square, sums.pointer + i * square * 4, false);
      reduce({ rows: count, cols: square, x: products, keep: "row", alpha: 1, out: part });
    }
    reduce({ rows: chunks, cols: square, x: sums, keep: "row", alpha: 1, out });
  }

  function forwardInPasses(args: KroneckerArgs): void {
    const { left, right, out } = args;
    const length = args.rows * args.nLeft * args.nRight;
    const x = scaled(args, args.x);
    if (!left && !right) {
      scale({ x, length, alpha: 1, accumulate: false, out });
      return;
    }
    const middle = left && right ? temporary(length) : out;
    if (right) rightProduct(args, x, right, false, left ? middle : out);
    if (left) leftProduct(args, right ? middle : x, left, true, out);
  }

  function backwardInPasses(args: KroneckerBackwardArgs): void {
    const { rows, nLeft, nRight, left, right, diag, grad } = args;
    const width = nLeft * nRight;
    const length = rows * width;
    const x = scaled(args, args.x);
    if (args.gradLeft) {
      const t = right ? temporary(length) : x;
      if (right) rightProduct(args, x, right, false, t);
      leftGradient(args, t, grad, args.gradLeft);
    }
    if (args.gradRight) {
      const t = left ? temporary(length) : x;
      if (left) leftProduct(args, x, left, true, t);
      matmul({
        m: nRight,
        n: nRight,
        k: rows * nLeft,
        a: { buffer: t, transposed: true },
        b: { buffer: grad },
        out: { buffer: args.gradRight },
        precision: "f32",
      });
    }
    if (!args.gradX && !args.gradDiag) return;
    let product: Buffer = grad;
    if (left) {
      const next = temporary(length);
      leftProduct(args, product, left, false, next);
      product = next;
    }
    if (right) {
      const next = temporary(length);
      rightProduct(args, product, right, true, next);
      product = next;
    }
    if (args.gradDiag)
      reduce({
        rows,
        cols: width,
        x: product,
        y: args.x,
        keep: "row",
        alpha: 1,
        out: args.gradDiag,
      });
    if (!args.gradX) return;
    const out = args.gradX;
    if (diag) binary({ op: "mul", rows, cols: width, a: product, b: diag, broadcast: "row", out });
    else scale({ x: product, length, alpha: 1, accumulate: false, out });
  }

  return {
    kronecker(args) {
      const { rows, nLeft, nRight } = args;
      const width = nLeft * nRight;
      const plan = planTiles(args, false);
      if (args.precision === "f32" || !fitsTiles(args) || plan.forwardBytes > sharedBytesPerBlock) {
        forwardInPasses(args);
        return;
      }
      const perMultiprocessor = Math.max(1, Math.floor(sharedBytesPerBlock / plan.forwardBytes));
      const blocks = Math.min(plan.items, multiprocessors * Math.min(perMultiprocessor, 8));
      launch(
        ctx,
        modules.get("kronecker", "kronecker", plan.defines),
        [blocks],
        plan.threads,
        [
          real(args.x, rows * width, "kronecker x"),
          plan.items,
          rows,
          nLeft,
          nRight,
          optionalReal(args.left, nLeft * nLeft, "kronecker left"),
          optionalReal(args.right, nRight * nRight, "kronecker right"),
          optionalReal(args.diag, width, "kronecker diag"),
          real(args.out, rows * width, "kronecker out"),
        ],
        plan.forwardBytes,
      );
    },

    kroneckerBackward(args) {
      const { rows, nLeft, nRight, gradLeft, gradRight, gradDiag } = args;
      const width = nLeft * nRight;
      // The kernel's gradients are of the matrices that are there.
      const whole = (args.left || !gradLeft) && (args.right || !gradRight);
      const plan = planTiles({ ...args, diag: gradDiag }, true);
      if (
        args.precision === "f32" ||
        !whole ||
        !fitsTiles(args) ||
        !fitsTiles({ ...args, diag: gradDiag }) ||
        plan.backwardBytes > sharedBytesPerBlock
      ) {
        backwardInPasses(args);
        return;
      }
      const perMultiprocessor = Math.max(1, Math.floor(sharedBytesPerBlock / plan.backwardBytes));
      const blocks = Math.min(plan.items, multiprocessors * Math.min(perMultiprocessor, 4));
      const partial = (length: number, wanted: Buffer | undefined) =>
        wanted ? temporary(blocks * length) : undefined;
      const sums = [
        { out: gradLeft, length: nLeft * nLeft, partial: partial(nLeft * nLeft, gradLeft) },
        { out: gradRight, length: nRight * nRight, partial: partial(nRight * nRight, gradRight) },
        { out: gradDiag, length: width, partial: partial(width, gradDiag) },
      ];
      launch(
        ctx,
        modules.get("kronecker", "kronecker_backward", plan.defines),
        [blocks],
        plan.threads,
        [
          real(args.x, rows * width, "kroneckerBackward x"),
          plan.items,
          rows,
          nLeft,
          nRight,
          optionalReal(args.left, nLeft * nLeft, "kroneckerBackward left"),
          optionalReal(args.right, nRight * nRight, "kroneckerBackward right"),
          optionalReal(args.diag, width, "kroneckerBackward diag"),
          real(args.grad, rows * width, "kroneckerBackward grad"),
          optionalReal(args.gradX, rows * width, "kroneckerBackward gradX"),
          ...sums.map((sum) => sum.partial?.pointer ?? 0),
        ],
        plan.backwardBytes,
      );
      for (const { out, length, partial: parts } of sums)
        if (out && parts)
          reduce({ rows: blocks, cols: length, x: parts, keep: "row", alpha: 1, out });
    },
  };
}
