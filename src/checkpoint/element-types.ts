/**
 * Plain element types (floats and integers): sizes, and conversion to float32. GGUF block types are in
 * `gguf-blocks.ts`. Files are little-endian, and so is every processor that Node is built for except
 * s390x, which is not supported.
 */

export type ElementType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F8_E8M0"
  | "I64"
  | "I32"
  | "I8"
  | "U8"
  | "BOOL";

export const ELEMENT_BYTES: Readonly<Record<ElementType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I64: 8,
  I32: 4,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

/** Whether `type` is stored one element at a time. */
export function isElementType(type: string): type is ElementType {
  return Object.hasOwn(ELEMENT_BYTES, type);
}

/** IEEE binary16 bits to binary32 bits. */
function halfToFloatBits(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >> 10) & 0x1f;
  let mantissa = half & 0x3ff;
  if (exponent === 0x1f) return sign | 0x7f800000 | (mantissa << 13);
  if (exponent !== 0) return sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (mantissa === 0) return sign;
  // Subnormal: shift the leading one into place, lowering the exponent each step.
  let shift = 113;
  while ((mantissa & 0x400) === 0) {
    mantissa <<= 1;
    shift--;
  }
  return sign | (shift << 23) | ((mantissa & 0x3ff) << 13);
}

let halfTable: Uint32Array | undefined;

/** float32 bits of all 65,536 halves: one load beats the bit arithmetic several times over. */
export function halfFloatBits(): Uint32Array {
  if (!halfTable) {
    halfTable = new Uint32Array(65536);
    for (let half = 0; half < 65536; half++) halfTable[half] = halfToFloatBits(half);
  }
  return halfTable;
}

let halfValueTable: Float32Array | undefined;

/** float32 values of all halves, indexed by their bits. */
export function halfFloats(): Float32Array {
  halfValueTable ??= new Float32Array(halfFloatBits().buffer);
  return halfValueTable;
}

/** The types of 8-bit floats: one byte is a sign, an exponent and a mantissa, or an exponent alone. */
type Float8 = "F8_E4M3" | "F8_E5M2" | "F8_E8M0";
const float8Tables = new Map<Float8, Float32Array>();

/**
 * float32 values of all bytes of an 8-bit float (OCP 8-bit Floating Point; Microscaling Formats for E8M0): E4M3 has no
 * infinities and one NaN of each sign, E5M2 is a half without its low byte, E8M0 is 2^(byte − 127).
 */
function float8Values(type: Float8): Float32Array {
  let table = float8Tables.get(type);
  if (!table) {
    const value = { F8_E4M3: e4m3, F8_E5M2: e5m2, F8_E8M0: e8m0 }[type];
    table = Float32Array.from({ length: 256 }, (_, byte) => value(byte));
    float8Tables.set(type, table);
  }
  return table;
}

function e4m3(byte: number): number {
  const sign = byte & 0x80 ? -1 : 1;
  const exponent = (byte >> 3) & 15;
  const mantissa = byte & 7;
  if (exponent === 15 && mantissa === 7) return NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
}

function e5m2(byte: number): number {
  return halfFloats()[byte << 8];
}

function e8m0(byte: number): number {
  return byte === 255 ? NaN : 2 ** (byte - 127);
}

/**
 * Converts elements stored/**
 * Converts elements stored in `bytes` to float32, writing to `out` from `outOffset`.
 * `bytes.byteOffset` must be a multiple of the element size; integers beyond 2^24 and doubles are rounded.
 */
export function elementsToFloat32(
  type: ElementType,
  bytes: Uint8Array,
  out: Float32Array,
  outOffset: number,
): void {
  const { buffer, byteOffset } = bytes;
  const count = bytes.byteLength / ELEMENT_BYTES[type];
  switch (type) {
    case "F32":
      out.set(new Float32Array(buffer, byteOffset, count), outOffset);
      return;
    case "F64":
      out.set(new Float64Array(buffer, byteOffset, count), outOffset);
      return;
    case "BF16": {
      const from = new Uint16Array(buffer, byteOffset, count);
      const bits = new Uint32Array(out.buffer, out.byteOffset + 4 * outOffset, count);
      for (let i = 0; i < count; i++) bits[i] = from[i] << 16;
      return;
    }
    case "F16": {
      const from = new Uint16Array(buffer, byteOffset, count);
      const bits = new Uint32Array(out.buffer, out.byteOffset + 4 * outOffset, count);
      const table = halfFloatBits();
      for (let i = 0; i < count; i++) bits[i] = table[from[i]];
      return;
    }
    case "F8_E4M3":
    case "F8_E5M2":
    case "F8_E8M0": {
      const table = float8Values(type);
      for (let i = 0; i < count; i++) out[outOffset + i] = table[bytes[i]];
      return;
    }
    case "I64": {
      const low = new Uint32Array(buffer, byteOffset, 2 * count);
      const high = new Int32Array(buffer, byteOffset, 2 * count);
      for (let i = 0; i < count; i++) out[outOffset + i] = high[2 * i + 1] * 2 ** 32 + low[2 * i];
      return;
    }
    case "I32":
      out.set(new Int32Array(buffer, byteOffset, count), outOffset);
      return;
    case "I8":
      out.set(new Int8Array(buffer, byteOffset, count), outOffset);
      return;
    case "U8":
      out.set(new Uint8Array(buffer, byteOffset, count), outOffset);
      return;
    case "BOOL": {
      const from = new Uint8Array(buffer, byteOffset, count);
      for (let i = 0; i < count; i++) out[outOffset + i] = from[i] === 0 ? 0 : 1;
      return;
    }
  }
}
