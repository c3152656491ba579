/**
 * Tokenizers: ids equal to those of the original libraries (test/fixtures/checkpoint/make-tokenizers.py), text that comes back, streaming
 * that equals decoding at once, and refusals.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { packageRoot } from "../../src/common/package.js";
import type { TokenizerFiles } from "../../src/checkpoint/checkpoint.js";
import { GgufMetadata } from "../../src/checkpoint/gguf-metadata.js";
import type { GgufValue } from "../../src/checkpoint/gguf-parser.js";
import { mergesFromScores, rebuildTokenizer } from "../../src/checkpoint/gguf-tokenizer.js";
import { readTokenizerFiles } from "../../src/checkpoint/hf-directory.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { createModel } from "../../src/checkpoint/tokenizer/models.js";
import { mergesStayInWords } from "../../src/checkpoint/tokenizer/pipeline.js";
import { streamingDecoder } from "../../src/checkpoint/tokenizer/streaming.js";
import { createTokenizer, type Tokenizer } from "../../src/checkpoint/tokenizer.js";

interface Fixture {
  samples: string[];
  byteLevel: Record<string, number[][]>;
  sentencePiece: { tokens: string[]; scores: number[]; types: number[]; ids: number[][] };
}

const fixture = JSON.parse(
  readFileSync(new URL("../fixtures/checkpoint/tokenizers.json", import.meta.url), "utf8"),
) as Fixture;
const tinyLlama = readTokenizerFiles(join(packageRoot, "models/tiny-llama"));
const tiny = createTokenizer(tinyLlama);

type Fields = Record<string, GgufValue>;

function rebuild(fields: Fields): TokenizerFiles {
  const prefixed = Object.entries(fields).map(([key, value]): [string, GgufValue] => [
    key === "chat_template" ? "tokenizer.chat_template" : `tokenizer.ggml.${key}`,
    value,
  ]);
  return rebuildTokenizer(new GgufMetadata(new Map(prefixed), "m.gguf"));
}

/** tiny-llama's tokenizer as GGUF metadata. */
function byteLevelFields(pre: string): Fields {
  const model = tinyLlama.tokenizer["model"] as {
    vocab: Record<string, number>;
    merges: string[][];
  };
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(model.vocab)) tokens[id] = token;
  return {
    model: "gpt2",
    pre,
    tokens,
    token_type: Int32Array.from(tokens, (_, id) => (id === 0 ? 3 : 1)),
    merges: model.merges.map((pair) => (Array.isArray(pair) ? pair.join(" ") : pair)),
    eos_token_id: 0,
    bos_token_id: 0,
    add_bos_token: false,
  };
}

const { tokens, scores, types } = fixture.sentencePiece;
const sentencePieceFields: Fields = {
  model: "llama",
  tokens,
  scores: Float32Array.from(scores),
  token_type: Int32Array.from(types),
  unknown_token_id: 0,
  bos_token_id: 1,
  eos_token_id: 2,
};
const sentencePiece = createTokenizer(rebuild(sentencePieceFields));

describe("tiny-llama's tokenizer.json", () => {
  it("gives the Rust library's ids", () => {
    expect(fixture.samples.map((text) => tiny.encode(text))).toEqual(fixture.byteLevel["gpt-2"]);
  });

  it("brings every text back", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (text) => {
        expect(tiny.decode(tiny.encode(text), { skipSpecialTokens: false })).toBe(text);
      }),
    );
  });

  it("decodes the golden prompt", () => {
    const { store } = openSafetensors(join(packageRoot, "test/golden/tiny-logits.safetensors"));
    using _ = store;
    const prompt = tiny.decode(store.read("input_ids"));
    expect(prompt).toMatch(
      /^The history of the railway in the north of England began in the early nineteenth/,
    );
    expect(tiny.encode(prompt)).toEqual([...store.read("input_ids")]);
  });

  it("knows its special tokens and size", () => {
    expect(tiny).toMatchObject({
      bosTokenId: 0,
      eosTokenIds: [0],
      vocabSize: 4096,
      chatTemplate: undefined,
    });
    expect(tiny.encode("a<|endoftext|>b")).toEqual([...tiny.encode("a"), 0, ...tiny.encode("b")]);
    expect(tiny.decode([0, ...tiny.encode("x"), 0])).toBe("x");
    expect(tiny.decode([0], { skipSpecialTokens: false })).toBe("<|endoftext|>");
    expect(tiny.tokenToId("<|endoftext|>")).toBe(0);
    expect(tiny.idToToken(0)).toBe("<|endoftext|>");
  });

  it("leaves spaces before punctuation, whatever the configuration says", () => {
    const cleaning = createTokenizer({
      ...tinyLlama,
      config: { clean_up_tokenization_spaces: true },
    });
    expect(cleaning.decode(cleaning.encode("a , b . c"))).toBe("a , b . c");
  });

  it("refuses ids outside the vocabulary", () => {
    expect(() => tiny.decode([5, 4096])).toThrow(/token id 4096.*0 to 4095/);
  });
});

