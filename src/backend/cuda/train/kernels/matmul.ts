/**
 * Matrix products: cuBLASLt, with operands gathered into dense bf16 (or f32 where codes or scales ask for it) by one
 * kernel of native/cuda/convert.cu, and scales, bias and accumulation of the outputs by another where cuBLASLt has none.
 */
import { matrixExtent } from "../../../contract/extents.js";
import type {
  IntMatmulArgs,
  Kernels,
  MatmulArgs,
  MatmulOperand,
} from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import { blocksFor, codes, launch, optionalReal, real, type CudaContext } from "../../context.js";
import { CublasLt, type GemmOperand } from "../cublaslt.js";
import { cudaBuffer } from "../../memory.js";

const THREADS = 256;
/** Packed rows are padded to this many elements (16 bytes of bf16): what the matrix units load fastest. */
const PACK = 8;

function fail(name: string, text: string): never {
  throw new PlanishError(`matmul: ${name} ${text}`);
}

function checkCount(name: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0)
    fail(name, `is ${value}; give an integer of at least 0`);
}

/** A checked operand, as stored. */
interface Placed {
  readonly pointer: number;
  readonly isCodes: boolean;
  readonly rows: number;
  readonly cols: number;
  readonly stride: number;
  readonly batchStride: number;
  readonly transposed: boolean;
}

/** `rows`×`cols` as used in the product; stored the other way round when transposed. */
function place(
  name: string,
  operand: MatmulOperand,
  rows: number,
  cols: number,
  batch: number,
): Placed {
  const { offset = 0, transposed = false, batchStride = 0 } = operand;
  const storedRows = transposed ? cols : rows;
  const storedCols = transposed ? rows : cols;
  const stride = operand.stride ?? storedCols;
  checkCount(`${name}.offset`, offset);
  checkCount(`${name}.batchStride`, batchStride);
  if (!Number.isSafeInteger(stride) || stride < storedCols)
    fail(`${name}.stride`, `is ${stride}; its stored rows have ${storedCols} elements`);
  const { dtype, length, pointer } = cudaBuffer(operand.buffer);
  if (dtype !== "f32" && dtype !== "i8") fail(name, `has type ${dtype}; accepted: f32, i8`);
  const reach = matrixExtent(storedRows, storedCols, offset, stride, batch, batchStride);
  if (length < reach) fail(name, `has ${length} elements; the product reaches element ${reach}`);
  return {
    pointer: pointer + offset * (dtype === "f32" ? 4 : 1),
    isCodes: dtype === "i8",
    rows: storedRows,
    cols: storedCols,
    stride,
    batchStride,
    transposed,
  };
}

