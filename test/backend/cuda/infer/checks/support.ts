/** What the checks of the engine's CUDA kernels share: deterministic data, IEEE halves, bounds. */
import { floatToHalfBits } from "../../../../../src/common/half.js";
import type { CudaEngineDevice } from "../../../../../src/backend/cuda/infer/device.js";

export interface Check {
  readonly name: string;
  /** Largest error as a multiple of what is allowed; infinity for NaN. */
  readonly run: (device: CudaEngineDevice) => number;
}

export function words(...parts: readonly (string | false | undefined)[]): string {
  return parts.filter(Boolean).join(" ");
}

/** Deterministic uniform numbers in [−1, 1). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const mixed = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) >>> 0;
    return ((mixed ^ (mixed >>> 13)) >>> 0) / 2 ** 31 - 1;
  };
}

export function floats(length: number, next: () => number, size = 1): Float32Array {
  return Float32Array.from({ length }, () => next() * size);
}

export function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
}

export const roundHalf = (x: number) => fromHalf(floatToHalfBits(x));
export const halves = (values: ArrayLike<number>) => Uint16Array.from(values, floatToHalfBits);
export const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
export const silu = (x: number) => x * sigmoid(x);

/** Largest of |got − want| / allowed; NaN counts as infinite. */
export function worstOf(count: number, error: (i: number) => number): number {
  let worst = 0;
  for (let i = 0; i < count; i++) {
    const e = error(i);
    worst = Number.isNaN(e) ? Infinity : Math.max(worst, e);
  }
  return worst;
}

export function poisoned(device: CudaEngineDevice, bytes: number): number {
  const pointer = device.allocate(bytes);
  device.driver.fillBytes(pointer, 0xff, bytes, device.stream);
  return pointer;
}
