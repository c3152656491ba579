/** Native memory larger than an ArrayBuffer may be: seen in pieces, computed with in one. */
import { constants } from "node:buffer";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { copyArrays, NativeMapping, PIECE_BYTES } from "../../src/backend/cpu/mapping.js";

const WITHOUT = process.env.PLANISH_NO_NATIVE === "1";

describe.runIf(WITHOUT)("PLANISH_NO_NATIVE=1: a machine without a compiler", () => {
  test.skip("native memory", () => {});
});

describe.skipIf(WITHOUT)("native memory in pieces", () => {
  const bytes = 2 * PIECE_BYTES + 4096;
  function withMapping(run: (mapping: NativeMapping) => void): void {
    const library = loadNativeLibrary();
    const pointer = library.allocate(bytes);
    run(new NativeMapping(library, pointer, bytes));
    library.release(pointer, bytes);
  }

  test("a range is one array, or one for each piece that it touches", () => {
    withMapping((mapping) => {
      const lengths = (offset: number, length: number) =>
        Array.from(mapping.arrays("f32", offset, length), (array) => array.length);
      expect(lengths(0, 0)).toEqual([]);
      expect(lengths(64, 10)).toEqual([10]);
      expect(lengths(PIECE_BYTES - 8, 2)).toEqual([2]);
      expect(lengths(PIECE_BYTES - 8, 10)).toEqual([2, 8]);
      expect(lengths(PIECE_BYTES - 4, PIECE_BYTES / 4 + 2)).toEqual([1, PIECE_BYTES / 4, 1]);
      expect(lengths(0, bytes / 4)).toEqual([PIECE_BYTES / 4, PIECE_BYTES / 4, 1024]);
    });
  });

  test("what is written across a boundary is read across it", () => {
    withMapping((mapping) => {
      const at = PIECE_BYTES - 6;
      copyArrays([Int8Array.from({ length: 12 }, (_, i) => i)], mapping.arrays("i8", at, 12));
      copyArrays(mapping.arrays("i8", at + 1, 10), mapping.arrays("i8", 2 * PIECE_BYTES - 3, 10));
      const out = new Int8Array(10);
      copyArrays(mapping.arrays("i8", 2 * PIECE_BYTES - 3, 10), [out]);
      expect([...out]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    });
  });

  test("ranges outside the block are refused", () => {
    withMapping((mapping) => {
      for (const [offset, length] of [
        [bytes, 1],
        [-4, 1],
        [2, 1],
        [0, bytes],
      ])
        expect(() => [...mapping.arrays("f32", offset, length)]).toThrow(RangeError);
    });
  });

  test("a view that the runtime would end the process for is refused", () => {
    const library = loadNativeLibrary();
    expect(() => library.view(0n, constants.MAX_LENGTH + 1)).toThrow(RangeError);
  });

  test("an arena's chunk beyond the largest ArrayBuffer", () => {
    using backend = createCpuBackend();
    using arena = backend.arena();
    const length = 2 ** 30 + 100;
    const first = arena.alloc("f32", length);
    const second = arena.alloc("f32", 8);
    backend.write(first, Float32Array.of(1, 2, 3), length - 3);
    backend.fill(second, 7);
    expect([...backend.read(first, length - 4)]).toEqual([0, 1, 2, 3]);
    backend.kernels.scale({ x: second, length: 8, alpha: 2, out: second, accumulate: false });
    expect([...backend.read(second)]).toEqual(new Array(8).fill(14));
  });
});
