/** Rounding float32 to IEEE half precision (nearest, ties to even), for writing 16-bit tensors. */
import { PlanishError } from "./errors.js";

const floatView = new Float32Array(1);
const bitView = new Uint32Array(floatView.buffer);

/** Bits of the nearest half. Magnitudes that round beyond 65504 become infinity, as IEEE 754 says. */
export function floatToHalfBits(value: number): number {
  floatView[0] = value;
  const bits = bitView[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x7f800000) return sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0);
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) {
    // Normal: drop 13 mantissa bits; the carry may move the exponent, which is right.
    const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
    return sign | ((rounded - 0x38000000) >>> 13);
  }
  if (magnitude < 0x33000000) return sign;
  // Subnormal: shift the mantissa with its hidden bit into place.
  const shift = 126 - (magnitude >>> 23);
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const half = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  const tie = 1 << (shift - 1);
  return sign | (half + (rest > tie || (rest === tie && (half & 1) === 1) ? 1 : 0));
}

/** Whether every value is one that IEEE half precision holds. */
export function areHalves(values: Float32Array): boolean {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    const exponent = (bits[i] >>> 23) & 0xff;
    // Below 2^−14 a half has fewer digits, down to none below 2^−24.
    const dropped = exponent >= 113 ? 13 : 13 + 113 - exponent;
    if (exponent > 142) return false;
    if ((bits[i] & 0x7fffffff) === 0) continue;
    if (exponent < 103) return false;
    const mantissa = (bits[i] & 0x7fffff) | 0x800000;
    if (mantissa % 2 ** dropped !== 0) return false;
  }
  return true;
}

/**
 * Converts to halves; little-endian bytes.
 * @throws PlanishError naming the tensor when a finite value does not fit.
 */
export function floatsToHalfBytes(data: ArrayLike<number>, name: string): Uint8Array {
  const out = new Uint16Array(data.length);
  for (let i = 0; i < data.length; i++) {
    out[i] = floatToHalfBits(data[i]);
    if ((out[i] & 0x7c00) === 0x7c00 && Number.isFinite(data[i]))
      throw new PlanishError(`${name}: value ${data[i]} does not fit in 16 bits (largest 65504)`);
  }
  return new Uint8Array(out.buffer);
}
