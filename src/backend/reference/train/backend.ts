/**
 * The reference backend: every kernel in plain TypeScript, slow and clear on purpose. Its functions are the
 * definitions that the other backends are tested against; sums run in float64 even when buffers hold float32, and a
 * matmul's `precision` is ignored.
 */

import type {
  Arena,
  Backend,
  Buffer,
  DType,
  HostArray,
  Kernels,
  RealType,
} from "../../contract/training.js";
import { asHostBuffer, HostBuffer } from "../../contract/host-memory.js";
import { attention, attentionBackward } from "./attention.js";
import {
  binary,
  columnMaxima,
  reduce,
  scale,
  siluMul,
  siluMulBackward,
  unary,
  unaryBackward,
} from "./elementwise.js";
import { gatherRows } from "./gather.js";
import { flattenRows } from "./flatten.js";
import { kronecker, kroneckerBackward } from "./kronecker.js";
import { mse, nll, softmaxKl } from "./loss.js";
import { intMatmul, matmul } from "./matmul.js";
import { ReferenceArena } from "./memory.js";
import { norm, normBackward } from "./norm.js";
import { adamW } from "./optimizer.js";
import { cayley, cayleyBackward, inverse } from "./orthogonal.js";
import {
  clipRows,
  clipRowsBackward,
  dequantizeRows,
  fakeQuantizeAsym,
  fakeQuantizeAsymBackward,
  quantizeRows,
  quantizeRowsBackward,
} from "./quantize.js";
import { fakeQuantizeOffset, fakeQuantizeOffsetBackward } from "./quantize-offset.js";
import { causalConv, causalConvBackward, recurrence, recurrenceBackward } from "./recurrent.js";
import { rope } from "./rope.js";

const KERNELS: Kernels = {
  matmul,
  intMatmul,
  quantizeRows,
  quantizeRowsBackward,
  dequantizeRows,
  flattenRows,
  fakeQuantizeAsym,
  fakeQuantizeAsymBackward,
  fakeQuantizeOffset,
  fakeQuantizeOffsetBackward,
  clipRows,
  clipRowsBackward,
  kronecker,
  kroneckerBackward,
  norm,
  normBackward,
  rope,
  attention,
  attentionBackward,
  unary,
  unaryBackward,
  binary,
  reduce,
  columnMaxima,
  scale,
  siluMul,
  siluMulBackward,
  mse,
  nll,
  softmaxKl,
  gatherRows,
  causalConv,
  causalConvBackward,
  recurrence,
  recurrenceBackward,
  adamW,
  cayley,
  cayleyBackward,
  inverse,
};

/** Throws RangeError unless elements `offset … offset+length` lie inside the buffer. */
function checkRange(buffer: HostBuffer, offset: number, length: number, what: string): void {
  if (
    !Number.isInteger(offset) ||
    !Number.isInteger(length) ||
    offset < 0 ||
    length < 0 ||
    offset + length > buffer.length
  ) {
    throw new RangeError(
      `${what}: elements ${offset} … ${offset + length} of a buffer of ${buffer.length}`,
    );
  }
}

class ReferenceBackend implements Backend {
  readonly name = "reference";
  readonly description: string;
  readonly realType: RealType;
  readonly kernels = KERNELS;

  constructor(realType: RealType) {
    this.realType = realType;
    this.description = `plain TypeScript, ${realType === "f64" ? "float64" : "float32 storage, float64 sums"}, 1 thread`;
  }

  arena(): Arena {
    return new ReferenceArena();
  }

  alloc(dtype: DType, length: number): Buffer {
    return HostBuffer.zeros(dtype, length);
  }

  /** Memory is the garbage collector's. */
  free(buffer: Buffer): void {
    asHostBuffer(buffer);
  }

  write(buffer: Buffer, data: HostArray, offset = 0): void {
    const host = asHostBuffer(buffer);
    checkRange(host, offset, data.length, "write");
    host.data.set(data, offset);
  }

  read(buffer: Buffer, offset = 0, length?: number): HostArray {
    const host = asHostBuffer(buffer);
    const count = length ?? host.length - offset;
    checkRange(host, offset, count, "read");
    return host.data.slice(offset, offset + count);
  }

  copy(source: Buffer, target: Buffer, length: number, sourceOffset = 0, targetOffset = 0): void {
    const from = asHostBuffer(source);
    const to = asHostBuffer(target);
    if (from.dtype !== to.dtype)
      throw new TypeError(`copy: from ${from.dtype} to ${to.dtype}; both must have one type`);
    checkRange(from, sourceOffset, length, "copy source");
    checkRange(to, targetOffset, length, "copy target");
    to.data.set(from.data.subarray(sourceOffset, sourceOffset + length), targetOffset);
  }

  fill(buffer: Buffer, value: number): void {
    asHostBuffer(buffer).data.fill(value);
  }

  [Symbol.dispose](): void {}
}

/** The oracle, holding reals as float64 (for golden vectors and as truth in tests) or as float32. */
export function createReferenceBackend(options: { realType: RealType }): Backend {
  return new ReferenceBackend(options.realType);
}
