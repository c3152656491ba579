/**
 * The block types of GGUF: how each one's bytes become float32. A block is a run of 32 or 256 elements
 * along a row that shares its scales; `d` and `m` (dmin) are halves, `q` small integers.
 *
 * Every decoder takes whole blocks. Products of a half, a 6-bit scale and a quant are exact in double
 * precision, so each element is rounded once.
 */

import type { StoredType } from "./checkpoint.js";
import { halfFloats, type ElementType } from "./element-types.js";
import type { BlockFormat } from "./tensor-store.js";

export type BlockType = Exclude<StoredType, ElementType>;
/** Those that are written too. */
export type WrittenType = Exclude<BlockType, "MXFP4">;

function half(bytes: Uint8Array, at: number): number {
  return halfFloats()[bytes[at] | (bytes[at + 1] << 8)];
}

export function int8(byte: number): number {
  return (byte << 24) >> 24;
}

/** `y = d·q`; bytes: d, 32 × int8. */
function decodeQ8_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 32; i++) out[to + i] = d * int8(bytes[at + 2 + i]);
}

/** `y = d·(q − 8)`; bytes: d, 16 pairs: low nibbles are elements 0–15, high nibbles 16–31. */
function decodeQ4_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 2 + i];
    out[to + i] = d * ((pair & 15) - 8);
    out[to + 16 + i] = d * ((pair >> 4) - 8);
  }
}

/** `y = d·q + m`; bytes: d, m, pairs as in Q4_0. */
function decodeQ4_1(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const m = half(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 4 + i];
    out[to + i] = d * (pair & 15) + m;
    out[to + 16 + i] = d * (pair >> 4) + m;
  }
}

/** 32 bits, little-endian: bit `i` is the fifth bit of element `i`. */
export function fifthBits(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}

/** `y = d·(q − 16)`; bytes: d, 4 bytes of fifth bits, pairs as in Q4_0. */
function decodeQ5_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const high = fifthBits(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 6 + i];
    out[to + i] = d * (((pair & 15) | (((high >>> i) & 1) << 4)) - 16);
    out[to + 16 + i] = d * (((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
  }
}

/** `y = d·q + m`; bytes: d, m, 4 bytes of fifth bits, pairs as in Q4_0. */
function decodeQ5_1(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const m = half(bytes, at + 2);
  const high = fifthBits(bytes, at + 4);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 8 + i];
    out[to + i] = d * ((pair & 15) | (((high >>> i) & 1) << 4)) + m;
    out[to + 16 + i] = d * ((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) + m;
  }
}

/** 6-bit scale of sub-block `j` (0–7) from the 12 packed bytes at `at` of Q4_K and Q5_K. */
export function kScale(bytes: Uint8Array, at: number, j: number): number {
  return j < 4 ? bytes[at + j] & 63 : (bytes[at + j + 4] & 15) | ((bytes[at + j - 4] >> 6) << 4);
}

/** 6-bit minimum of sub-block `j`, packed beside the scales. */
export function kMin(bytes: Uint8Array, at: number, j: number): number {
  return j < 4 ? bytes[at + j + 4] & 63 : (bytes[at + j + 4] >> 4) | ((bytes[at + j] >> 6) << 4);
}

/**
 * `y = d·scale·q − dmin·min` in sub-blocks of 32; bytes: d, dmin, 12 of scales and minima, 128 of nibbles:
 * of each 32 bytes the low nibbles are one sub-block, the high nibbles the next.
 */
function decodeQ4_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const dmin = half(bytes, at + 2);
  for (let j = 0; j < 8; j++) {
    const scale = d * kScale(bytes, at + 4, j);
    const min = dmin * kMin(bytes, at + 4, j);
    const quants = at + 16 + 32 * (j >> 1);
    const shift = 4 * (j & 1);
    for (let i = 0; i < 32; i++) {
      out[to + 32 * j + i] = scale * ((bytes[quants + i] >> shift) & 15) - min;
    }
  }
}

