/**
 * Block decoders against blocks encoded here bit by bit from known scales and quants: the encoders place each
 * bit by the format's layout, the expectation is the type's formula on the quants themselves.
 */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BLOCK_FORMATS, type BlockType } from "../../src/checkpoint/gguf-blocks.js";
import { storedCodes, storedGrid } from "../../src/checkpoint/gguf-codes.js";

/** Halves used as scales: bits and value. */
const HALVES: readonly (readonly [number, number])[] = [
  [0x3c00, 1],
  [0x3800, 0.5],
  [0xb400, -0.25],
  [0x4248, 3.140625],
  [0x0001, 2 ** -24],
  [0x0000, 0],
  [0x2e66, 0.0999755859375],
];

const scale = fc.constantFrom(...HALVES);
const quants = (count: number, bits: number): fc.Arbitrary<number[]> =>
  fc.array(fc.nat({ max: 2 ** bits - 1 }), { minLength: count, maxLength: count });

function putHalf(bytes: Uint8Array, at: number, bits: number): void {
  new DataView(bytes.buffer).setUint16(at, bits, true);
}

/** Sets one bit of a byte. */
function putBit(bytes: Uint8Array, at: number, bit: number, value: number): void {
  bytes[at] |= (value & 1) << bit;
}

/** Decodes two copies of the block, to see that blocks follow one another and the output offset counts. */
function decodeTwice(type: BlockType, block: Uint8Array): Float32Array {
  const { blockElements, blockBytes, decode } = BLOCK_FORMATS[type];
  expect(block.length).toBe(blockBytes);
  const bytes = new Uint8Array(2 * blockBytes);
  bytes.set(block);
  bytes.set(block, blockBytes);
  const out = new Float32Array(2 * blockElements + 3).fill(NaN);
  decode(bytes, out, 3);
  expect([...out.subarray(3, 3 + blockElements)]).toEqual([...out.subarray(3 + blockElements)]);
  expectSameNumbers(type, bytes, out.subarray(3));
  return out.subarray(3, 3 + blockElements);
}

/** The codes of the same bytes, with their scales and offsets, stand for the very numbers. */
function expectSameNumbers(type: BlockType, bytes: Uint8Array, values: Float32Array): void {
  const tensor = { name: "t", shape: [1, values.length], type, bytes: bytes.length, file: "f" };
  const { codes, scale, offset, group, bits } = storedCodes(tensor, bytes);
  expect(storedGrid(type)).toEqual({ bits, group, offset: offset !== undefined });
  const [low, high] = offset ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
  expect(codes.every((code) => code >= low && code <= high)).toBe(true);
  expectValues(
    values,
    Array.from(codes, (code, i) => {
      const of = Math.floor(i / group);
      return scale[of] * code + (offset?.[of] ?? 0);
    }),
  );
}

function expectValues(actual: Float32Array, expected: number[]): void {
  // Compared with ==, so that -0 equals 0.
  const wrong = expected.findIndex((value, i) => Math.fround(value) !== actual[i]);
  if (wrong >= 0) expect([wrong, actual[wrong]]).toEqual([wrong, Math.fround(expected[wrong])]);
  expect(actual.length).toBe(expected.length);
}

/** Nibble pairs of the 32-element types: element i low in byte i, element 16 + i high in byte i. */
function putNibbles(bytes: Uint8Array, at: number, q: number[]): void {
  for (let i = 0; i < 32; i++) {
    for (let bit = 0; bit < 4; bit++) {
      putBit(bytes, at + (i % 16), bit + (i < 16 ? 0 : 4), q[i] >> bit);
    }
  }
}

function putFifthBits(bytes: Uint8Array, at: number, q: number[]): void {
  for (let i = 0; i < 32; i++) putBit(bytes, at + Math.floor(i / 8), i % 8, q[i] >> 4);
}

describe("blocks of 32", () => {
  it("decodes Q8_0", () => {
    fc.assert(
      fc.property(scale, quants(32, 8), ([bits, d], q) => {
        const block = new Uint8Array(34);
        putHalf(block, 0, bits);
        for (let i = 0; i < 32; i++) block[2 + i] = q[i];
        expectValues(
          decodeTwice("Q8_0", block),
          q.map((byte) => d * (byte < 128 ? byte : byte - 256)),
        );
      }),
    );
  });

  it("decodes Q4_0", () => {
    fc.assert(
      fc.property(scale, quants(32, 4), ([bits, d], q) => {
        const block = new Uint8Array(18);
        putHalf(block, 0, bits);
        putNibbles(block, 2, q);
        expectValues(
          decodeTwice("Q4_0", block),
          q.map((value) => d * (value - 8)),
        );
      }),
    );
  });

  it("decodes Q4_1", () => {
    fc.assert(
      fc.property(scale, scale, quants(32, 4), ([bits, d], [minBits, m], q) => {
        const block = new Uint8Array(20);
        putHalf(block, 0, bits);
        putHalf(block, 2, minBits);
        putNibbles(block, 4, q);
        expectValues(
          decodeTwice("Q4_1", block),
          q.map((value) => d * value + m),
        );
      }),
    );
  });

  it("decodes Q5_0", () => {
    fc.assert(
      fc.property(scale, quants(32, 5), ([bits, d], q) => {
        const block = new Uint8Array(22);
        putHalf(block, 0, bits);
        putFifthBits(block, 2, q);
        putNibbles(block, 6, q);
        expectValues(
          decodeTwice("Q5_0", block),
          q.map((value) => d * (value - 16)),
        );
      }),
    );
  });

  it("decodes Q5_1", () => {
    fc.assert(
      fc.property(scale, scale, quants(32, 5), ([bits, d], [minBits, m], q) => {
        const block = new Uint8Array(24);
        putHalf(block, 0, bits);
        putHalf(block, 2, minBits);
        putFifthBits(block, 4, q);
        putNibbles(block, 8, q);
        expectValues(
          decodeTwice("Q5_1", block),
          q.map((value) => d * value + m),
        );
      }),
    );
  });
});

