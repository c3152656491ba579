/** Log-probabilities as the API writes them: tokens that read alike are told apart. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { chatStyle, completionStyle } from "../../src/serve/answers.js";
import type { TokenText } from "../../src/engine/request.js";

const head = { id: "x", created: 0, model: "m", logprobs: true, includeUsage: false };
const usage = { promptTokens: 1, cachedTokens: 0, generatedTokens: 1 };

interface Written {
  choices: {
    logprobs: {
      tokens: string[];
      token_logprobs: number[];
      top_logprobs: Record<string, number>[];
      content: { token: string; bytes: number[] | null; top_logprobs: { token: string }[] }[];
    };
  }[];
}

function write(style: typeof chatStyle, chosen: TokenText, top: readonly TokenText[]) {
  const tokens = [
    { type: "token", choice: 0, token: chosen.token, text: "", logprobs: { ...chosen, top } },
  ] as const;
  const choices = [{ text: "", tokens, finishReason: "stop" }] as const;
  return (style.whole(head, choices, usage) as Written).choices[0].logprobs;
}

/** The bytes of a token that is part of a character. */
const fragment = (token: number): TokenText => ({
  token,
  text: "\ufffd",
  bytes: [0xf0, 0x80 + token],
  logprob: -token - 1,
});

describe("log-probabilities", () => {
  it("have all their entries where tokens are parts of characters", () => {
    const top = Array.from({ length: 20 }, (_, token) => fragment(token));
    const { tokens, token_logprobs: own, top_logprobs: all } = write(completionStyle, top[3], top);
    expect(Object.keys(all[0])).toHaveLength(20);
    expect(tokens).toEqual(["bytes:\\xf0\\x83"]);
    expect(all[0][tokens[0]]).toBe(own[0]);
    const { content } = write(chatStyle, top[3], top);
    expect(content[0]).toMatchObject({ token: "bytes:\\xf0\\x83", bytes: [0xf0, 0x83] });
    expect(new Set(content[0].top_logprobs.map(({ token }) => token)).size).toBe(20);
  });

  it("have one entry for each token, whatever they are called, and the chosen one's own", () => {
    const texts = fc.constantFrom("", "a", "A", "\ufffd", "bytes:\\x41", "token_id:1", "__proto__");
    const bytes = fc.option(fc.constantFrom([0x41], [0xf0], []), { nil: undefined });
    const spellings = fc.array(fc.record({ text: texts, bytes }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(spellings, fc.nat(19), (list, index) => {
        const top = list.map((each, token) => ({ token, ...each, logprob: -token - 1 }));
        const chosen = top[index % top.length];
        const written = write(completionStyle, chosen, top);
        const values = Object.values(written.top_logprobs[0]);
        expect(new Set(values)).toEqual(new Set(top.map(({ logprob }) => logprob)));
        expect(written.top_logprobs[0][written.tokens[0]]).toBe(chosen.logprob);
      }),
    );
  });
});
