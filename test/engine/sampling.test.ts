import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../src/common/random.js";
import {
  likeliest,
  logProbabilities,
  Sampler,
  sampleToken,
  type DrawOptions,
  type PenaltyOptions,
} from "../../src/engine/sampling.js";

const logitsOf = (probabilities: readonly number[]): Float32Array =>
  Float32Array.from(probabilities, Math.log);

/** How often each token comes in `draws` draws. */
function frequencies(logits: Float32Array, options: DrawOptions, draws: number): number[] {
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

/** Shares that top-k, top-p and min-p leave, worked out plainly from the whole sorted list. */
function plainShares(
  logits: readonly number[],
  { temperature, topK = 0, topP = 1, minP = 0 }: DrawOptions,
): number[] {
  const highest = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp((logit - highest) / temperature));
  const sum = (tokens: readonly number[]): number =>
    tokens.reduce((total, token) => total + weights[token], 0);
  let order = weights.map((_, token) => token).sort((a, b) => weights[b] - weights[a] || a - b);
  if (minP > 0) order = order.filter((token) => weights[token] >= minP);
  if (topK > 0) order = order.slice(0, topK);
  let count = 1;
  while (count < order.length && sum(order.slice(0, count)) < topP * sum(order)) count += 1;
  const kept = order.slice(0, count);
  return weights.map((weight, token) => (kept.includes(token) ? weight / sum(kept) : 0));
}

