import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { StreamingDecoder } from "../../src/checkpoint/tokenizer/streaming.js";
import { TextOutput } from "../../src/engine/text-output.js";

/** Tokens are numbers of pieces; an empty piece stands for bytes that are no character yet. */
function decoderOf(pieces: readonly string[], rest = ""): StreamingDecoder {
  return { push: (token) => pieces[token], flush: () => rest };
}

interface Run {
  readonly text: string;
  readonly tokens: number[];
  readonly stopString?: string;
  /** Text after each push. */
  readonly steps: string[];
}

function run(pieces: readonly string[], stops: readonly string[], rest = ""): Run {
  const output = new TextOutput<undefined>(decoderOf(pieces, rest), stops);
  const tokens: number[] = [];
  const steps: string[] = [];
  let text = "";
  for (let token = 0; token < pieces.length && output.stopString === undefined; token++) {
    for (const item of output.push(token, undefined)) {
      text += item.text;
      tokens.push(item.token);
    }
    steps.push(text);
  }
  for (const item of output.flush()) {
    text += item.text;
    tokens.push(item.token);
  }
  return { text, tokens, steps, stopString: output.stopString };
}

describe("TextOutput", () => {
  it("gives text at once where nothing can stop it", () => {
    expect(run(["a", "b"], []).steps).toEqual(["a", "ab"]);
  });

  it("ends before a stop string that is spread over tokens", () => {
    const result = run(["Hello", " W", "or", "ld!"], ["World"]);
    expect(result).toMatchObject({ text: "Hello ", stopString: "World", tokens: [0, 1] });
    expect(result.steps).toEqual(["Hello", "Hello", "Hello", "Hello "]);
  });

  it("gives out what only looked like a stop string", () => {
    const result = run(["<", "|x", "y"], ["<|end|>"]);
    expect(result.steps).toEqual(["", "<|x", "<|xy"]);
    expect(result.stopString).toBeUndefined();
  });

  it("gives out a beginning of a stop string at the end of the text", () => {
    expect(run(["a<", "|en"], ["<|end|>"]).text).toBe("a<|en");
  });

  it("takes the stop string that begins first, and drops tokens behind it", () => {
    const result = run(["xx stop1 and stop2"], ["stop2", "stop1"]);
    expect(result).toMatchObject({ text: "xx ", stopString: "stop1", tokens: [0] });
    expect(run(["ab", "cd"], ["b"])).toMatchObject({ text: "a", tokens: [0] });
    expect(run(["ab", "cd"], ["ab"])).toMatchObject({ text: "", tokens: [] });
  });

  it("keeps a token without text until the character is whole", () => {
    const output = new TextOutput<undefined>(decoderOf(["a", "", "é"]), []);
    expect(output.push(0, undefined).map((t) => t.token)).toEqual([0]);
    expect(output.push(1, undefined)).toEqual([]);
    expect(output.push(2, undefined).map((t) => t.text)).toEqual(["", "é"]);
  });

  it("gives the last token what the decoder still held", () => {
    expect(run(["a", ""], [], "\ufffd")).toMatchObject({ text: "a\ufffd", tokens: [0, 1] });
  });

  it("agrees with cutting the whole text, however it is cut into tokens", () => {
    const letters = fc.string({ unit: fc.constantFrom("a", "b"), maxLength: 3 });
    const stop = fc.string({ unit: fc.constantFrom("a", "b"), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(
        fc.array(letters, { maxLength: 12 }),
        fc.array(stop, { maxLength: 3 }),
        (pieces, stops) => {
          // The text ends as soon as it holds a stop string: at the token where the first becomes whole.
          let whole = "";
          let found: number[] = [];
          for (const piece of pieces) {
            whole += piece;
            found = stops.map((s) => whole.indexOf(s)).filter((at) => at >= 0);
            if (found.length > 0) break;
          }
          const expected = found.length > 0 ? whole.slice(0, Math.min(...found)) : whole;
          const result = run(pieces, stops);
          expect(result.text).toBe(expected);
          for (const step of result.steps) expect(expected.startsWith(step)).toBe(true);
        },
      ),
    );
  });
});

describe("stop strings with special tokens", () => {
  const SPELLINGS = ["a", "b", "<|x|>", "<|y|>", "ab"];
  const isHidden = (token: number): boolean => token === 2 || token === 3;
  const shown = (token: number): string => (isHidden(token) ? "" : SPELLINGS[token]);
  const run = (tokens: readonly number[], stops: readonly string[]) => {
    const output = new TextOutput<undefined>({ push: shown, flush: () => "" }, stops, (token) =>
      isHidden(token) ? SPELLINGS[token] : "",
    );
    let text = "";
    for (const token of tokens) {
      for (const each of output.push(token, undefined)) text += each.text;
      if (output.stopString !== undefined) break;
    }
    for (const each of output.flush()) text += each.text;
    return { text, stop: output.stopString };
  };

  it.each<[string, number[], string[], string, string | undefined]>([
    ["that are one", [0, 2, 1], ["<|x|>"], "a", "<|x|>"],
    ["that are one, first of all", [2, 1], ["<|x|>"], "", "<|x|>"],
    ["that begin with one", [0, 2, 0, 1], ["<|x|>ab"], "a", "<|x|>ab"],
    ["that hold one", [0, 4, 2, 1, 0], ["b<|x|>b"], "aa", "b<|x|>b"],
    ["that hold two", [0, 2, 3, 1], ["<|x|><|y|>"], "a", "<|x|><|y|>"],
    ["that begin, but do not go on", [0, 2, 1, 0], ["<|x|>a"], "aba", undefined],
    ["in text that one interrupts", [0, 3, 1], ["ab"], "", "ab"],
    ["in text that a named one interrupts", [0, 2, 1], ["ab", "<|x|>a"], "", "ab"],
    ["that are part of one", [0, 2, 1], ["|x"], "ab", undefined],
  ])("are found %s", (_name, tokens, stops, text, stop) => {
    expect(run(tokens, stops)).toEqual({ text, stop });
  });

  it("cut where the first stop string begins, held back or not", () => {
    const tokens = fc.array(fc.nat(4), { maxLength: 12 });
    const stops = fc.array(
      fc
        .array(fc.nat(4), { minLength: 1, maxLength: 3 })
        .map((ids) => ids.map((id) => SPELLINGS[id]).join("")),
      { minLength: 1, maxLength: 3 },
    );
    fc.assert(
      fc.property(tokens, stops, (ids, strings) => {
        const found = run(ids, strings);
        const visible = ids.map(shown).join("");
        expect(visible.startsWith(found.text)).toBe(true);
        const isNamed = (id: number): boolean =>
          strings.some((each) => each.includes(SPELLINGS[id]));
        const written = ids.map((id) => (isNamed(id) ? SPELLINGS[id] : shown(id))).join("");
        if (found.stop === undefined) expect(found.text).toBe(visible);
        else expect(written.includes(found.stop) || visible.includes(found.stop)).toBe(true);
        for (const string of strings) expect(found.text).not.toContain(string);
      }),
      { numRuns: 500 },
    );
  });
});
