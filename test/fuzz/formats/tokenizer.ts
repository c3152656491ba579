/** tokenizer.json, and the small files beside it that name special tokens. */
import { readFileSync } from "node:fs";
import { isJsonObject } from "../../../src/checkpoint/file-reader.js";
import { readTokenizerFiles } from "../../../src/checkpoint/hf-directory.js";
import { createTokenizer, type Tokenizer } from "../../../src/checkpoint/tokenizer.js";
import { LIMITS, parseJson } from "../../../src/common/bounds.js";
import { PlanishError } from "../../../src/common/errors.js";
import { ensure, type Target } from "../target.js";
import { decode, encode, JsonBase, pick } from "../mutate.js";
import { scratch, scratchFile } from "../scratch.js";

type Json = Record<string, unknown>;

/** A real tokenizer with its first words only. */
function smallTokenizer(words: number): Json {
  const file = new URL("../../../models/tiny-llama/tokenizer.json", import.meta.url);
  const full = JSON.parse(readFileSync(file, "utf8")) as Json & { model: Json };
  const vocabulary = Object.entries(full.model["vocab"] as Record<string, number>).filter(
    ([, id]) => id < words,
  );
  const known = new Set(vocabulary.map(([token]) => token));
  const merges = (full.model["merges"] as (string | string[])[]).filter((merge) =>
    known.has((typeof merge === "string" ? merge.split(" ") : merge).join("")),
  );
  return { ...full, model: { ...full.model, vocab: Object.fromEntries(vocabulary), merges } };
}

const SMALL = smallTokenizer(280);

/** As SentencePiece models are converted. */
const METASPACE: Json = {
  ...SMALL,
  normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, { type: "Replace", pattern: { String: " " }, content: "▁" }] },
  pre_tokenizer: null,
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
  },
  decoder: { type: "Sequence", decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }, { type: "Strip", content: " ", start: 1, stop: 0 }] },
  added_tokens: [{ id: 0, content: "<unk>", special: true }, { id: 1, content: "<s>", special: true }, { id: 2, content: "</s>", special: true }],
  model: {
    type: "BPE", dropout: null, unk_token: "<unk>", fuse_unk: true, byte_fallback: true, ignore_merges: false,
    vocab: { "<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, a: 5, b: 6, "▁a": 7, H: 8, i: 9, Hi: 10, "▁Hi": 11 },
    merges: ["▁ a", "H i", "▁ Hi"],
  },
}; // prettier-ignore

