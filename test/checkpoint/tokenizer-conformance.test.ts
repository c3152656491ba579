/**
 * Ids and texts equal to those of Python's `tokenizers` (test/fixtures/tokenizers/make-vectors.py) for the tokenizers of
 * published model families and for single options; and refusals of what is not implemented.
 */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { packageRoot } from "../../src/common/package.js";
import { readTokenizerFiles } from "../../src/checkpoint/hf-directory.js";
import { OPTIONS } from "../../src/checkpoint/tokenizer/options.js";
import { mergeSpecialTokensMap } from "../../src/checkpoint/tokenizer/special-tokens.js";
import { createTokenizer, type Tokenizer } from "../../src/checkpoint/tokenizer.js";

type Json = Record<string, unknown>;

interface Case {
  name: string;
  model: string;
  ignoreMerges?: boolean;
  modelOptions?: Json;
  added_tokens: Json[];
  normalizer: Json | null;
  pre_tokenizer: Json | null;
  post_processor: Json | null;
  decoder: Json | null;
  ids: string[];
  texts: (string | null)[];
  randomIds: string[];
  randomTexts: string[];
}

const vectors = JSON.parse(
  readFileSync(new URL("../fixtures/tokenizers/vectors.json", import.meta.url), "utf8"),
) as {
  strings: string[];
  short: string[];
  models: Record<string, Json>;
  families: Case[];
  options: Case[];
};

const tiny = JSON.parse(
  readFileSync(join(packageRoot, "models/tiny-llama/tokenizer.json"), "utf8"),
) as Json & { model: Json };

function tokenizerJson(item: Case): Json {
  const model = item.model === "tiny" ? tiny.model : vectors.models[item.model];
  return {
    version: "1.0",
    added_tokens: item.added_tokens,
    normalizer: item.normalizer,
    pre_tokenizer: item.pre_tokenizer,
    post_processor: item.post_processor,
    decoder: item.decoder,
    model: {
      ...model,
      ...(item.ignoreMerges ? { ignore_merges: true } : {}),
      ...item.modelOptions,
    },
  };
}

const idsOf = (row: string): number[] => (row === "" ? [] : row.split(" ").map(Number));

function compare(item: Case, strings: readonly string[]): void {
  const tokenizer = createTokenizer({ tokenizer: tokenizerJson(item), config: {} });
  const got = strings.map((text) => [text, tokenizer.encode(text).join(" ")]);
  expect(got).toEqual(strings.map((text, i) => [text, item.ids[i]]));
  strings.forEach((text, i) => {
    expect([text, tokenizer.decode(idsOf(item.ids[i]))]).toEqual([text, item.texts[i] ?? text]);
  });
  item.randomIds.forEach((row, i) => {
    const text = tokenizer.decode(idsOf(row), { skipSpecialTokens: false });
    expect([row, text]).toEqual([row, item.randomTexts[i]]);
  });
}

/** What streams out is what decoding at once gives. */
function streams(item: Case): void {
  const tokenizer: Tokenizer = createTokenizer({ tokenizer: tokenizerJson(item), config: {} });
  for (const row of item.ids) {
    const ids = idsOf(row);
    const decoder = tokenizer.stream({ skipSpecialTokens: false });
    const text = ids.map((id) => decoder.push(id)).join("") + decoder.flush();
    expect([row, text]).toEqual([row, tokenizer.decode(ids, { skipSpecialTokens: false })]);
  }
}

describe("tokenizers of model families", () => {
  it("are compared on some 200 strings", () => {
    expect(new Set(vectors.strings).size).toBeGreaterThan(190);
  });

  it.each(vectors.families.map((item) => [item.name, item] as const))(
    "%s: ids and texts as in Python",
    (_, item) => compare(item, vectors.strings),
  );

  it.each(vectors.families.map((item) => [item.name, item] as const))(
    "%s: streams what decoding at once gives",
    (_, item) => streams(item),
  );
});

describe("single options", () => {
  it.each(vectors.options.map((item) => [item.name, item] as const))(
    "%s: ids and texts as in Python",
    (_, item) => compare(item, vectors.short),
  );
});

