/**
 * Binding of the matrix products (native/matmul.h). Sizes are checked here, since the native side trusts them: an
 * operand that reaches past its buffer is refused with its numbers.
 */
import type {
  Buffer,
  DType,
  IntMatmulArgs,
  Kernels,
  MatmulArgs,
  MatmulOperand,
} from "../backend.js";
import { PlanishError } from "../../common/errors.js";
import type { NativeLibrary } from "./library.js";
import { NativeBuffer } from "./memory.js";

const OPERAND_TRANSPOSED = 1;
const OPERAND_CODES = 2;
const ACCUMULATE = 1;
const BF16 = 2;

const MATMUL =
  "int pl_matmul(int64_t m, int64_t n, int64_t k, int64_t batch, " +
  "const void* a, int64_t aOffset, int64_t aStride, int64_t aBatch, int32_t aFlags, " +
  "const void* b, int64_t bOffset, int64_t bStride, int64_t bBatch, int32_t bFlags, " +
  "void* out, int64_t outOffset, int64_t outStride, int64_t outBatch, " +
  "const void* kScale, const void* nScale, const void* bias, double alpha, int32_t flags)";

const INT_MATMUL =
  "int pl_int_matmul(int64_t m, int64_t n, int64_t k, const void* a, const void* aScale, " +
  "const void* b, const void* bScale, const void* bias, void* out)";

function fail(name: string, text: string): never {
  throw new PlanishError(`matmul: ${name} ${text}`);
}

function checkCount(name: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 0)
    fail(name, `is ${value}; give an integer of at least 0`);
}

/** The address of a buffer of one of the accepted types and at least `length` elements. */
function typed(name: string, buffer: Buffer, accepted: readonly DType[], length: number): bigint {
  if (!(buffer instanceof NativeBuffer)) fail(name, "is a buffer of another backend");
  if (!accepted.includes(buffer.dtype)) {
    fail(name, `has type ${buffer.dtype}; accepted: ${accepted.join(", ")}`);
  }
  if (buffer.length < length)
    fail(name, `has ${buffer.length} elements; the product reaches element ${length}`);
  return buffer.address;
}

function optional(name: string, buffer: Buffer | undefined, length: number): bigint | null {
  return buffer ? typed(name, buffer, ["f32"], length) : null;
}

/** One past the last element that a batch of rows×cols matrices touches. */
function extent(
  rows: number,
  cols: number,
  offset: number,
  stride: number,
  batch: number,
  batchStride: number,
): number {
  if (rows === 0 || cols === 0 || batch === 0) return 0;
  return offset + (batch - 1) * batchStride + (rows - 1) * stride + cols;
}

interface Placed {
  readonly address: bigint;
  readonly offset: number;
  readonly stride: number;
  readonly batchStride: number;
  readonly flags: number;
}

/** `rows`×`cols` as used in the product; stored the other way round when transposed. */
function place(
  name: string,
  operand: MatmulOperand,
  rows: number,
  cols: number,
  batch: number,
): Placed {
  const { buffer, offset = 0, transposed = false, batchStride = 0 } = operand;
  const storedRows = transposed ? cols : rows;
  const storedCols = transposed ? rows : cols;
  const stride = operand.stride ?? storedCols;
  checkCount(`${name}.offset`, offset);
  checkCount(`${name}.batchStride`, batchStride);
  if (!Number.isSafeInteger(stride) || stride < storedCols) {
    fail(`${name}.stride`, `is ${stride}; its stored rows have ${storedCols} elements`);
  }
  const address = typed(
    name,
    buffer,
    ["f32", "i8"],
    extent(storedRows, storedCols, offset, stride, batch, batchStride),
  );
  const flags = (transposed ? OPERAND_TRANSPOSED : 0) | (buffer.dtype === "i8" ? OPERAND_CODES : 0);
  return { address, offset, stride, batchStride, flags };
}

/** Binds `matmul` and `intMatmul`; see MatmulArgs and IntMatmulArgs for what they compute. */
export function matmulKernels(library: NativeLibrary): Pick<Kernels, "matmul" | "intMatmul"> {
  const product = library.kernel(MATMUL);
  const intProduct = library.kernel(INT_MATMUL);
  return {
    matmul(args: MatmulArgs): void {
      const { m, n, k, batch = 1, alpha = 1 } = args;
      checkCount("m", m);
      checkCount("n", n);
      checkCount("k", k);
      checkCount("batch", batch);
      const a = place("a", args.a, m, k, batch);
      const b = place("b", args.b, k, n, batch);
      const out = args.out;
      const outOffset = out.offset ?? 0;
      const outStride = out.stride ?? n;
      const outBatch = out.batchStride ?? 0;
      checkCount("out.offset", outOffset);
      if (outStride < n) fail("out.stride", `is ${outStride}; its rows have ${n} elements`);
      if (batch > 1 && outBatch < 1) {
        fail("out.batchStride", `is ${outBatch}; ${batch} products need separate outputs`);
      }
      const outAddress = typed(
        "out",
        out.buffer,
        ["f32"],
        extent(m, n, outOffset, outStride, batch, outBatch),
      );
      product(
        m,
        n,
        k,
        batch,
        a.address,
        a.offset,
        a.stride,
        a.batchStride,
        a.flags,
        b.address,
        b.offset,
        b.stride,
        b.batchStride,
        b.flags,
        outAddress,
        outOffset,
        outStride,
        outBatch,
        optional("kScale", args.kScale, k),
        optional("nScale", args.nScale, n),
        optional("bias", args.bias, n),
        alpha,
        (args.accumulate ? ACCUMULATE : 0) | (args.precision === "bf16" ? BF16 : 0),
      );
    },
    intMatmul(args: IntMatmulArgs): void {
      const { m, n, k } = args;
      checkCount("m", m);
      checkCount("n", n);
      checkCount("k", k);
      intProduct(
        m,
        n,
        k,
        typed("a", args.a, ["i8"], m * k),
        optional("aScale", args.aScale, m),
        typed("b", args.b, ["i8"], n * k),
        optional("bScale", args.bScale, n),
        optional("bias", args.bias, n),
        typed("out", args.out, ["f32"], m * n),
      );
    },
  };
}