const VALUES = [
  "BPE", "WordPiece", "Unigram", "WordLevel", "ByteLevel", "Metaspace", "NFC", "NFKC", "Lowercase", "Isolated", "Removed",
  "MergedWithNext", "Contiguous", { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  { type: "Split", pattern: { Regex: "\\s+" }, behavior: "Isolated", invert: true },
  { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Isolated", invert: false },
  { type: "Split", pattern: { Regex: "(" }, behavior: "Removed", invert: false },
  { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false },
  { type: "Digits", individual_digits: true }, { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true },
  { type: "Punctuation", behavior: "Isolated" }, { type: "Sequence", pretokenizers: [] }, { type: "Sequence", normalizers: [] },
  { type: "Replace", pattern: { Regex: "a*" }, content: "b" }, { type: "Precompiled", precompiled_charsmap: "AAAA" },
  { type: "Strip", strip_left: true, strip_right: true }, { type: "NoSuchThing" }, { type: "WordPiece", prefix: "##", cleanup: true },
  { id: 5, content: "<mask>", single_word: true, lstrip: true, rstrip: true, normalized: true, special: false },
  { id: 2 ** 40, content: "<far>", special: true }, "a b", ["a", "b"],
]; // prettier-ignore

const KEYS = ["end_of_word_suffix", "continuing_subword_prefix", "dropout", "ignore_merges", "byte_fallback", "truncation", "padding"]; // prettier-ignore

/** The big lists are one place each: mutations go to what steers the reading. */
function base(tokenizer: Json): JsonBase {
  return new JsonBase(tokenizer, KEYS, VALUES);
}

/** Most of the vocabulary cut away, so that places in it are not most of all places. */
const BASES = [base(smallTokenizer(40)), base(METASPACE)];

const TEXTS = ["Hello world", " a\n<s> Hi  it's 12 é 😀", ""];

function useTokenizer(tokenizer: Tokenizer): void {
  const { vocabSize } = tokenizer;
  ensure(
    Number.isSafeInteger(vocabSize) && vocabSize >= 0 && vocabSize <= LIMITS.vocabulary,
    `${vocabSize} tokens`,
  );
  for (const text of TEXTS) {
    const ids = tokenizer.encode(text);
    for (const id of ids)
      ensure(
        Number.isSafeInteger(id) && id >= 0 && id < vocabSize,
        `token id ${String(id)} of ${vocabSize}`,
      );
    ensure(typeof tokenizer.decode(ids) === "string", "decoded to no text");
  }
  for (const id of [...tokenizer.eosTokenIds, tokenizer.bosTokenId ?? 0])
    ensure(Number.isSafeInteger(id) && id >= 0, `a special id of ${id}`);
  ensure(
    ["string", "undefined"].includes(typeof tokenizer.chatTemplate),
    "a template that is no text",
  );
  for (const text of Object.values(tokenizer.specialTokens))
    ensure(typeof text === "string", "a token that is no text");
}

export const tokenizerTarget: Target = {
  name: "tokenizer.json",
  generate: (random) => encode(pick(random, BASES).mutated(random)),
  run(input) {
    const tokenizer = parseJson(decode(input), "tokenizer.json");
    if (!isJsonObject(tokenizer)) throw new PlanishError("tokenizer.json must hold an object");
    useTokenizer(createTokenizer({ tokenizer, config: {} }));
  },
};

const BESIDE = {
  "tokenizer_config.json": {
    bos_token: "<s>",
    eos_token: { content: "</s>", lstrip: false, special: true },
    unk_token: "<unk>",
    pad_token: null,
    add_bos_token: true,
    chat_template: "{{ messages }}",
    added_tokens_decoder: {
      "1": { content: "<s>", special: true },
      "2": { content: "</s>", special: true },
    },
    model_max_length: 1e30,
    tokenizer_class: "LlamaTokenizer",
  },
  "special_tokens_map.json": {
    bos_token: "<s>",
    eos_token: { content: "</s>" },
    additional_special_tokens: ["<s>"],
  },
  "generation_config.json": {
    bos_token_id: 1,
    eos_token_id: [2, 1],
    pad_token_id: 0,
    temperature: 0.6,
    top_p: 0.9,
  },
  "config.json": { bos_token_id: 1, eos_token_id: 2, vocab_size: 12 },
};
const SETTINGS = new JsonBase(BESIDE, ["bos_token_id", "pad_token_id", "mask_token"], [
  [{ name: "default", template: "{{ messages }}" }, { name: "tool_use", template: "x" }],
  { content: "<s>" }, [2], [2, 4294967295], "<0x0A>",
]); // prettier-ignore

let written: string | undefined;

export const tokenSettingsTarget: Target = {
  name: "token settings",
  generate: (random) => encode(SETTINGS.mutated(random)),
  run(input) {
    if (written !== scratch()) scratchFile("tokenizer.json", JSON.stringify(METASPACE));
    written = scratch();
    const files = parseJson(decode(input), "the files");
    if (!isJsonObject(files)) throw new PlanishError("no files");
    for (const name of Object.keys(BESIDE)) scratchFile(name, JSON.stringify(files[name] ?? {}));
    const [config, generation] = [files["config.json"], files["generation_config.json"]];
    useTokenizer(
      createTokenizer(
        readTokenizerFiles(scratch()),
        isJsonObject(config) ? config : {},
        isJsonObject(generation) ? generation : {},
      ),
    );
  },
};
