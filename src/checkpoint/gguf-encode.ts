/**
 * Codes into GGUF's blocks: the inverse of `gguf-codes.ts`. A block's scales come first, by `putSteps` or whoever fits them
 * in the block's own form (`quantize/grids/block-steps.ts`); codes are laid around them.
 */
import { floatToHalfBits } from "../common/half.js";
import { storedGrid } from "./gguf-codes.js";
import { BLOCK_FORMATS, type WrittenType } from "./gguf-blocks.js";

/** Types with one scale, and perhaps an offset, for each block of 32, both halves. */
export type PlainBlockType = "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q8_0";

export function putHalf(bytes: Uint8Array, at: number, value: number): void {
  const bits = floatToHalfBits(value);
  bytes[at] = bits & 255;
  bytes[at + 1] = bits >> 8;
}

/** 16 pairs from codes that are 0 or more: low nibbles are elements 0–15, high nibbles 16–31. Their fifth bits. */
function putPairs(bytes: Uint8Array, at: number, codes: Int8Array, from: number, middle: number) {
  let high = 0;
  for (let i = 0; i < 16; i++) {
    const [low, upper] = [codes[from + i] + middle, codes[from + 16 + i] + middle];
    bytes[at + i] = (low & 15) | ((upper & 15) << 4);
    high |= ((low >> 4) << i) | ((upper >> 4) << (i + 16));
  }
  return high;
}

function putFifthBits(bytes: Uint8Array, at: number, bits: number): void {
  for (let i = 0; i < 4; i++) bytes[at + i] = (bits >>> (8 * i)) & 255;
}

/** Nibbles of Q4_K and Q5_K: of each 32 bytes the low ones are a group, the high ones the next; fifth bits at `high`. */
function putSuperBlock(
  bytes: Uint8Array,
  nibbles: number,
  codes: Int8Array,
  from: number,
  high?: number,
): void {
  for (let j = 0; j < 8; j++)
    for (let i = 0; i < 32; i++) {
      const code = codes[from + 32 * j + i];
      bytes[nibbles + 32 * (j >> 1) + i] |= (code & 15) << (4 * (j & 1));
      if (high !== undefined) bytes[high + i] |= (code >> 4) << j;
    }
}

/** See `sixBits`. */
function putSixBits(bytes: Uint8Array, at: number, codes: Int8Array, from: number): void {
  for (let part = 0; part < 2; part++)
    for (let run = 0; run < 4; run++)
      for (let i = 0; i < 32; i++) {
        const code = codes[from + 128 * part + 32 * run + i] + 32;
        bytes[at + 64 * part + 32 * (run & 1) + i] |= (code & 15) << (4 * (run >> 1));
        bytes[at + 128 + 32 * part + i] |= (code >> 4) << (2 * run);
      }
}

type PutCodes = (bytes: Uint8Array, at: number, codes: Int8Array, from: number) => void;

const PUT: Readonly<Record<WrittenType, PutCodes>> = {
  Q8_0: (bytes, at, codes, from) => {
    for (let i = 0; i < 32; i++) bytes[at + 2 + i] = codes[from + i] & 255;
  },
  Q4_0: (bytes, at, codes, from) => void putPairs(bytes, at + 2, codes, from, 8),
  Q4_1: (bytes, at, codes, from) => void putPairs(bytes, at + 4, codes, from, 0),
  Q5_0: (bytes, at, codes, from) =>
    putFifthBits(bytes, at + 2, putPairs(bytes, at + 6, codes, from, 16)),
  Q5_1: (bytes, at, codes, from) =>
    putFifthBits(bytes, at + 4, putPairs(bytes, at + 8, codes, from, 0)),
  Q4_K: (bytes, at, codes, from) => putSuperBlock(bytes, at + 16, codes, from),
  Q5_K: (bytes, at, codes, from) => putSuperBlock(bytes, at + 48, codes, from, at + 16),
  Q6_K: (bytes, at, codes, from) => putSixBits(bytes, at, codes, from),
};

/** Lays codes, in the range that the type's grid has, into blocks whose scales stand already and whose codes are 0 bytes. */
export function putCodes(type: WrittenType, bytes: Uint8Array, codes: Int8Array): void {
  const { blockElements, blockBytes } = BLOCK_FORMATS[type];
  for (let block = 0, at = 0; at < bytes.byteLength; block++, at += blockBytes)
    PUT[type](bytes, at, codes, block * blockElements);
}

/** The 12 bytes of 6-bit scales and minima of Q4_K and Q5_K, which `kScale` and `kMin` read. */
export function putKScales(
  bytes: Uint8Array,
  at: number,
  scales: ArrayLike<number>,
  minima: ArrayLike<number>,
): void {
  for (let j = 0; j < 4; j++) {
    bytes[at + j] = scales[j] | ((scales[j + 4] >> 4) << 6);
    bytes[at + j + 4] = minima[j] | ((minima[j + 4] >> 4) << 6);
    bytes[at + j + 8] = (scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4);
  }
}

/** Blocks with these scales and offsets (rounded to halves), and no codes yet. */
export function putSteps(
  type: PlainBlockType,
  scale: ArrayLike<number>,
  offset?: ArrayLike<number>,
): Uint8Array {
  const { blockBytes } = BLOCK_FORMATS[type];
  const bytes = new Uint8Array(scale.length * blockBytes);
  const hasOffset = storedGrid(type)?.offset === true;
  for (let block = 0; block < scale.length; block++) {
    putHalf(bytes, block * blockBytes, scale[block]);
    if (hasOffset) putHalf(bytes, block * blockBytes + 2, offset?.[block] ?? 0);
  }
  return bytes;
}