/** As Q4_K with 32 more bytes before the nibbles: bit `j` of byte `i` is the fifth bit of element `32j + i`. */
function decodeQ5_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const dmin = half(bytes, at + 2);
  const high = at + 16;
  for (let j = 0; j < 8; j++) {
    const scale = d * kScale(bytes, at + 4, j);
    const min = dmin * kMin(bytes, at + 4, j);
    const quants = at + 48 + 32 * (j >> 1);
    const shift = 4 * (j & 1);
    for (let i = 0; i < 32; i++) {
      const q = ((bytes[quants + i] >> shift) & 15) | (((bytes[high + i] >> j) & 1) << 4);
      out[to + 32 * j + i] = scale * q - min;
    }
  }
}

/**
 * Tells the 256 elements of a block of Q6_K, 0 … 63 each: 128 bytes of low nibbles, 64 of upper bit pairs. Each half of the
 * block (128 elements) is four runs of 32: runs 0 and 1 are low nibbles of its 64 bytes, runs 2 and 3 the high nibbles;
 * bits `2r` of the pair bytes belong to run `r`.
 */
export function sixBits(
  bytes: Uint8Array,
  at: number,
  tell: (element: number, q: number) => void,
): void {
  for (let part = 0; part < 2; part++) {
    for (let run = 0; run < 4; run++) {
      const low = at + 64 * part + 32 * (run & 1);
      const high = at + 128 + 32 * part;
      const shift = 4 * (run >> 1);
      for (let i = 0; i < 32; i++) {
        const upper = ((bytes[high + i] >> (2 * run)) & 3) << 4;
        tell(128 * part + 32 * run + i, ((bytes[low + i] >> shift) & 15) | upper);
      }
    }
  }
}

/** `y = d·scale·(q − 32)`, an int8 scale for each 16 elements; bytes: 192 of quants, 16 scales, d. */
function decodeQ6_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at + 208);
  sixBits(bytes, at, (element, q) => {
    out[to + element] = d * int8(bytes[at + 192 + (element >> 4)]) * (q - 32);
  });
}

/** Twice the numbers that 4 bits of MXFP4 stand for: one bit of sign, two of exponent, one of fraction. */
const MXFP4_DOUBLES = [0, 1, 2, 3, 4, 6, 8, 12];

/** Twice the number that 4 bits of MXFP4 stand for, a whole one. */
export function mxfp4Code(bits: number): number {
  return bits & 8 ? -MXFP4_DOUBLES[bits & 7] : MXFP4_DOUBLES[bits];
}

/** `y = 2^(e − 127)·v`; bytes: e, then pairs as in Q4_0 (OCP Microscaling Formats 1.0). */
function decodeMXFP4(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const scale = 2 ** (bytes[at] - 128);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 1 + i];
    out[to + i] = scale * mxfp4Code(pair & 15);
    out[to + 16 + i] = scale * mxfp4Code(pair >> 4);
  }
}

function format(
  blockElements: number,
  blockBytes: number,
  decodeBlock: (bytes: Uint8Array, at: number, out: Float32Array, to: number) => void,
): BlockFormat {
  return {
    blockElements,
    blockBytes,
    decode(bytes, out, outOffset) {
      const blocks = bytes.byteLength / blockBytes;
      for (let block = 0; block < blocks; block++) {
        decodeBlock(bytes, block * blockBytes, out, outOffset + block * blockElements);
      }
    },
  };
}

/** Elements and bytes a block, and its decoder. */
export const BLOCK_FORMATS: Readonly<Record<BlockType, BlockFormat>> = {
  Q8_0: format(32, 34, decodeQ8_0),
  Q4_0: format(32, 18, decodeQ4_0),
  Q4_1: format(32, 20, decodeQ4_1),
  Q5_0: format(32, 22, decodeQ5_0),
  Q5_1: format(32, 24, decodeQ5_1),
  Q4_K: format(256, 144, decodeQ4_K),
  Q5_K: format(256, 176, decodeQ5_K),
  Q6_K: format(256, 210, decodeQ6_K),
  MXFP4: format(32, 17, decodeMXFP4),
};
