/** Regions of device memory, and the host arrays that they are read into and written from. */

export type RealType = "f32" | "f64";
export type DType = RealType | "i8" | "u8" | "i32";

export const BYTES_PER_ELEMENT: Readonly<Record<DType, number>> = {
  f64: 8,
  f32: 4,
  i32: 4,
  i8: 1,
  u8: 1,
};

/** A typed region of device memory. Shapes live in `tensor/`. */
export interface Buffer {
  readonly dtype: DType;
  /** Number of elements. */
  readonly length: number;
}

/** Host-side arrays that buffers are read into and written from. */
export type HostArray = Float64Array | Float32Array | Int8Array | Uint8Array | Int32Array;
export type RealArray = Float64Array | Float32Array;