describe("tokenizers rebuilt from GGUF", () => {
  it.each(Object.keys(fixture.byteLevel))(
    "gives the Rust library's ids with pre-tokenizer %s",
    (pre) => {
      const rebuilt = createTokenizer(rebuild(byteLevelFields(pre)));
      fixture.samples.forEach((text, i) => {
        expect([text, rebuilt.encode(text)]).toEqual([text, fixture.byteLevel[pre][i]]);
      });
    },
  );

  it("gives sentencepiece's ids for scores and byte fallback", () => {
    fixture.samples.forEach((text, i) => {
      const ids = sentencePiece.encode(text, { addSpecialTokens: false });
      expect([text, ids]).toEqual([text, fixture.sentencePiece.ids[i]]);
      expect(sentencePiece.decode(ids)).toBe(text);
    });
    expect(sentencePiece.encode("a")[0]).toBe(1);
  });

  it("puts special tokens where the metadata say", () => {
    const fields = byteLevelFields("gpt-2");
    const both = createTokenizer(rebuild({ ...fields, add_bos_token: true, add_eos_token: true }));
    expect(both.encode("x")).toEqual([0, ...tiny.encode("x"), 0]);
    delete fields["add_bos_token"];
    expect(createTokenizer(rebuild({ ...fields, pre: "llama-bpe" })).encode("x")[0]).toBe(0);
    expect(createTokenizer(rebuild(fields)).encode("x")).toEqual(tiny.encode("x"));
  });

  it("keeps the chat template and the tokens it uses", () => {
    const rebuilt = createTokenizer(
      rebuild({ ...byteLevelFields("gpt-2"), chat_template: "{{ messages }}" }),
      {},
      { eos_token_id: [7, 0] },
    );
    expect(rebuilt).toMatchObject({
      chatTemplate: "{{ messages }}",
      eosTokenIds: [7, 0],
      specialTokens: { bos_token: "<|endoftext|>", eos_token: "<|endoftext|>" },
    });
  });

  it("orders merges by the score of what they make", () => {
    expect(mergesFromScores(["a", "b", "ab", "abb", "bb"], [0, 0, -1, -2, -3], undefined)).toEqual([
      ["a", "b"],
      ["a", "bb"],
      ["ab", "b"],
      ["b", "b"],
    ]);
  });

  it.each([
    ["no tokenizer", {}, /no tokenizer in its metadata/],
    [
      "another kind",
      { model: "bert", tokens: [] },
      /"bert" is not supported \(accepted: gpt2, llama\)/,
    ],
    [
      "another pre-tokenizer",
      { ...byteLevelFields("tekken") },
      /"tekken" is not supported \(accepted: smollm/,
    ],
    [
      "tokens that are no strings",
      { model: "gpt2", tokens: 3 },
      /tokens must be a list of strings/,
    ],
    [
      "types of another count",
      { model: "gpt2", tokens: ["a"], token_type: new Int32Array(2) },
      /1 tokens but 2 token types/,
    ],
    [
      "scores of another count",
      { model: "llama", tokens: ["a"], scores: new Float32Array(2) },
      /1 tokens but 2 scores/,
    ],
    ["no merges", { model: "gpt2", tokens: ["a"] }, /merges is missing/],
    [
      "a merge that is no pair",
      { model: "gpt2", tokens: ["a"], merges: ["a"] },
      /merge 0 .* is no pair/,
    ],
  ] as [string, Fields, RegExp][])("refuses %s", (_, fields, message) => {
    expect(() => rebuild(fields)).toThrow(PlanishError);
    expect(() => rebuild(fields)).toThrow(message);
  });
});

describe("cutting SentencePiece text into words", () => {
  const files = rebuild(sentencePieceFields);
  const model = files.tokenizer["model"] as {
    merges: [string, string][];
    vocab: Record<string, number>;
  };

  it("happens only where no merge crosses the beginning of a word", () => {
    const vocab = { ...model.vocab, "▁bx": 9000, "a▁": 9001 };
    const cuts = (merges: [string, string][]): boolean => {
      const tokenizer = { ...files.tokenizer, model: { ...model, vocab, merges } };
      return mergesStayInWords(tokenizer, createModel(tokenizer.model));
    };
    expect(cuts(model.merges)).toBe(true);
    expect(cuts([...model.merges, ["a", "▁"]])).toBe(false);
  });

  it("changes no id", () => {
    // A crossing merge that never applies switches the cutting off and nothing else.
    const merges = [...model.merges, ["\u0000", "▁"]];
    const vocab = { ...model.vocab, "\u0000": 9000, "\u0000▁": 9001 };
    const whole = createTokenizer({
      config: files.config,
      tokenizer: { ...files.tokenizer, model: { ...model, vocab, merges } },
    });
    const text = readFileSync(join(packageRoot, "data/wikitext2/test.txt"), "utf8").slice(
      0,
      20_000,
    );
    expect(sentencePiece.encode(text)).toEqual(whole.encode(text));
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom("a", "th", " ", "  ", "▁", "é", "\n", "1") }),
        (sample) => {
          expect(sentencePiece.encode(sample)).toEqual(whole.encode(sample));
        },
      ),
    );
  });
});

