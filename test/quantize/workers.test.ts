/** Ranges of blocks for worker processes. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { workerArguments } from "../../src/cli/worker-process.js";
import { splitRanges } from "../../src/quantize/run/workers.js";

describe("ranges of blocks", () => {
  it("cover what is missing once, in order, with nearly equal shares", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.nat(80), { minLength: 1 }),
        fc.integer({ min: 1, max: 12 }),
        (blocks, count) => {
          const missing = blocks.sort((a, b) => a - b);
          const ranges = splitRanges(missing, count);
          expect(ranges).toHaveLength(Math.min(count, missing.length));
          const shares = ranges.map(({ from, to }) => missing.filter((b) => b >= from && b < to));
          expect(shares.flat()).toEqual(missing);
          const sizes = shares.map((share) => share.length);
          expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
        },
      ),
    );
  });

  it("reach a worker with the run's own arguments and its share of the threads", () => {
    const args = ["quantize", "m", "--out", "o", "--workers", "4", "--threads=8", "--resume"];
    expect(workerArguments([...args, "--json", "--seed", "1"], { from: 4, to: 8 }, 2)).toEqual(
      ["quantize", "m", "--out", "o", "--seed", "1", "--blocks", "4-7", "--threads", "2"].concat(
        "--quiet",
      ),
    );
  });
});
