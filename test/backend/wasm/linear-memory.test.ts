/** Blocks of a WebAssembly memory: none overlaps another, all begin as zeros, and what comes back is used again. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LinearMemory, PAGE_BYTES } from "../../../src/backend/wasm/linear-memory.js";
import { Wasm } from "../../../src/backend/wasm/webassembly.js";

const PAGES = 40;
const memoryOf = (pages: number) =>
  new Wasm.Memory({ initial: 1, maximum: 1 + pages, shared: true });

describe("linear memory", () => {
  test("taken and given back in any order: apart, zero-filled, counted", () => {
    const size = fc.integer({ min: 1, max: 6 * PAGE_BYTES });
    const command = fc.oneof(fc.record({ take: size }), fc.record({ give: fc.nat({ max: 20 }) }));
    fc.assert(
      fc.property(fc.array(command, { maxLength: 60 }), (commands) => {
        const memory = memoryOf(PAGES);
        const blocks = new LinearMemory(memory);
        const live: { address: number; bytes: number }[] = [];
        for (const each of commands) {
          if ("take" in each) {
            const address = blocks.take(each.take);
            if (address === undefined) continue;
            const bytes = new Uint8Array(memory.buffer, address, each.take);
            expect(bytes.every((byte) => byte === 0)).toBe(true);
            bytes.fill(1 + live.length);
            live.push({ address, bytes: each.take });
          } else if (live.length > 0) {
            const [{ address, bytes }] = live.splice(each.give % live.length, 1);
            blocks.give(address, bytes);
          }
          const sorted = [...live].sort((a, b) => a.address - b.address);
          for (let i = 1; i < sorted.length; i++)
            expect(sorted[i].address).toBeGreaterThanOrEqual(
              sorted[i - 1].address + sorted[i - 1].bytes,
            );
        }
        const pages = live.reduce((sum, { bytes }) => sum + Math.ceil(bytes / PAGE_BYTES), 0);
        expect(blocks.used).toBe(pages * PAGE_BYTES);
        // Whatever the order, neighbours were joined: everything is one block again.
        for (const { address, bytes } of live) blocks.give(address, bytes);
        expect(blocks.used).toBe(0);
        const before = memory.buffer.byteLength;
        if (before > PAGE_BYTES) expect(blocks.take(before - PAGE_BYTES)).toBe(PAGE_BYTES);
        expect(memory.buffer.byteLength).toBe(before);
      }),
      { numRuns: 60 },
    );
  });

  test("undefined at the limit, and room again after a block came back", () => {
    const blocks = new LinearMemory(memoryOf(4));
    const first = blocks.take(3 * PAGE_BYTES);
    expect(first).toBe(PAGE_BYTES);
    expect(blocks.take(2 * PAGE_BYTES)).toBeUndefined();
    expect(blocks.take(PAGE_BYTES)).toBe(4 * PAGE_BYTES);
    blocks.give(PAGE_BYTES, 3 * PAGE_BYTES);
    expect(blocks.take(2 * PAGE_BYTES)).toBe(PAGE_BYTES);
  });
});