describe("streaming", () => {
  function streamed(tokenizer: Tokenizer, ids: number[], skipSpecialTokens: boolean): string {
    const decoder = tokenizer.stream({ skipSpecialTokens });
    return ids.map((id) => decoder.push(id)).join("") + decoder.flush();
  }

  it.each([
    ["byte-level", tiny],
    ["SentencePiece", sentencePiece],
  ])("gives the text of decoding at once (%s)", (_, tokenizer) => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc
              .string({ unit: "grapheme" })
              .map((text) => tokenizer.encode(text, { addSpecialTokens: false })),
            fc
              .tuple(
                fc.constantFrom([0], tokenizer.encode(" ", { addSpecialTokens: false })),
                fc.constantFrom(1, 2, 40),
              )
              .map(([ids, times]) => Array(times).fill(ids).flat() as number[]),
          ),
        ),
        fc.boolean(),
        (parts, skip) => {
          const ids = parts.flat();
          expect(streamed(tokenizer, ids, skip)).toBe(
            tokenizer.decode(ids, { skipSpecialTokens: skip }),
          );
        },
      ),
    );
  });

  it("holds back a character until its last byte", () => {
    const ids = tiny.encode("😀!");
    expect(ids.length).toBeGreaterThan(2);
    const decoder = tiny.stream();
    const pieces = ids.map((id) => decoder.push(id));
    expect(pieces.filter((piece) => piece !== "")).toEqual(["😀", "!"]);
    expect(pieces.at(-1)).toBe("!");
  });

  it("gives unfinished bytes at the end, and any garbage in time", () => {
    const [first] = tiny.encode("😀");
    const decoder = tiny.stream();
    expect(decoder.push(first)).toBe("");
    expect(decoder.flush()).toBe("\ufffd");
    const garbage = Array.from({ length: 30 }, () => decoder.push(first));
    expect(garbage.join("").length).toBeGreaterThan(20);
  });
});

describe("work of streaming", () => {
  it.each([
    ["nothing", [0]],
    ["spaces, the first of which is stripped", [1]],
    ["nothing with a space now and then", [0, 0, 0, 0, 0, 0, 0, 1]],
    ["text with nothing between", [2, 0]],
  ])("does not grow with the text: %s", (_, run) => {
    const pieces = ["", " ", "a"];
    const textOf = (ids: readonly number[]): string =>
      ids
        .map((id) => pieces[id])
        .join("")
        .replace(/^ /, "");
    let decoded = 0;
    const decoder = streamingDecoder((ids) => {
      decoded += ids.length;
      return textOf(ids);
    });
    const ids = [2, ...Array.from({ length: 4000 }, (_, i) => run[i % run.length]), 2];
    const text = ids.map((id) => decoder.push(id)).join("") + decoder.flush();
    expect(text).toBe(textOf(ids));
    // A window of at most some 40 ids is decoded twice for each, and again when it is shortened.
    expect(decoded).toBeLessThan(100 * ids.length);
  });
});

