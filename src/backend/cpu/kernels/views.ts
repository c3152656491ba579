/**
 * Checked addresses of the CPU backend's buffers: native kernels trust their pointers and sizes, so types and lengths are
 * checked once per call, here.
 */
import type { Buffer, DType, HostArray } from "../../backend.js";
import { PlanishError } from "../../../common/errors.js";
import { NativeBuffer } from "../memory.js";

function checked(buffer: Buffer, dtype: DType, length: number, what: string): NativeBuffer {
  if (!(buffer instanceof NativeBuffer)) {
    throw new PlanishError(
      `${what}: this buffer belongs to another backend; copy it with read and write`,
    );
  }
  if (buffer.dtype !== dtype) {
    throw new PlanishError(`${what}: got a ${buffer.dtype} buffer, the cpu backend takes ${dtype}`);
  }
  if (!(length >= 0 && length <= buffer.length)) {
    throw new PlanishError(`${what}: needs ${length} elements, the buffer has ${buffer.length}`);
  }
  return buffer;
}

function elements(buffer: Buffer, dtype: DType, length: number, what: string): bigint {
  return checked(buffer, dtype, length, what).address;
}

/** The address of a real buffer of at least `length` elements. Throws PlanishError naming `what`. */
export function real(buffer: Buffer, length: number, what: string): bigint {
  return elements(buffer, "f32", length, what);
}

/** The first `length` elements of a real buffer, for what is computed in JavaScript; see NativeBuffer. */
export function realArrays(buffer: Buffer, length: number, what: string): Iterable<HostArray> {
  return checked(buffer, "f32", length, what).arrays(0, length);
}

/** As `real`; null when absent. */
export function optionalReal(
  buffer: Buffer | undefined,
  length: number,
  what: string,
): bigint | null {
  return buffer === undefined ? null : elements(buffer, "f32", length, what);
}

/** The address of a buffer of 8-bit codes. */
export function codes(buffer: Buffer, length: number, what: string): bigint {
  return elements(buffer, "i8", length, what);
}

/** The address of a buffer of indices. */
export function indices(buffer: Buffer, length: number, what: string): bigint {
  return elements(buffer, "i32", length, what);
}

/** As `indices`; null when absent. */
export function optionalIndices(
  buffer: Buffer | undefined,
  length: number,
  what: string,
): bigint | null {
  return buffer === undefined ? null : elements(buffer, "i32", length, what);
}