/**
 * The 12 bytes of 6-bit scales and minima: for sub-blocks 0–3 in the low six bits of bytes 0–3 and 4–7; for
 * sub-blocks 4–7 the low four bits share bytes 8–11, the upper two are the top bits of bytes 0–3 and 4–7.
 */
function putScales(bytes: Uint8Array, at: number, scales: number[], mins: number[]): void {
  for (let j = 0; j < 4; j++) {
    for (let bit = 0; bit < 6; bit++) {
      putBit(bytes, at + j, bit, scales[j] >> bit);
      putBit(bytes, at + 4 + j, bit, mins[j] >> bit);
    }
    for (let bit = 0; bit < 4; bit++) {
      putBit(bytes, at + 8 + j, bit, scales[4 + j] >> bit);
      putBit(bytes, at + 8 + j, 4 + bit, mins[4 + j] >> bit);
    }
    for (let bit = 0; bit < 2; bit++) {
      putBit(bytes, at + j, 6 + bit, scales[4 + j] >> (4 + bit));
      putBit(bytes, at + 4 + j, 6 + bit, mins[4 + j] >> (4 + bit));
    }
  }
}

/** Nibbles of Q4_K and Q5_K: elements 64p + i low, and 64p + 32 + i high, in byte 32p + i. */
function putSuperNibbles(bytes: Uint8Array, at: number, q: number[]): void {
  for (let e = 0; e < 256; e++) {
    const byte = 32 * Math.floor(e / 64) + (e % 32);
    for (let bit = 0; bit < 4; bit++) {
      putBit(bytes, at + byte, bit + (e % 64 < 32 ? 0 : 4), q[e] >> bit);
    }
  }
}

describe("blocks of 256", () => {
  it("decodes Q4_K", () => {
    fc.assert(
      fc.property(
        scale,
        scale,
        quants(8, 6),
        quants(8, 6),
        quants(256, 4),
        (d, dmin, sc, mn, q) => {
          const block = new Uint8Array(144);
          putHalf(block, 0, d[0]);
          putHalf(block, 2, dmin[0]);
          putScales(block, 4, sc, mn);
          putSuperNibbles(block, 16, q);
          expectValues(
            decodeTwice("Q4_K", block),
            q.map((value, e) => d[1] * sc[e >> 5] * value - dmin[1] * mn[e >> 5]),
          );
        },
      ),
    );
  });

  it("decodes Q5_K", () => {
    fc.assert(
      fc.property(
        scale,
        scale,
        quants(8, 6),
        quants(8, 6),
        quants(256, 5),
        (d, dmin, sc, mn, q) => {
          const block = new Uint8Array(176);
          putHalf(block, 0, d[0]);
          putHalf(block, 2, dmin[0]);
          putScales(block, 4, sc, mn);
          // Fifth bits: of elements i, 32 + i, 64 + i, … in bits 0, 1, 2, … of byte i.
          for (let e = 0; e < 256; e++) putBit(block, 16 + (e % 32), e >> 5, q[e] >> 4);
          putSuperNibbles(block, 48, q);
          expectValues(
            decodeTwice("Q5_K", block),
            q.map((value, e) => d[1] * sc[e >> 5] * value - dmin[1] * mn[e >> 5]),
          );
        },
      ),
    );
  });

  it("decodes Q6_K", () => {
    fc.assert(
      fc.property(scale, quants(16, 8), quants(256, 6), (d, sc, q) => {
        const block = new Uint8Array(210);
        for (let e = 0; e < 256; e++) {
          // Half h, run r of 32, place i: low bits in the nibbles of 64 bytes a half, runs 0 and 1 low,
          // 2 and 3 high; upper bits in pair r of byte i of 32 bytes a half.
          const h = e >> 7;
          const r = (e >> 5) & 3;
          const i = e & 31;
          for (let bit = 0; bit < 4; bit++) {
            putBit(block, 64 * h + 32 * (r % 2) + i, bit + (r < 2 ? 0 : 4), q[e] >> bit);
          }
          for (let bit = 0; bit < 2; bit++) {
            putBit(block, 128 + 32 * h + i, 2 * r + bit, q[e] >> (4 + bit));
          }
        }
        for (let j = 0; j < 16; j++) block[192 + j] = sc[j];
        putHalf(block, 208, d[0]);
        expectValues(
          decodeTwice("Q6_K", block),
          q.map((value, e) => {
            const byte = sc[e >> 4];
            return d[1] * (byte < 128 ? byte : byte - 256) * (value - 32);
          }),
        );
      }),
    );
  });
});