describe("the likeliest tokens", () => {
  const options = fc.record({
    temperature: fc.constantFrom(0.3, 1, 3),
    topK: fc.constantFrom(0, 1, 3, 7, 100),
    topP: fc.constantFrom(0.05, 0.5, 0.9, 1),
    minP: fc.constantFrom(0, 0.02, 0.4),
  });

  it("are those that sorting the whole vocabulary leaves", () => {
    const logits = fc.array(fc.integer({ min: -400, max: 40 }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(logits, options, fc.nat(), (values, draw, seed) => {
        const tenths = values.map((value) => value / 10);
        const shares = plainShares(tenths, draw);
        // float64, so that ties of the oracle are ties of the sampler.
        const token = sampleToken(Float64Array.from(tenths), draw, new Random(seed));
        expect(shares[token]).toBeGreaterThan(0);
      }),
      { numRuns: 1000 },
    );
  });

  it("come with their shares", () => {
    const logits = [0.5, 2, 1, 0, 1.5, -3, 1.2];
    const draw = { temperature: 0.8, topK: 5, topP: 0.9, minP: 0.1 };
    const draws = 20_000;
    const found = frequencies(Float32Array.from(logits), draw, draws);
    plainShares(logits, draw).forEach((share, token) =>
      // Five standard deviations, as above.
      expect(Math.abs(found[token] - share)).toBeLessThanOrEqual(
        5 * Math.sqrt((share * (1 - share)) / draws),
      ),
    );
  });
});

describe("Sampler", () => {
  const next = (
    logits: readonly number[],
    rest: PenaltyOptions,
    prompt: number[] = [],
  ): number[] => {
    const sampler = new Sampler({ temperature: 0, ...rest }, new Random(1), logits.length, prompt);
    return Array.from({ length: 4 }, () => sampler.next(Float32Array.from(logits)));
  };

  it("divides positive and multiplies negative logits of what was seen, in prompt and output", () => {
    // 3/2 = 1.5 lies above 1.4, 2/2 below; −1·2 lies below −1.5.
    expect(next([3, 2, 1.4], { repetitionPenalty: 2 })).toEqual([0, 1, 0, 0]);
    expect(next([3, 2, 1.4], { repetitionPenalty: 2 }, [0])).toEqual([1, 0, 0, 0]);
    expect(next([-1, -1.5], { repetitionPenalty: 2 }, [0])).toEqual([1, 0, 0, 0]);
  });

  it("takes presence off once and frequency each time, for the output alone", () => {
    expect(next([3, 2.5], { presencePenalty: 1 }, [0])).toEqual([0, 1, 0, 0]);
    expect(next([3, 2], { frequencyPenalty: 0.6 }, [0, 0])).toEqual([0, 0, 1, 0]);
  });

  it("adds biases, and never chooses past the tokenizer's ids", () => {
    expect(next([3, 2, 1], { logitBias: { 2: 5 } })).toEqual([2, 2, 2, 2]);
    const sampler = new Sampler({ temperature: 0 }, new Random(1), 2, []);
    expect(sampler.next(Float32Array.of(1, 2, 9))).toBe(1);
  });

  it("leaves the logits as they are", () => {
    const logits = Float32Array.of(3, 2, 1);
    new Sampler({ temperature: 1, logitBias: { 0: -100 } }, new Random(1), 3, [1]).next(logits);
    expect(Array.from(logits)).toEqual([3, 2, 1]);
  });
});

describe("whatever the settings and the logits", () => {
  const wild = fc.oneof(
    fc.double(),
    fc.constantFrom(0, 1, 1e-300, 1e300, -1e300, 5e-324, NaN, Infinity, -Infinity),
  );
  const logitsOfAModel = fc.array(
    fc.oneof(fc.float(), fc.constantFrom(Infinity, -Infinity, NaN, 3e38, -3e38, 0)),
    { minLength: 1, maxLength: 12 },
  );

  it("draws a token of the vocabulary, never an excluded one", () => {
    const settings = fc.record({
      temperature: wild,
      topK: wild,
      topP: wild,
      minP: wild,
      repetitionPenalty: wild,
      presencePenalty: wild,
      frequencyPenalty: wild,
      logitBias: fc.dictionary(fc.nat(15).map(String), wild, { maxKeys: 4 }),
    });
    fc.assert(
      fc.property(logitsOfAModel, settings, fc.nat(), (values, options, seed) => {
        const logits = Float32Array.from(values);
        const sampler = new Sampler(options, new Random(seed), logits.length, [0, 1]);
        for (let i = 0; i < 3; i++) {
          let token: number;
          try {
            token = sampler.next(logits);
          } catch (error) {
            // Where nothing is left to choose from, that is said.
            expect(String(error)).toContain("not numbers");
            return;
          }
          expect(Number.isInteger(token) && token >= 0 && token < logits.length).toBe(true);
          expect(logits[token]).not.toBe(-Infinity);
          expect(logits[token]).not.toBeNaN();
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("reports logarithms that JSON can write, in falling order", () => {
    fc.assert(
      fc.property(logitsOfAModel, fc.nat(20), (values, count) => {
        fc.pre(values.some((value) => value > -Infinity));
        const logits = Float32Array.from(values);
        const { logprob, top } = logProbabilities(logits, likeliest(logits), count);
        expect(top).toHaveLength(Math.min(count, values.length));
        for (const each of [logprob, ...top.map((item) => item.logprob)])
          expect(each).toSatisfy((value: number) => Number.isFinite(value) && value <= 0);
        top.slice(1).forEach((each, i) => expect(each.logprob).toBeLessThanOrEqual(top[i].logprob));
        if (count > 0) expect(top[0].logprob).toBe(logprob);
      }),
    );
  });
});

describe("logProbabilities", () => {
  it("are the logarithms of the softmax, the likeliest first", () => {
    const p = [0.1, 0.6, 0.25, 0.05];
    const { logprob, top } = logProbabilities(
      p.map((x) => Math.log(x) + 7),
      3,
      2,
    );
    expect(Math.exp(logprob)).toBeCloseTo(0.05, 12);
    expect(top.map(({ token }) => token)).toEqual([1, 2]);
    expect(top.map((each) => Math.exp(each.logprob))).toEqual([
      expect.closeTo(0.6, 12),
      expect.closeTo(0.25, 12),
    ]);
    expect(logProbabilities([0, 0], 1, 0).top).toEqual([]);
  });
});
