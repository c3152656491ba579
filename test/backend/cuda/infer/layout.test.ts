/** The orders that the CUDA engine's kernels read, restated from the PTX manual's fragments and undone. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  codeBytes,
  codeOffset,
  featureTiles,
  orderFeatures,
  packedBytes,
  packWeights,
  paddedHalves,
  pageLayout,
  roundUp,
  siteGeometry,
  siteSharedBytes,
} from "../../../../src/backend/cuda/infer/layout.js";

/** What is multiplied for 16 rows and 32 columns: register i of a lane holds four columns of one row (PTX, m16n8k32). */
function fragment(lane: number, register: number): { row: number; column: number } {
  return { row: (lane >> 2) + 8 * (register % 2), column: 4 * (lane % 4) + 16 * (register >> 1) };
}

/** The 256 rows of a tile as the matrix units see them: [warpgroup][tile of 64][row], from packed bytes. */
function unpack(packed: Uint8Array, tile: number, columns: number, bits: 4 | 8): Int8Array[] {
  const blocks = roundUp(columns, 128) / 128;
  const rows = Array.from({ length: 256 }, () => new Int8Array(blocks * 128));
  for (let block = 0; block < blocks; block++)
    for (let group = 0; group < 4; group++)
      for (let step = 0; step < 4; step++)
        for (let thread = 0; thread < 128; thread++)
          for (let register = 0; register < 4; register++)
            for (let byte = 0; byte < 4; byte++) {
              const half = step >> 1;
              const chunk = (((tile * blocks + block) * 4 + group) * 2 + half) * 128 * 4 * bits;
              const own = chunk + thread * 4 * bits;
              const value =
                bits === 8
                  ? packed[own + (step % 2) * 16 + register * 4 + byte]
                  : ((packed[own + (step % 2) * 8 + (register >> 1) * 4 + byte] >>
                      (4 * (register % 2))) &
                      15) <<
                    4;
              const { row, column } = fragment(thread % 32, register);
              rows[group * 64 + (thread >> 5) * 16 + row][block * 128 + step * 32 + column + byte] =
                bits === 8 ? (value << 24) >> 24 : ((value << 24) >> 24) / 16;
            }
  return rows;
}

describe("packed weights", () => {
  it.each([
    { rows: 300, columns: 200, bits: 4, gated: false },
    { rows: 256, columns: 128, bits: 8, gated: false },
    { rows: 400, columns: 130, bits: 4, gated: true },
  ] as const)("%o hold each row of the matrix once", ({ rows, columns, bits, gated }) => {
    const limit = bits === 4 ? 8 : 128;
    // The first columns name the row, so that rows are found wherever they lie; 0 … limit − 1 in the base of limit.
    const codes = Int8Array.from({ length: rows * columns }, (_, i) => {
      const row = Math.floor(i / columns);
      const column = i % columns;
      return column < 4
        ? Math.floor((row + 1) / limit ** column) % limit
        : ((i * 7919) % (2 * limit)) - limit;
    });
    const order = { rows, gated };
    const packed = packWeights(codes, columns, order, bits);
    expect(packed.length).toBe(packedBytes(order, columns, bits));
    const seen = new Set<number>();
    for (let tile = 0; tile < featureTiles(order); tile++)
      unpack(packed, tile, columns, bits).forEach((values, place) => {
        const id = [0, 1, 2, 3].reduce((sum, c) => sum + values[c] * limit ** c, 0);
        if (id === 0) {
          expect(values.every((v) => v === 0)).toBe(true);
          return;
        }
        const row = id - 1;
        seen.add(row);
        expect(values.subarray(0, columns)).toEqual(
          codes.subarray(row * columns, (row + 1) * columns),
        );
        expect(values.subarray(columns).every((v) => v === 0)).toBe(true);
        // Gate and up of a feature are the same row of a warpgroup's two tiles of 64.
        if (gated) expect((place >> 6) % 2).toBe(row < rows / 2 ? 0 : 1);
      });
    expect(seen.size).toBe(rows);
  });

  it("list scales by tile: gate's 128, then up's", () => {
    const values = Array.from({ length: 600 }, (_, i) => i + 1);
    const ordered = orderFeatures(values, { rows: 600, gated: true }, 0);
    expect(ordered.length).toBe(3 * 256);
    expect([
      ordered[0],
      ordered[127],
      ordered[128],
      ordered[256],
      ordered[2 * 256 + 43],
      ordered[2 * 256 + 44],
    ]).toEqual([1, 128, 301, 129, 300, 0]);
    expect(orderFeatures([1, 2], { rows: 2, gated: false }, 9).subarray(0, 3)).toEqual(
      Float32Array.of(1, 2, 9),
    );
  });
});

describe("codes of activations", () => {
  it("have a place of their own each, 16 columns together", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 300 }),
        (eights, columns) => {
          const capacity = 8 * eights;
          const places = new Set<number>();
          for (let row = 0; row < capacity; row++)
            for (let column = 0; column < columns; column++) {
              const at = codeOffset(capacity, row, column);
              expect(at).toBe(codeOffset(capacity, row, column - (column % 16)) + (column % 16));
              places.add(at);
            }
          expect(places.size).toBe(capacity * columns);
          expect(Math.max(...places)).toBeLessThan(codeBytes(capacity, columns));
        },
      ),
      { numRuns: 30 },
    );
  });

  it("follow wgmma's 128-byte swizzle: bits 4 to 6 of an address are exclusive-ored with bits 7 to 9", () => {
    for (let row = 0; row < 16; row++)
      for (let column = 0; column < 256; column += 16) {
        const plain = (Math.floor(column / 128) * 16 + row) * 128 + (column % 128);
        expect(codeOffset(16, row, column)).toBe(plain ^ (((plain >> 7) & 7) << 4));
      }
  });
});

it("matrices are padded with zeros, halves nearest even", () => {
  const padded = paddedHalves([1, 0.5, -2, 65504], 2, 16);
  expect(padded.length).toBe(16 * 24);
  expect([padded[0], padded[1], padded[24], padded[25]]).toEqual([0x3c00, 0x3800, 0xc000, 0x7bff]);
  expect(padded.filter((v) => v !== 0).length).toBe(4);
});

it("a 7B model's largest site fits a block of threads and its shared memory", () => {
  const shape = { left: 86, right: 128, hasLeft: true, hasRight: true };
  expect(siteGeometry(shape)).toEqual({ rows: 96, columns: 128, height: 32, threads: 384 });
  expect(siteSharedBytes(shape, true)).toBeLessThan(227 * 1024);
});

it("a page of 4-bit codes takes half a byte per element and 12 bytes per token and head", () => {
  expect(pageLayout(128, 4).bytes).toBe(64 * (128 + 12));
  expect(pageLayout(128, 16).bytes).toBe(64 * 128 * 4);
});