export function matmulKernels(ctx: CudaContext): Pick<Kernels, "matmul" | "intMatmul"> {
  const { modules, scratch, blas } = ctx;

  /** The operand as cuBLASLt takes it: in place when it is f32 and the product is, else packed. */
  function prepare(placed: Placed, batch: number, bf16: boolean, kScale: number): GemmOperand {
    const { pointer, isCodes, rows, cols, transposed } = placed;
    if (!bf16 && !isCodes && kScale === 0)
      return { pointer, stride: placed.stride, transposed, batchStride: placed.batchStride };
    const copies = placed.batchStride === 0 ? 1 : batch;
    const stride = Math.ceil(cols / PACK) * PACK;
    const packed = scratch.take(copies * rows * stride * (bf16 ? 2 : 4));
    const kernel = modules.get(
      "convert",
      `pack_${isCodes ? "i8" : "f32"}_${bf16 ? "bf16" : "f32"}`,
    );
    launch(ctx, kernel, [blocksFor(ctx, (rows * stride) / PACK, THREADS), 1, copies], THREADS, [
      pointer,
      rows,
      cols,
      placed.stride,
      placed.batchStride,
      // kScale runs along the contraction: A's stored columns, or rows when it is stored transposed.
      transposed ? kScale : 0,
      transposed ? 0 : kScale,
      packed,
      stride,
    ]);
    return {
      pointer: packed,
      stride,
      transposed,
      batchStride: placed.batchStride === 0 ? 0 : rows * stride,
    };
  }

  return {
    matmul(args: MatmulArgs): void {
      const { m, n, k, batch = 1, alpha = 1, accumulate = false } = args;
      checkCount("m", m);
      checkCount("n", n);
      checkCount("k", k);
      checkCount("batch", batch);
      const a = place("a", args.a, m, k, batch);
      const b = place("b", args.b, k, n, batch);
      const outOffset = args.out.offset ?? 0;
      const outStride = args.out.stride ?? n;
      const outBatch = args.out.batchStride ?? 0;
      checkCount("out.offset", outOffset);
      if (outStride < n) fail("out.stride", `is ${outStride}; its rows have ${n} elements`);
      if (batch > 1 && outBatch < 1)
        fail("out.batchStride", `is ${outBatch}; ${batch} products need separate outputs`);
      const out =
        real(
          args.out.buffer,
          matrixExtent(m, n, outOffset, outStride, batch, outBatch),
          "matmul out",
        ) +
        4 * outOffset;
      const kScale = optionalReal(args.kScale, k, "matmul kScale");
      const nScale = optionalReal(args.nScale, n, "matmul nScale");
      const bias = optionalReal(args.bias, n, "matmul bias");
      if (m === 0 || n === 0 || batch === 0) return;
      const bf16 = args.precision === "bf16";
      const finish = nScale !== 0 || bias !== 0;
      const product = finish ? scratch.take(batch * m * n * 4) : out;
      blas.gemm({
        m,
        n,
        k,
        batch,
        type: bf16 ? "bf16" : "f32",
        outType: "f32",
        a: prepare(a, batch, bf16, kScale),
        b: prepare(b, batch, bf16, 0),
        c: finish
          ? { pointer: product, stride: n, batchStride: m * n }
          : { pointer: product, stride: outStride, batchStride: outBatch },
        alpha,
        beta: accumulate && !finish ? 1 : 0,
      });
      if (!finish) return;
      launch(
        ctx,
        modules.get("convert", "matmul_epilogue"),
        [blocksFor(ctx, m * n, THREADS), 1, batch],
        THREADS,
        [product, m, n, nScale, bias, out, outStride, outBatch, accumulate ? 1 : 0],
      );
    },

    intMatmul(args: IntMatmulArgs): void {
      const { m, n, k } = args;
      checkCount("m", m);
      checkCount("n", n);
      checkCount("k", k);
      const a = codes(args.a, m * k, "intMatmul a");
      const b = codes(args.b, n * k, "intMatmul b");
      const aScale = real(args.aScale, m, "intMatmul aScale");
      const bScale = real(args.bScale, n, "intMatmul bScale");
      const bias = optionalReal(args.bias, n, "intMatmul bias");
      const out = real(args.out, m * n, "intMatmul out");
      if (m === 0 || n === 0) return;
      if (!CublasLt.takesInt8(m, n, k)) {
        launch(
          ctx,
          modules.get("convert", "int_matmul"),
          [Math.ceil(n / 32), Math.ceil(m / 32)],
          THREADS,
          [a, b, m, n, k, aScale, bScale, bias, out],
        );
        return;
      }
      // The sums take the place of the result, which is as wide.
      blas.gemm({
        m,
        n,
        k,
        batch: 1,
        type: "i8",
        outType: "i32",
        a: { pointer: a, stride: k, transposed: false, batchStride: 0 },
        b: { pointer: b, stride: k, transposed: true, batchStride: 0 },
        c: { pointer: out, stride: n, batchStride: 0 },
        alpha: 1,
        beta: 0,
      });
      launch(
        ctx,
        modules.get("convert", "int_epilogue"),
        [blocksFor(ctx, (m * n) / 4, THREADS)],
        THREADS,
        [out, m, n, aScale, bScale, bias],
      );
    },
  };
}
