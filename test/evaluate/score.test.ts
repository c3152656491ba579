import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import type { EncodedPair } from "../../src/evaluate/encode-pair.js";
import { rowMaxima, scoreContinuations } from "../../src/evaluate/score.js";
import { embeddedModel, logProbabilities, plainScore } from "./support.js";

const backend = createReferenceBackend({ realType: "f64" });
const { model, tokenizer } = embeddedModel(backend, "tiny-llama");
const ids = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false });

/** Float64 on both sides; sums of a few tens of terms in another order. */
const CLOSE = 1e-9;

const pairs: EncodedPair[] = [
  { context: ids("The ship sailed"), continuation: ids(" to the north") },
  { context: ids("The ship sailed"), continuation: ids(" to the") },
  { context: ids("The ship sailed"), continuation: ids(" home") },
  { context: ids("The king"), continuation: ids(" was a man of the north") },
  { context: ids("In"), continuation: ids(" 1914") },
];

describe("scoreContinuations", () => {
  it.each([
    ["tiny-llama", undefined],
    ["tiny-opt", undefined],
    ["tiny-llama", "w4a4kv4"],
  ])("equals each sequence run by itself: %s %s", (name, scheme) => {
    const own = embeddedModel(backend, name, scheme);
    const scores = scoreContinuations(own.model, pairs, { greedy: true });
    for (const [i, { context, continuation }] of pairs.entries()) {
      const expected = plainScore(own.model, context, continuation);
      expect(Math.abs(scores[i].logLikelihood - expected.logLikelihood)).toBeLessThan(CLOSE);
      expect(scores[i].greedy).toBe(expected.greedy);
    }
  });

  it("knows a greedy continuation from one that is not", () => {
    const context = ids("The ship was");
    const continuation: number[] = [];
    for (let i = 0; i < 3; i++) {
      const last = logProbabilities(model, [...context, ...continuation]).pop() ?? [];
      continuation.push(last.indexOf(Math.max(...last)));
    }
    const other = [...continuation.slice(0, 2), (continuation[2] + 1) % model.config.vocabSize];
    const scores = scoreContinuations(
      model,
      [
        { context, continuation },
        { context, continuation: other },
      ],
      { greedy: true },
    );
    expect(scores.map(({ greedy }) => greedy)).toEqual([true, false]);
  });

  it("drops the beginning of what is longer than the model's positions", () => {
    const config = { ...model.config, maxPositions: 6 };
    const short = Object.create(model, { config: { value: config } }) as typeof model;
    const [context, continuation] = [ids("The old king of the north was"), ids(" dead")];
    expect(context.length).toBeGreaterThan(6);
    // Six tokens are read; the last of the continuation is only predicted.
    const kept = context.slice(-(6 + 1 - continuation.length));
    const [score] = scoreContinuations(short, [{ context, continuation }]);
    const expected = plainScore(model, kept, continuation);
    expect(Math.abs(score.logLikelihood - expected.logLikelihood)).toBeLessThan(CLOSE);
    expect(() => scoreContinuations(short, [{ context: ids("A"), continuation: context }])).toThrow(
      /continuation of \d+ tokens is longer than the model's 6 positions/,
    );
  });
});

describe("rowMaxima", () => {
  it("takes the first among equals", () => {
    expect(Array.from(rowMaxima([1, 3, 3, -5, -7, -5], 3))).toEqual([1, 0]);
  });
});
