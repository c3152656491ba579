/** The plane of divergence against size and speed: which points are best, and what is said about them. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { planePoints, planeVerdict } from "../../src/experiments/compare/plane.js";
import type { MethodResult } from "../../src/experiments/compare/result.js";

function result(name: string, kl: number | undefined, mb: number, decode?: number): MethodResult {
  const rate = decode === undefined ? undefined : { median: decode, min: decode, max: decode };
  return {
    name,
    method: kl === undefined ? undefined : name,
    perplexity: 20,
    kl: kl === undefined ? undefined : { value: kl },
    bytes: mb * 1e6,
    speed: rate && { prefill: rate, decode: rate, prefillRatio: 1, decodeRatio: 1 },
  };
}

const METHODS = [
  result("fp16", undefined, 270, 80),
  result("keep", 0.005, 96, 200),
  result("flatquant", 0.09, 88, 220),
  result("rtn", 0.4, 88, 221),
  result("awq", 0.5, 100, 90),
];

describe("the plane", () => {
  it("marks what nothing else is as near and as small as, or as near and as fast as", () => {
    const best = Object.fromEntries(
      planePoints({ methods: METHODS }).map((point) => [point.name, point.best]),
    );
    expect(best).toEqual({
      fp16: ["size", "speed"],
      keep: ["size", "speed"],
      flatquant: ["size", "speed"],
      rtn: ["speed"],
      awq: [],
    });
  });

  it("says it in sentences", () => {
    expect(planeVerdict({ methods: METHODS })).toEqual([
      "keep is nearest to the original: KL 0.00500 nats a token at 96.0 MB.",
      "flatquant is smallest: 88.0 MB at KL 0.0900 nats a token.",
      "rtn decodes fastest: 221 tokens/s at KL 0.400 nats a token.",
      "Nothing speaks for awq here: something else is as near and at least as small and as fast.",
    ]);
    const [far] = planeVerdict({ methods: METHODS.slice(3) });
    expect(far).toMatch(/even that is far/);
    expect(planeVerdict({ methods: METHODS.slice(0, 2) })).toEqual([]);
  });

  it("has a best one in size always, and none that another one beats", () => {
    const methods = fc.array(
      fc.tuple(fc.double({ min: 0, max: 5, noNaN: true }), fc.integer({ min: 1, max: 9 })),
      { minLength: 1, maxLength: 12 },
    );
    fc.assert(
      fc.property(methods, (pairs) => {
        const points = planePoints({ methods: pairs.map(([kl, mb], i) => result(`${i}`, kl, mb)) });
        const best = points.filter((p) => p.best.includes("size"));
        expect(best.length).toBeGreaterThan(0);
        for (const one of best)
          expect(points.some((p) => p.kl < one.kl && p.bytes < one.bytes)).toBe(false);
        for (const other of points.filter((p) => !best.includes(p)))
          expect(best.some((p) => p.kl <= other.kl && p.bytes <= other.bytes)).toBe(true);
      }),
    );
  });
});