describe("faults found from outside", () => {
  const withParts = (parts: Json, model: Json = tiny.model): Tokenizer =>
    createTokenizer({ tokenizer: { ...tiny, ...parts, model }, config: {} });
  const split = (pattern: Json, behavior: string, invert: boolean): Json => ({
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern, behavior, invert },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
  });

  it("an inverted split drops no words", () => {
    const tokenizer = withParts(split({ Regex: "\\s+" }, "Isolated", true));
    expect(tokenizer.encode("Hello world")).toEqual([40, 489, 79, 221, 87, 283, 315]);
  });

  it("a string split removes, or merges with what follows", () => {
    const removed = withParts(split({ String: " " }, "Removed", false));
    expect(removed.decode(removed.encode("Hello world"))).toBe("Helloworld");
    const merged = withParts(split({ String: " " }, "MergedWithNext", false));
    expect(merged.encode("Hello world")).toEqual(tokenizerPieces(merged, ["Hello", " world"]));
  });

  const tokenizerPieces = (tokenizer: Tokenizer, pieces: string[]): number[] =>
    pieces.flatMap((piece) => tokenizer.encode(piece));

  it("a token that must be a single word is none inside a word", () => {
    const added = { id: 4096, content: "<mask>", single_word: true, special: true };
    const tokenizer = withParts({ added_tokens: [...(tiny["added_tokens"] as Json[]), added] });
    expect(tokenizer.encode("a<mask>b")).toEqual([65, 28, 77, 1798, 30, 66]);
    expect(tokenizer.encode("a <mask> b")).toContain(4096);
  });

  it("Metaspace splits at every mark", () => {
    const vocab = { "▁": 0, "▁▁": 1, a: 2, "▁a": 3 };
    const model = { type: "BPE", vocab, merges: ["▁ ▁", "▁ a"] };
    const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "always" };
    const parts = { added_tokens: [], post_processor: null, decoder: metaspace };
    expect(withParts({ ...parts, pre_tokenizer: metaspace }, model).encode("  a")).toEqual([0, 3]);
    const whole = { ...metaspace, split: false };
    expect(withParts({ ...parts, pre_tokenizer: whole }, model).encode("  a")).toEqual([1, 2]);
  });

  /** Ids of a text with one added token, 3, between the words a (1), b (2) and all others (0). */
  const withToken = (content: string, options: Json) => (text: string) =>
    createTokenizer({
      tokenizer: {
        version: "1.0",
        added_tokens: [{ id: 3, content, special: true, normalized: false, ...options }],
        model: { type: "WordLevel", vocab: { u: 0, a: 1, b: 2 }, unk_token: "u" },
      },
      config: {},
    }).encode(text);

  it("a token of white space that another has taken is none", () => {
    const right = withToken("\n", { rstrip: true });
    expect(["\n \n", "\n\n\n", "a\n \n b"].map(right)).toEqual([[3, 3], [3, 3, 3], [1, 3, 3, 2]]); // prettier-ignore
    const both = withToken("\n", { lstrip: true, rstrip: true });
    expect(["\n \n", "\n\n\n", "a\n \n b"].map(both)).toEqual([[3], [3], [1, 3, 2]]);
    const left = withToken("\n", { lstrip: true });
    expect(["\n \n", "\n\n\n", "a\n \n b"].map(left)).toEqual([[3, 3], [3, 3, 3], [1, 3, 3, 0]]); // prettier-ignore
  });

  it("nothing is put in right behind a match", () => {
    const replaced = (pattern: string, text: string) => {
      const normalizer = { type: "Replace", pattern: { Regex: pattern }, content: "_" };
      const tokenizer = createTokenizer({
        tokenizer: {
          version: "1.0",
          normalizer,
          pre_tokenizer: { type: "FixedLength", length: 1 },
          model: { type: "WordLevel", vocab: { u: 0, a: 1, b: 2, x: 3, _: 4 }, unk_token: "u" },
        },
        config: {},
      });
      return tokenizer.encode(text).map((id) => "uabx_"[id]).join(""); // prettier-ignore
    };
    const texts = ["aab", "baa", "xaax", "b"];
    expect(texts.map((text) => replaced("a*", text))).toEqual(["_b_", "_b_", "_x_x_", "_b_"]);
    expect(texts.map((text) => replaced("x?", text))).toEqual(["_a_a_b_", "_b_a_a_", "_a_a_", "_b_"]); // prettier-ignore
  });

  it("an added token of one's own vocabulary does not appear among the model's words", () => {
    const added = { id: 258, content: "he", single_word: true, normalized: false, special: true };
    const tokenizer = withParts({ added_tokens: [...(tiny["added_tokens"] as Json[]), added] });
    expect(tokenizer.encode("the")).toEqual(withParts({}).encode("the"));
  });
});

