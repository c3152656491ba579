import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import type { Tokenizer } from "../../src/checkpoint/tokenizer.js";
import { pairEncoder, stripSpace } from "../../src/evaluate/encode-pair.js";
import { embeddedModel } from "./support.js";

const { tokenizer } = embeddedModel(createReferenceBackend({ realType: "f64" }), "tiny-llama");

/** One id a character, but "ab" is one token, and so is "c " before a letter: tokens that reach over boundaries. */
function toy(special: { bos?: number; eos?: number } = {}): Tokenizer {
  const encode: Tokenizer["encode"] = (text, options) => {
    const pieces = text.match(/ab|c [a-z]|[^]/g) ?? [];
    const ids = pieces.map((piece) =>
      piece.length === 1 ? piece.charCodeAt(0) : 1000 + piece.charCodeAt(piece.length - 1),
    );
    const bos = options?.addSpecialTokens !== false ? special.bos : undefined;
    return bos === undefined ? ids : [bos, ...ids];
  };
  return {
    ...tokenizer,
    encode,
    bosTokenId: special.bos,
    eosTokenIds: special.eos === undefined ? [] : [special.eos],
  };
}

const code = (text: string): number[] => Array.from(text, (c) => c.charCodeAt(0));

describe("pairEncoder", () => {
  it("moves trailing white space of the context to the continuation", () => {
    const encode = pairEncoder(toy());
    expect(encode("xy \n", " z")).toEqual({ context: code("xy"), continuation: code(" \n z") });
  });

  it("takes as tail what lies beyond the context's own tokens, also where a token reaches over the boundary", () => {
    // Alone "xa" is two tokens; the whole is x|ab|d, and its first two cover the "b".
    expect(pairEncoder(toy())("xa", "bd")).toEqual({
      context: code("xa"),
      continuation: code("d"),
    });
    expect(pairEncoder(toy())("xc", " yz")).toEqual({
      context: code("xc"),
      continuation: code("z"),
    });
  });

  it("refuses a continuation that vanishes in the context's tokens", () => {
    expect(() => pairEncoder(toy())("xa", "b")).toThrow(/"b" adds no token to its context/);
    expect(() => pairEncoder(toy())("xa", "")).toThrow(/"" adds no token/);
  });

  it("puts a beginning before an empty context: BOS, or EOS where there is none", () => {
    expect(pairEncoder(toy({ bos: 1, eos: 2 }))("", " z")).toEqual({
      context: [1],
      continuation: code(" z"),
    });
    expect(pairEncoder(toy({ eos: 2 }))("  ", "z").context).toEqual([2]);
    expect(pairEncoder(toy({ eos: 2 }))("  ", "z").continuation).toEqual(code("  z"));
    expect(() => pairEncoder(toy())("", " z")).toThrow(/neither BOS nor EOS/);
  });

  it("adds BOS only when asked", () => {
    const both = toy({ bos: 1 });
    expect(pairEncoder(both)("x", " y").context).toEqual(code("x"));
    const asked = pairEncoder(both, { addBos: true })("x", " y");
    expect(asked).toEqual({ context: [1, ...code("x")], continuation: code(" y") });
  });

  it("keeps contexts apart", () => {
    const encode = pairEncoder(toy());
    expect(encode("x", " 1").context).toEqual(code("x"));
    expect(encode("y", " 1").context).toEqual(code("y"));
    expect(encode("x ", "1").context).toEqual(code("x"));
  });

  it("spells context and continuation with the real tokenizer", () => {
    const encode = pairEncoder(tokenizer);
    for (const [context, continuation] of [
      ["Question: How do you open a door?\nAnswer:", " Push the handle."],
      ['He said "', ' no"'],
      ["A trailing blank ", " word"],
    ]) {
      const pair = encode(context, continuation);
      expect(tokenizer.decode([...pair.context, ...pair.continuation])).toBe(
        context + continuation,
      );
      expect(pair.context).toEqual(
        tokenizer.encode(context.trimEnd(), { addSpecialTokens: false }),
      );
    }
  });
});

describe("stripSpace", () => {
  it("strips what Python's str.strip strips", () => {
    expect(stripSpace(" \t\x1c\x85\u3000x y\u2009\n")).toBe("x y");
    // JavaScript's trim would take the byte-order mark, Python's strip does not.
    expect(stripSpace("\ufeffx")).toBe("\ufeffx");
  });
});
