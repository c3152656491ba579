/**
 * Buffers that live in ordinary host memory as typed arrays, shared by the backends whose kernels can read them
 * in place (reference, cpu). Limits: no reference counting; whoever allocates says when a buffer is dead.
 */

import { PlanishError } from "../../common/errors.js";
import { BYTES_PER_ELEMENT, type Buffer, type DType, type HostArray } from "./training.js";

const ARRAY_TYPES = {
  f64: Float64Array,
  f32: Float32Array,
  i32: Int32Array,
  i8: Int8Array,
  u8: Uint8Array,
} as const;

/** A typed array over `memory` (or over fresh, zeroed memory) with `length` elements of `dtype`. */
export function hostArray(
  dtype: DType,
  length: number,
  memory?: ArrayBufferLike,
  byteOffset = 0,
): HostArray {
  const ArrayType = ARRAY_TYPES[dtype];
  return memory === undefined
    ? new ArrayType(length)
    : new ArrayType(memory as ArrayBuffer, byteOffset, length);
}

/**
 * A fresh, zeroed array.
 * @throws PlanishError where it is longer than the runtime's arrays, or the system refuses the memory.
 */
export function newHostArray(dtype: DType, length: number): HostArray {
  try {
    return hostArray(dtype, length);
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new PlanishError(
      `an array of ${length} elements of ${dtype} (${((length * BYTES_PER_ELEMENT[dtype]) / 2 ** 20).toFixed(0)} MiB) cannot be ` +
        "allocated; use a smaller model, cache, batch or sequence length",
      { cause },
    );
  }
}

/** A buffer whose elements are `data`, readable and writable by the host at any time. */
export class HostBuffer implements Buffer {
  readonly dtype: DType;
  readonly length: number;
  readonly data: HostArray;

  /** @param data Used in place; its type must be the one that `dtype` names. */
  constructor(dtype: DType, data: HostArray) {
    if (!(data instanceof ARRAY_TYPES[dtype])) {
      throw new TypeError(`HostBuffer: a ${dtype} buffer cannot hold a ${data.constructor.name}`);
    }
    this.dtype = dtype;
    this.length = data.length;
    this.data = data;
  }

  /** Fresh zero-filled memory. */
  static zeros(dtype: DType, length: number): HostBuffer {
    return new HostBuffer(dtype, newHostArray(dtype, length));
  }

  get byteLength(): number {
    return this.length * BYTES_PER_ELEMENT[this.dtype];
  }
}

/** Narrows a buffer to host memory; a buffer of another device is a programming error. */
export function asHostBuffer(buffer: Buffer): HostBuffer {
  if (!(buffer instanceof HostBuffer)) {
    throw new TypeError(
      `expected a buffer in host memory, got one of another backend (${buffer.dtype}[${buffer.length}])`,
    );
  }
  return buffer;
}
