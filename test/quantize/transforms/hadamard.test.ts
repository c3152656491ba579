/** Hadamard matrices of any size: orthogonal, flat, and different for every seed. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../../src/common/random.js";
import {
  powerOfTwoPart,
  randomizedHadamard,
  sylvesterHadamard,
} from "../../../src/quantize/transforms/hadamard.js";

/** Largest entry of |M·Mᵀ − I|. */
function distanceFromOrthogonal(m: Float64Array, n: number): number {
  let worst = 0;
  for (let i = 0; i < n; i++)
    for (let k = 0; k <= i; k++) {
      let dot = i === k ? -1 : 0;
      for (let j = 0; j < n; j++) dot += m[i * n + j] * m[k * n + j];
      worst = Math.max(worst, Math.abs(dot));
    }
  return worst;
}

describe("sylvesterHadamard", () => {
  it("is the matrix everyone writes down for 4", () => {
    // prettier-ignore
    expect([...sylvesterHadamard(4)]).toEqual([
      1, 1, 1, 1,
      1, -1, 1, -1,
      1, 1, -1, -1,
      1, -1, -1, 1,
    ]);
  });

  it.each([0, 3, 12, 2.5, -4])("refuses %s rows", (n) => {
    expect(() => sylvesterHadamard(n)).toThrow(/power of two/);
  });
});

describe("randomizedHadamard", () => {
  it("is orthogonal for every size and seed", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 96 }), fc.nat(), (n, seed) => {
        const matrix = randomizedHadamard(n, new Random(seed));
        expect(matrix).toHaveLength(n * n);
        // Sums of n products of at most 1: n rounding errors of 1e-16.
        expect(distanceFromOrthogonal(matrix, n)).toBeLessThan(n * 1e-14);
      }),
      { numRuns: 60 },
    );
  });

  it("has only ±1/√n for powers of two, and no row larger than the odd part allows otherwise", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 64 }), fc.nat(), (n, seed) => {
        const matrix = randomizedHadamard(n, new Random(seed));
        const even = powerOfTwoPart(n);
        const largest = matrix.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
        expect(largest).toBeLessThanOrEqual((1 + 1e-12) / Math.sqrt(even));
        if (even === n)
          for (const x of matrix) expect(Math.abs(x)).toBeCloseTo(1 / Math.sqrt(n), 12);
      }),
      { numRuns: 40 },
    );
  });

  it("is the same for the same seed and another for another", () => {
    const make = (seed: number) => [...randomizedHadamard(24, new Random(seed))];
    expect(make(5)).toEqual(make(5));
    expect(make(5)).not.toEqual(make(6));
  });
});