describe("refusing by name", () => {
  const build = (parts: Json): Tokenizer =>
    createTokenizer({ tokenizer: { ...tiny, ...parts }, config: {} });
  const model = (options: Json): Json => ({ model: { ...tiny.model, ...options } });
  const regex = (Regex: string): Json => ({
    pre_tokenizer: { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false },
  });

  it.each([
    ["truncation", { truncation: { max_length: 4 } }, /option "truncation".*accepted: null/],
    ["padding", { padding: { pad_id: 0 } }, /option "padding".*accepted: null/],
    ["an unknown key", { postnormalizer: null }, /option "postnormalizer" of the file/],
    ["dropout", model({ dropout: 0.1 }), /option "dropout" is 0.1.*accepted: null or 0/],
    ["a subword prefix", model({ continuing_subword_prefix: "##" }), /continuing_subword_prefix/],
    ["a merge of unknown tokens", model({ merges: ["qqq www"] }), /merge 0 needs "qqq"/],
    ["a merge that is no pair", model({ merges: ["a b c"] }), /merge 0 is no pair/],
    ["an id beyond all bounds", model({ vocab: { a: 2 ** 40 } }), /option "vocab"/],
    ["another model", { model: { type: "Tiktoken" } }, /type "Tiktoken".*accepted: BPE, Unigram/],
    ["another pre-tokenizer", { pre_tokenizer: { type: "UnicodeScripts" } }, /"UnicodeScripts"/],
    ["another decoder", { decoder: { type: "CTC" } }, /decoder: type "CTC" is not implemented/],
    ["another behaviour", { pre_tokenizer: { type: "Punctuation", behavior: "isolated" } }, /"behavior" is "isolated"/],
    ["a missing option", { pre_tokenizer: { type: "Digits" } }, /lacks the option "individual_digits"/],
    ["a contradiction", { pre_tokenizer: { type: "Metaspace", replacement: "▁", add_prefix_space: false } }, /contradicts prepend_scheme "always"/],
    ["an option of an added token", { added_tokens: [{ id: 0, content: "a", stripped: true }] }, /added_tokens\[0\]: option "stripped"/],
    ["an added token with a wrong id", { added_tokens: [{ id: 9000, content: "<zz>", special: true }] }, /"<zz>" has id 9000.*next free id is 4096/],
    ["a template without ids", { post_processor: { type: "TemplateProcessing", single: [{ SpecialToken: { id: "x", type_id: 0 } }], pair: [], special_tokens: {} } }, /"x" has no ids/],
    ["ids around a text that no token has", { post_processor: { type: "BertProcessing", cls: ["a", 0], sep: ["b", 4096] } }, /no token has the id 4096/],
    ["a second sequence", { post_processor: { type: "TemplateProcessing", single: [{ Sequence: { id: "B", type_id: 0 } }], pair: [], special_tokens: {} } }, /single\[0\]: is not implemented/],
    ["a damaged map", { normalizer: { type: "Precompiled", precompiled_charsmap: "AAAA" } }, /damaged/],
    ["an atomic group", regex("(?>a|ab)c"), /atomic group/],
    ["an option for the rest", regex("(?i)abc"), /option for the rest/],
    ["a broken expression", regex("("), /is not understood/],
  ] as [string, Json, RegExp][])("%s", (_, parts, message) => {
    expect(() => build(parts)).toThrow(PlanishError);
    expect(() => build(parts)).toThrow(message);
  }); // prettier-ignore

  const unknownOptions = (
    Object.entries(OPTIONS) as [keyof typeof OPTIONS, (typeof OPTIONS)["model"]][]
  ).flatMap(([kind, types]) => Object.keys(types).map((type) => [kind, type] as const));

  it.each(unknownOptions)("an unknown option of %s %s", (kind, type) => {
    expect(() => build({ [kind]: { type, novel: 1 } })).toThrow(
      /option "novel" of \w+ is not implemented/,
    );
  });
});

describe("special tokens outside tokenizer.json", () => {
  const END = "<|endoftext|>";
  const tokenizer = tiny as Json;

  it.each([
    ["an object", { bos_token: { content: END, lstrip: false }, eos_token: END }, {}],
    ["the model's ids", {}, { bos_token_id: 0, eos_token_id: [0, 1] }],
  ])("are found as %s", (_, config: Json, modelConfig: Json) => {
    expect(createTokenizer({ tokenizer, config }, modelConfig).specialTokens).toMatchObject({
      bos_token: END,
      eos_token: END,
    });
  });

  it("stay absent where the configuration says null", () => {
    const { specialTokens } = createTokenizer(
      { tokenizer, config: { bos_token: null } },
      { bos_token_id: 0 },
    );
    expect(specialTokens).not.toHaveProperty("bos_token");
  });

  it("of the configuration are cut out of texts and left out of decoding", () => {
    // As transformers: a special token of the vocabulary that no list has is added.
    const padded = createTokenizer({ tokenizer, config: { pad_token: "he" } });
    expect(padded.encode("hello he x")).toEqual([258, 287, 79, 221, 258, 221, 88]);
    expect(padded.decode(padded.encode("hello he x"))).toBe("llo  x");
    const added_tokens_decoder = { 4096: { content: "<|im_end|>", special: true } };
    const chat = createTokenizer({ tokenizer, config: { added_tokens_decoder } });
    expect(chat.encode("a<|im_end|>")).toEqual([65, 4096]);
  });

  it("come from special_tokens_map.json, before the configuration in older checkpoints", () => {
    const map = { bos_token: END, eos_token: { content: "</s>" } };
    expect(mergeSpecialTokensMap({ eos_token: "x", a: 1 }, map)).toEqual({ ...map, a: 1 });
    const newer = { added_tokens_decoder: {}, eos_token: "x" };
    expect(mergeSpecialTokensMap(newer, map)).toMatchObject({ bos_token: END, eos_token: "x" });
    const directory = mkdtempSync(join(tmpdir(), "planish-"));
    onTestFinished(() => rmSync(directory, { recursive: true }));
    writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(tiny));
    writeFileSync(join(directory, "special_tokens_map.json"), JSON.stringify({ bos_token: END }));
    expect(createTokenizer(readTokenizerFiles(directory)).specialTokens).toEqual({
      bos_token: END,
    });
  });
});
