/** Arrays as bytes, in pieces that a Uint8Array can be. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { bytePieces, MOST_BYTES_AT_ONCE } from "../../src/common/bytes.js";

test("the pieces are the array's bytes, none longer than asked for", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 64 }),
      fc.nat({ max: 8 }),
      fc.integer({ min: 1, max: 70 }),
      (bytes, skipped, most) => {
        const view = bytes.subarray(Math.min(skipped, bytes.length));
        const pieces = [...bytePieces(view, most)];
        expect(pieces.flatMap((piece) => [...piece])).toEqual([...view]);
        expect(Math.max(0, ...pieces.map((piece) => piece.length))).toBeLessThanOrEqual(most);
      },
    ),
  );
});

test("an array of more bytes than a Uint8Array holds, in place", () => {
  // Never touched, so its pages cost nothing.
  const floats = new Float32Array(2 ** 30 + 4);
  expect(Array.from(bytePieces(floats), (piece) => piece.length)).toEqual([
    ...new Array<number>(4).fill(MOST_BYTES_AT_ONCE),
    16,
  ]);
  floats[2 ** 30 + 1] = 1;
  const last = [...bytePieces(floats)].at(-1);
  expect(last && [...last.subarray(4, 8)]).toEqual([0, 0, 128, 63]);
});
