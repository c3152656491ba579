/**
 * Binding of the matrix products (native/matmul.h). Sizes are checked here, since the native side trusts them: an
 * operand that reaches past its buffer is refused with its numbers.
 */
import { matrixExtent } from "../../contract/extents.js";
import type {
  Buffer,
  DType,
  IntMatmulArgs,
  Kernels,
  MatmulArgs,
  MatmulOperand,
} from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { CONSTANTS } from "../../contract/abi.js";
import { NativeBuffer } from "../memory.js";
import type { NativeKernels } from "../native-kernels.js";

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
    matrixExtent(storedRows, storedCols, offset, stride, batch, batchStride),
  );
  const flags =
    (transposed ? CONSTANTS.operandTransposed : 0) |
    (buffer.dtype === "i8" ? CONSTANTS.operandCodes : 0);
  return { address, offset, stride, batchStride, flags };
}

/** Binds `matmul` and `intMatmul`; see MatmulArgs and IntMatmulArgs for what they compute. */
export function matmulKernels(native: NativeKernels): Pick<Kernels, "matmul" | "intMatmul"> {
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
        matrixExtent(m, n, outOffset, outStride, batch, outBatch),
      );
      native.matmul({
        m,
        n,
        k,
        batch,
        a: a.address,
        aOffset: a.offset,
        aStride: a.stride,
        aBatch: a.batchStride,
        aFlags: a.flags,
        b: b.address,
        bOffset: b.offset,
        bStride: b.stride,
        bBatch: b.batchStride,
        bFlags: b.flags,
        out: outAddress,
        outOffset,
        outStride,
        outBatch,
        kScale: args.kScale,
        nScale: args.nScale,
        bias: args.bias,
        alpha,
        flags:
          (args.accumulate ? CONSTANTS.productAccumulates : 0) |
          (args.precision === "bf16" ? CONSTANTS.productBf16 : 0),
      });
    },
    intMatmul(args: IntMatmulArgs): void {
      const { m, n, k } = args;
      checkCount("m", m);
      checkCount("n", n);
      checkCount("k", k);
      native.intMatmul(args);
    },
  };
}
