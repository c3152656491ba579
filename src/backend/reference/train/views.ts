/**
 * Checked access to buffers for the reference kernels. A typed array answers an index past its end with
 * `undefined` and swallows a write there, so sizes are checked once per kernel call, here.
 */

import type { Buffer, DType, RealArray } from "../../contract/training.js";
import { asHostBuffer } from "../../contract/host-memory.js";

function elements(buffer: Buffer, accepted: readonly DType[], length: number, what: string) {
  const host = asHostBuffer(buffer);
  if (!accepted.includes(host.dtype)) {
    throw new TypeError(`${what}: got a ${host.dtype} buffer, expected ${accepted.join(" or ")}`);
  }
  if (host.length < length) {
    throw new RangeError(`${what}: needs ${length} elements, the buffer has ${host.length}`);
  }
  return host.data;
}

/** The elements of a real buffer with at least `length` of them. Throws TypeError or RangeError naming `what`. */
export function reals(buffer: Buffer, length: number, what: string): RealArray {
  return elements(buffer, ["f64", "f32"], length, what) as RealArray;
}

/** As `reals`, for an optional buffer. */
export function optionalReals(
  buffer: Buffer | undefined,
  length: number,
  what: string,
): RealArray | undefined {
  return buffer === undefined ? undefined : reals(buffer, length, what);
}

/** The elements of a buffer of 8-bit codes. */
export function codes8(buffer: Buffer, length: number, what: string): Int8Array {
  return elements(buffer, ["i8"], length, what) as Int8Array;
}

/** The elements of a buffer of indices. */
export function indices(buffer: Buffer, length: number, what: string): Int32Array {
  return elements(buffer, ["i32"], length, what) as Int32Array;
}

/** Elements that may be real or integer codes, as a product's operand may. */
export function realsOrCodes(buffer: Buffer, length: number, what: string): RealArray | Int8Array {
  return elements(buffer, ["f64", "f32", "i8"], length, what) as RealArray | Int8Array;
}
