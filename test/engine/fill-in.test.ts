/** Prompts with a suffix: the tokens that tell a model to fill in, in the order that its tokenizer's makers taught. */
import { describe, expect, it } from "vitest";
import type { Tokenizer } from "../../src/checkpoint/tokenizer.js";
import { PromptWriter } from "../../src/engine/prompt.js";
import { fakeTokenizer } from "./fake-executor.js";

/** The fake tokenizer with special tokens from id 100 on; `starts`: texts begin with token 23. */
function withTokens(spellings: readonly string[], starts = false): Tokenizer {
  const inner = fakeTokenizer();
  return {
    ...inner,
    encode: (text, options) => [
      ...(starts && options?.addSpecialTokens !== false ? [23] : []),
      ...inner.encode(text),
    ],
    bosTokenId: starts ? 23 : undefined,
    tokenToId: (token) => {
      const at = spellings.indexOf(token);
      return at < 0 ? undefined : 100 + at;
    },
  };
}

const request = { kind: "generate", prompt: "ab", suffix: "cd" } as const;
const write = (tokenizer: Tokenizer, of: object = request) =>
  new PromptWriter(tokenizer, undefined).write(of as typeof request, 50);

describe("a prompt with a suffix", () => {
  it.each([
    [["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]],
    [["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]],
    [["▁<PRE>", "▁<SUF>", "▁<MID>"]],
    [["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]],
  ])("is written with %j", (spellings) => {
    expect(write(withTokens(spellings))).toEqual([100, 1, 2, 101, 3, 4, 102]);
    expect(write(withTokens(spellings, true))).toEqual([23, 100, 1, 2, 101, 3, 4, 102]);
    expect(write(withTokens(spellings), { ...request, prompt: [7] })).toEqual([
      100, 7, 101, 3, 4, 102,
    ]);
  });

  it("has the suffix first where that was taught", () => {
    expect(write(withTokens(["[PREFIX]", "[SUFFIX]"]))).toEqual([101, 3, 4, 100, 1, 2]);
  });

  it("is refused where there are no such tokens, and when it is too long", () => {
    expect(new PromptWriter(withTokens([]), undefined).fillsIn).toBe(false);
    expect(() => write(withTokens(["<fim_prefix>"]))).toThrow(/suffix: .*no tokens for filling in/);
    const long = { ...request, suffix: "a".repeat(1000) };
    expect(() => write(withTokens(["[PREFIX]", "[SUFFIX]"]), long)).toThrow(/too many/);
  });
});
