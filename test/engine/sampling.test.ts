import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../src/common/random.js";
import { likeliest, sampleToken } from "../../src/engine/sampling.js";

const logitsOf = (probabilities: readonly number[]): Float32Array =>
  Float32Array.from(probabilities, Math.log);

/** How often each token comes in `draws` draws. */
function frequencies(
  logits: Float32Array,
  options: { temperature: number; topP: number },
  draws: number,
): number[] {
  const random = new Random(1);
  const counts = new Array<number>(logits.length).fill(0);
  for (let i = 0; i < draws; i++) counts[sampleToken(logits, options, random)] += 1 / draws;
  return counts;
}

describe("sampleToken", () => {
  it("takes the likeliest token at temperature 0, the first of equal ones", () => {
    const random = new Random(1);
    const greedy = { temperature: 0, topP: 1 };
    expect(sampleToken(Float32Array.of(1, 3, 3, 2), greedy, random)).toBe(1);
    expect(sampleToken(Float32Array.of(NaN, -2, -Infinity), greedy, random)).toBe(1);
  });

  it("draws with the softmax's probabilities", () => {
    const p = [0.5, 0.3, 0.2, 0];
    const draws = 20_000;
    const found = frequencies(logitsOf(p), { temperature: 1, topP: 1 }, draws);
    // Five standard deviations of a binomial share: a right sampler with this seed stays inside.
    p.forEach((share, i) => {
      expect(Math.abs(found[i] - share)).toBeLessThanOrEqual(
        5 * Math.sqrt((share * (1 - share)) / draws),
      );
    });
  });

  it("sharpens below temperature 1: probabilities go with their power 1/T", () => {
    const found = frequencies(logitsOf([0.6, 0.4]), { temperature: 0.5, topP: 1 }, 20_000);
    const share = 0.6 ** 2 / (0.6 ** 2 + 0.4 ** 2);
    expect(Math.abs(found[0] - share)).toBeLessThan(5 * Math.sqrt((share * (1 - share)) / 20_000));
  });

  it("keeps the smallest set of likeliest tokens that reaches top-p", () => {
    const p = logitsOf([0.1, 0.5, 0.15, 0.25]);
    const kinds = (topP: number): number[] =>
      frequencies(p, { temperature: 1, topP }, 2000).flatMap((f, token) => (f > 0 ? [token] : []));
    expect(kinds(0.4)).toEqual([1]);
    expect(kinds(0.6)).toEqual([1, 3]);
    expect(kinds(0.8)).toEqual([1, 2, 3]);
    expect(kinds(1)).toEqual([0, 1, 2, 3]);
    expect(kinds(1e-6)).toEqual([1]);
  });

  it("never draws an impossible token, however extreme the logits", () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.float({ noNaN: true }), fc.constant(-Infinity)), {
          minLength: 1,
          maxLength: 20,
        }),
        fc.nat(),
        (values, seed) => {
          fc.pre(values.some((value) => Number.isFinite(value)) && !values.includes(Infinity));
          const logits = Float32Array.from(values);
          const token = sampleToken(logits, { temperature: 1, topP: 0.9 }, new Random(seed));
          expect(logits[token]).toBeGreaterThan(-Infinity);
        },
      ),
    );
  });

  it("refuses logits that are not numbers", () => {
    expect(() => likeliest(Float32Array.of(NaN, NaN))).toThrow("not numbers");
  });
});
