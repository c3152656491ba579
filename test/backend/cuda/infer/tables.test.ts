/** The tables of a pass: every row once, tasks that share no page, blocks that cover the rows. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cut } from "../../../../src/backend/cuda/infer/executor.js";
import { DECODE_ROWS, PASS_ROWS } from "../../../../src/backend/cuda/infer/pass.js";
import {
  decodeBucket,
  decodeLayout,
  decodeTables,
  prefillTables,
  type Piece,
} from "../../../../src/backend/cuda/infer/tables.js";
import type { Chunk } from "../../../../src/backend/contract/inference.js";

/** Chunks of given starts and lengths, on pages of their own, numbered apart. */
function chunksOf(sizes: readonly (readonly [number, number])[]): Chunk[] {
  let page = 1000;
  let token = 0;
  return sizes.map(([start, length]) => ({
    tokens: Int32Array.from({ length }, () => token++),
    start,
    pages: Int32Array.from({ length: Math.ceil((start + length) / 64) + 1 }, () => --page),
    logits: "last",
  }));
}

const sizes = fc.array(
  fc.tuple(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 2, max: 700 })),
  {
    minLength: 1,
    maxLength: 6,
  },
);

describe("prefill", () => {
  it("lists every row once, in tasks and blocks that keep to pages", () => {
    fc.assert(
      fc.property(sizes, (given) => {
        for (const pieces of cut(chunksOf(given)).prefill) {
          const { layout, words } = prefillTables(pieces, [0]);
          expect(layout.rows).toBeLessThanOrEqual(PASS_ROWS);
          const expected = pieces.flatMap(({ chunk, from, rows }) =>
            Array.from({ length: rows }, (_, t) => {
              const position = chunk.start + from + t;
              return [
                chunk.tokens[from + t],
                position,
                chunk.pages[Math.floor(position / 64)],
                position % 64,
              ];
            }),
          );
          const listed = expected.map((_, row) =>
            [layout.ids, layout.positions, layout.pageOf, layout.slotOf].map(
              (part) => words[part + row],
            ),
          );
          expect(listed).toEqual(expected);
          // Tasks follow one another, and no page has rows of two.
          let row = 0;
          const taskOfPage = new Map<number, number>();
          for (let task = 0; task < layout.taskCount; task++) {
            const [first, count] = words.subarray(
              layout.tasks + 2 * task,
              layout.tasks + 2 * task + 2,
            );
            expect(first).toBe(row);
            expect(count > 0 && count <= 64).toBe(true);
            for (; row < first + count; row++) {
              const page = words[layout.pageOf + row];
              expect(taskOfPage.get(page) ?? task).toBe(task);
              taskOfPage.set(page, task);
            }
          }
          expect(row).toBe(layout.rows);
          // Blocks cover the rows once; one that begins within a page ends with it.
          const covered = new Int32Array(layout.rows);
          for (let i = 0; i < layout.attentionCount; i++) {
            const at = layout.attention + 4 * i;
            const [first, count, position, pages] = words.subarray(at, at + 4);
            expect(count > 0 && count <= 128).toBe(true);
            if (position % 64 !== 0) expect((position % 64) + count).toBeLessThanOrEqual(64);
            for (let r = first; r < first + count; r++) {
              covered[r]++;
              expect(words[layout.positions + r]).toBe(position + r - first);
              const page = Math.floor((position + r - first) / 64);
              expect(words[layout.pages + pages + page]).toBe(words[layout.pageOf + r]);
            }
          }
          expect(covered.every((count) => count === 1)).toBe(true);
        }
      }),
      { numRuns: 20 },
    );
  });
});

it("exact: every row is a sequence that ends with it", () => {
  const [pieces] = cut(
    chunksOf([
      [30, 50],
      [0, 70],
    ]),
  ).prefill;
  const { layout, words } = prefillTables(pieces, [3], true);
  expect(layout.attentionCount).toBe(120);
  for (let row = 0; row < 120; row++) {
    const at = layout.attention + 3 * row;
    const [own, length, pages] = words.subarray(at, at + 3);
    expect([own, length]).toEqual([row, words[layout.positions + row] + 1]);
    expect(words[layout.pages + pages + ((length - 1) >> 6)]).toBe(words[layout.pageOf + row]);
  }
});

describe("decoding", () => {
  it.each([1, 3, 8, 9, 17, 128])("%i rows, padded with rows that write nothing", (count) => {
    const chunks = chunksOf(Array.from({ length: count }, (_, i) => [70 * i, 1] as const));
    const pieces: Piece[] = chunks.map((chunk, index) => ({ index, chunk, from: 0, rows: 1 }));
    const { layout, words } = decodeTables(pieces);
    expect(layout.rows).toBe(decodeBucket(count));
    const written: number[] = [];
    for (let task = 0; task < layout.taskCount; task++) {
      const [first, rows] = words.subarray(layout.tasks + 2 * task, layout.tasks + 2 * task + 2);
      for (let row = first; row < first + rows; row++) written.push(row);
    }
    expect(written).toEqual(Array.from({ length: count }, (_, i) => i));
    for (let row = 0; row < layout.rows; row++) {
      const at = layout.attention + 3 * row;
      const [own, length, pages] = words.subarray(at, at + 3);
      expect(own).toBe(row);
      expect(length).toBe(row < count ? 70 * row + 1 : 0);
      if (row < count)
        expect(words[layout.pages + pages + Math.floor((length - 1) / 64)]).toBe(
          words[layout.pageOf + row],
        );
    }
    // What a graph finds does not move with the length of the page list.
    const { pages, words: total, ...fixed } = decodeLayout(layout.rows, 5);
    expect(layout).toMatchObject(fixed);
    expect(total).toBe(pages + 5);
  });

  it("buckets are few and never much larger than what they hold", () => {
    const buckets = new Set(Array.from({ length: DECODE_ROWS }, (_, i) => decodeBucket(i + 1)));
    expect(buckets.size).toBeLessThanOrEqual(24);
    for (let n = 1; n <= DECODE_ROWS; n++) {
      expect(decodeBucket(n)).toBeGreaterThanOrEqual(n);
      expect(decodeBucket(n)).toBeLessThan(n + 8);
    }
  });
});

it("a step is cut into passes: single tokens, and the rest by rows", () => {
  const many = chunksOf([
    ...Array<[number, number]>(130).fill([5, 1]),
    [0, PASS_ROWS + 1],
    [0, 10],
  ]);
  const { decoding, prefill } = cut(many);
  expect(decoding.map((pieces) => pieces.length)).toEqual([128, 2]);
  expect(prefill.map((pieces) => pieces.map(({ rows }) => rows))).toEqual([[PASS_ROWS], [1, 10]]);
});