describe("special ids of the model's configuration", () => {
  afterEach(() => vi.restoreAllMocks());

  /** What is kept, and the warnings. */
  function read(
    config: Record<string, unknown>,
    generation: Record<string, unknown> = {},
    tokenizerConfig: Record<string, unknown> = {},
  ): { tokenizer: Tokenizer; warnings: string[] } {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const files = { tokenizer: tinyLlama.tokenizer, config: tokenizerConfig };
    const tokenizer = createTokenizer(files, config, generation);
    const warnings = warn.mock.calls.map(([message]) => String(message));
    return { tokenizer, warnings };
  }

  it.each([
    [
      "eos_token_id",
      4096,
      /config\.json: eos_token_id is 4096, there are 4096 tokens; it is left out/,
    ],
    ["eos_token_id", 4294967295, /eos_token_id is 4294967295/],
    ["eos_token_id", -1, /eos_token_id is -1/],
    ["eos_token_id", "2", /eos_token_id is "2"/],
    ["eos_token_id", 1.5, /eos_token_id is 1\.5/],
    ["eos_token_id", true, /eos_token_id is true/],
    ["eos_token_id", { id: 2 }, /eos_token_id is \{/],
    ["eos_token_id", [5, 9999], /eos_token_id is 9999/],
    ["eos_token_id", [[5]], /eos_token_id is \[/],
    ["bos_token_id", 4096, /bos_token_id is 4096/],
    ["bos_token_id", "<s>", /bos_token_id is "<s>"/],
    ["pad_token_id", 4294967295, /pad_token_id is 4294967295/],
    ["pad_token_id", 2 ** 60, /pad_token_id is 1152921504606847000/],
  ] as const)("%s %j is left out with a warning", (key, value, warning) => {
    for (const file of ["config", "generation_config"] as const) {
      const config = { vocab_size: 4096, ...(file === "config" ? { [key]: value } : {}) };
      const generation = file === "config" ? {} : { [key]: value };
      const { tokenizer, warnings } = read(config, generation);
      expect(warnings).toHaveLength(1);
      expect(warnings[0]).toMatch(warning);
      expect(warnings[0].startsWith(`${file}.json: `)).toBe(true);
      expect(tokenizer.eosTokenIds).toEqual(Array.isArray(value) && value[0] === 5 ? [5] : []);
      expect(tokenizer.bosTokenId).toBeUndefined();
      vi.restoreAllMocks();
    }
  });

  it.each([
    [{}, {}, {}],
    [{ eos_token_id: null, pad_token_id: -1 }, { eos_token_id: [] }, {}],
    [{ eos_token_id: 7 }, { eos_token_id: [0, 7] }, { eos_token: "<|endoftext|>" }],
    // Embeddings with more rows than the tokenizer has tokens.
    [{ eos_token_id: 4100, vocab_size: 4224 }, {}, {}],
  ])("%j, %j and %j are fine", (config, generation, tokenizerConfig) => {
    expect(read({ vocab_size: 4096, ...config }, generation, tokenizerConfig).warnings).toEqual([]);
  });

  it("says where they contradict the tokenizer, and what is done", () => {
    const own = { bos_token: "<|endoftext|>", eos_token: "<|endoftext|>", pad_token: "A" };
    const ids = { bos_token_id: 5, eos_token_id: [6, 7], pad_token_id: 8 };
    const { tokenizer, warnings } = read(ids, {}, own);
    expect(warnings).toEqual([
      "the tokenizer's bos_token \"<|endoftext|>\" is 0, bos_token_id of the model's configuration is 5; the tokenizer's is used",
      "the tokenizer's eos_token \"<|endoftext|>\" is 0, eos_token_id of the model's configuration is 6 and 7; a text ends at each of them",
      expect.stringMatching(/pad_token "A" is \d+, pad_token_id .* is 8; the tokenizer's is used/),
    ]);
    expect([tokenizer.bosTokenId, tokenizer.eosTokenIds]).toEqual([0, [6, 7, 0]]);
  });

  it("says that a token of the tokenizer's is not in its vocabulary", () => {
    const { tokenizer, warnings } = read({}, {}, { eos_token: "<nowhere>", pad_token: "[PAD]" });
    expect(warnings).toEqual([
      'the tokenizer\'s eos_token "<nowhere>" is not in its vocabulary; it is left out',
    ]);
    expect(tokenizer.eosTokenIds).toEqual([]);
  });
});

describe("refusing", () => {
  it("names what a tokenizer.json lacks", () => {
    expect(() => createTokenizer({ tokenizer: {}, config: {} })).toThrow(/has no model/);
    const broken = { tokenizer: { model: { type: "BPE" } }, config: {} };
    expect(() => createTokenizer(broken)).toThrow(PlanishError);
    expect(() => createTokenizer(broken)).toThrow(/cannot build the tokenizer/);
  });
});
