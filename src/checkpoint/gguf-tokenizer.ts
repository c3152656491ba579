/**
 * `tokenizer.json` rebuilt from GGUF metadata: byte-level BPE (`tokenizer.ggml.model` "gpt2") and
 * SentencePiece BPE ("llama"), with the pre-tokenizers of the supported model families.
 */

import { isDeepStrictEqual } from "node:util";
import { LIMITS, quoted } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { TokenizerFiles } from "./checkpoint.js";
import type { GgufMetadata } from "./gguf-metadata.js";

type Json = Record<string, unknown>;

/** What `tokenizer.ggml.token_type` says of a token. */
export const TOKEN_TYPES = {
  normal: 1,
  unknown: 2,
  control: 3,
  user: 4,
  unused: 5,
  byte: 6,
} as const;
const { unknown: TYPE_UNKNOWN, control: TYPE_CONTROL, user: TYPE_USER } = TOKEN_TYPES;

const BYTE_LEVEL: Json = {
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: true,
};
const WITHOUT_REGEX: Json = { ...BYTE_LEVEL, use_regex: false };

/** Words of Llama 3 and Qwen 2; they differ in how many digits make a token. */
function wordSplit(digits: string): Json {
  const pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" +
    digits +
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  return {
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
      WITHOUT_REGEX,
    ],
  };
}

interface PreTokenizer {
  readonly preTokenizer: Json;
  readonly normalizer?: Json;
  /** Words that are in the vocabulary whole are not built up by merges. */
  readonly ignoreMerges?: boolean;
  /** Whether a beginning-of-sequence token is put first when the file does not say. */
  readonly addBos?: boolean;
}

const LLAMA3: PreTokenizer = {
  preTokenizer: wordSplit("\\p{N}{1,3}"),
  ignoreMerges: true,
  addBos: true,
};
const QWEN2: PreTokenizer = { preTokenizer: wordSplit("\\p{N}"), normalizer: { type: "NFC" } };
const GPT2: PreTokenizer = { preTokenizer: BYTE_LEVEL };
const SMOLLM: PreTokenizer = {
  preTokenizer: {
    type: "Sequence",
    pretokenizers: [{ type: "Digits", individual_digits: true }, BYTE_LEVEL],
  },
};

/** Words as Llama 3 has them, all of them built up by merges. */
const WORDS: PreTokenizer = { preTokenizer: wordSplit("\\p{N}{1,3}") };
/** DeepSeek V3: digits by threes, then runs of Chinese and Japanese, then words. */
const DEEPSEEK3: PreTokenizer = {
  preTokenizer: {
    type: "Sequence",
    pretokenizers: [
      ...[
        "\\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|" +
          "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" +
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
      ].map((pattern) => ({
        type: "Split",
        pattern: { Regex: pattern },
        behavior: "Isolated",
        invert: false,
      })),
      WITHOUT_REGEX,
    ],
  },
};

/**
 * By `tokenizer.ggml.pre`; which of them split alike is llama.cpp's reading. "default" stands in files older than that key, and is
 * GPT-2's.
 */
const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  ...{ smollm: SMOLLM, starcoder: SMOLLM, refact: SMOLLM, "command-r": SMOLLM, exaone: SMOLLM },
  ...{ dbrx: WORDS, "smaug-bpe": WORDS, glm4: WORDS, "chatglm-bpe": WORDS },
  stablelm2: { preTokenizer: QWEN2.preTokenizer },
  "deepseek-v3": DEEPSEEK3,
  ...{ "gpt-2": GPT2, olmo: GPT2 },
  "llama-bpe": LLAMA3,
  qwen2: QWEN2,
  default: GPT2,
};

/**
 * GGUF's name for the rules by which a byte-level tokenizer cuts text into words.
 * @throws PlanishError when they are none of those with a name that is read here.
 */
export function namedPreTokenizer(tokenizer: Readonly<Json>, file: string): string {
  const wanted = rules(tokenizer["normalizer"], tokenizer["pre_tokenizer"]);
  const model = tokenizer["model"] as Json;
  const ignoresMerges = model["ignore_merges"] === true;
  const names = Object.keys(PRE_TOKENIZERS).filter((name) => name !== "default");
  const found = names.find((name) => {
    const { normalizer, preTokenizer, ignoreMerges = false } = PRE_TOKENIZERS[name];
    return (
      ignoreMerges === ignoresMerges && isDeepStrictEqual(rules(normalizer, preTokenizer), wanted)
    );
  });
  if (found === undefined)
    throw new PlanishError(
      `${file}: its tokenizer cuts words by rules that are none of ${names.join(", ")}, which are those that GGUF files are written with`,
    );
  return found;
}

/** Normalizers and pre-tokenizers one after the other, with their defaults, and without what does not change tokens. */
function rules(...parts: readonly unknown[]): unknown[] {
  return parts.flatMap((part) => {
    if (part === null || part === undefined) return [];
    const { type, trim_offsets: _, ...rest } = part as Json;
    const inner = rest["normalizers"] ?? rest["pretokenizers"];
    if (type === "Sequence" && Array.isArray(inner)) return rules(...(inner as unknown[]));
    const defaults =
      type === "ByteLevel" ? { use_regex: true } : type === "Split" ? { invert: false } : {};
    return [{ type, ...defaults, ...rest }];
  });
}

/** Tokens that end a turn or a text by convention, whatever `eos_token_id` says. */
const END_TOKENS = [
  "<end_of_turn>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|im_end|>",
  "<|end_of_text|>",
  "<|endoftext|>",
];

/** Rebuilds the tokenizer. Throws PlanishError when the metadata hold none, or one of another kind. */
export function rebuildTokenizer(metadata: GgufMetadata): TokenizerFiles {
  const model = metadata.string("tokenizer.ggml.model");
  if (model === undefined) metadata.fail("has no tokenizer in its metadata");
  const tokens = metadata.required(
    "tokenizer.ggml.tokens",
    metadata.strings("tokenizer.ggml.tokens"),
  );
  const types = metadata.numbers("tokenizer.ggml.token_type");
  if (types && types.length !== tokens.length) {
    metadata.fail(`has ${tokens.length} tokens but ${types.length} token types`);
  }
  const isSpecial = (id: number): boolean => types?.[id] === TYPE_CONTROL;
  const addedTokens = tokens.flatMap((content, id) =>
    isSpecial(id) ||
    types?.[id] === TYPE_USER ||
    (model === "llama" && types?.[id] === TYPE_UNKNOWN)
      ? [added(id, content, types?.[id] !== TYPE_USER)]
      : [],
  );
  const config = tokenizerConfig(metadata, tokens);
  const base = { version: "1.0", truncation: null, padding: null, added_tokens: addedTokens };
  switch (model) {
    case "gpt2":
      return { tokenizer: { ...base, ...byteLevelBpe(metadata, tokens, config) }, config };
    case "llama":
      return {
        tokenizer: { ...base, ...sentencePieceBpe(metadata, tokens, types, config) },
        config,
      };
    default:
      return metadata.fail(
        `tokenizer model ${quoted(model, 40)} is not supported (accepted: gpt2, llama)`,
      );
  }
}

/** Ids that end a generation: those the metadata name, and end-of-turn tokens by their spelling. */
export function ggufEosTokenIds(metadata: GgufMetadata): number[] {
  const ids = new Set<number>();
  const size = metadata.strings("tokenizer.ggml.tokens")?.length ?? LIMITS.vocabulary;
  for (const name of ["eos", "eot", "eom"]) {
    const id = metadata.tokenId(`tokenizer.ggml.${name}_token_id`, size);
    if (id !== undefined) ids.add(id);
  }
  const types = metadata.numbers("tokenizer.ggml.token_type");
  metadata.strings("tokenizer.ggml.tokens")?.forEach((token, id) => {
    if (types?.[id] === TYPE_CONTROL && END_TOKENS.includes(token)) ids.add(id);
  });
  return [...ids];
}

function added(id: number, content: string, special: boolean): Json {
  return {
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special,
  };
}

/** Ids by spelling. Repeats in the list keep the first id. `fromEntries` also takes "__proto__" as a key. */
function vocabulary(tokens: readonly string[]): Json {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (!ids.has(token)) ids.set(token, id);
  });
  return Object.fromEntries(ids);
}

function tokenizerConfig(metadata: GgufMetadata, tokens: readonly string[]): Json {
  const config: Json = {};
  for (const [name, key] of [
    ["bos_token", "bos"],
    ["eos_token", "eos"],
    ["unk_token", "unknown"],
    ["pad_token", "padding"],
  ]) {
    const id = metadata.tokenId(`tokenizer.ggml.${key}_token_id`, tokens.length);
    if (id === undefined) continue;
    config[name] = tokens[id];
  }
  const template = metadata.string("tokenizer.chat_template");
  if (template !== undefined) config["chat_template"] = template;
  return config;
}

/** Puts the beginning-of-sequence token first, and the end token last, where the metadata ask for it. */
function postProcessor(metadata: GgufMetadata, config: Json, addBosByDefault: boolean): Json {
  const bos = config["bos_token"];
  const eos = config["eos_token"];
  const addBos = metadata.boolean("tokenizer.ggml.add_bos_token") ?? addBosByDefault;
  const addEos = metadata.boolean("tokenizer.ggml.add_eos_token") ?? false;
  const first = addBos && typeof bos === "string" ? bos : undefined;
  const last = addEos && typeof eos === "string" ? eos : undefined;
  const special = (token: string | undefined): Json[] =>
    token === undefined ? [] : [{ SpecialToken: { id: token, type_id: 0 } }];
  const sequence = (id: string): Json[] => [
    ...special(first),
    { Sequence: { id, type_id: 0 } },
    ...special(last),
  ];
  const specialTokens: Json = {};
  for (const [token, key] of [
    [first, "bos"],
    [last, "eos"],
  ]) {
    if (token === undefined) continue;
    const id = metadata.count(`tokenizer.ggml.${key}_token_id`);
    specialTokens[token] = { id: token, ids: [id], tokens: [token] };
  }
  return {
    type: "TemplateProcessing",
    single: sequence("A"),
    pair: [...sequence("A"), ...sequence("B")],
    special_tokens: specialTokens,
  };
}

function byteLevelBpe(metadata: GgufMetadata, tokens: readonly string[], config: Json): Json {
  const named = metadata.string("tokenizer.ggml.pre") ?? "default";
  if (!Object.hasOwn(PRE_TOKENIZERS, named)) {
    metadata.fail(
      `pre-tokenizer ${quoted(named, 40)} is not supported (accepted: ${Object.keys(PRE_TOKENIZERS).join(", ")}); use the model's directory with its tokenizer.json`,
    );
  }
  const pre = PRE_TOKENIZERS[named];
  const merges = metadata.required(
    "tokenizer.ggml.merges",
    metadata.strings("tokenizer.ggml.merges"),
  );
  const pairs = merges.map((merge, i) => {
    // A space parts the two halves; byte-level spellings hold no space of their own.
    const parts = merge.split(" ");
    if (parts.length !== 2 || parts[0] === "" || parts[1] === "") {
      metadata.fail(`merge ${i} of the tokenizer, ${quoted(merge, 80)}, is no pair`);
    }
    return parts;
  });
  return {
    normalizer: pre.normalizer ?? null,
    pre_tokenizer: pre.preTokenizer,
    post_processor: postProcessor(metadata, config, pre.addBos ?? false),
    decoder: { ...BYTE_LEVEL, add_prefix_space: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.ignoreMerges ?? false,
      vocab: vocabulary(tokens),
      merges: pairs,
    },
  };
}

function sentencePieceBpe(
  metadata: GgufMetadata,
  tokens: readonly string[],
  types: ArrayLike<number> | undefined,
  config: Json,
): Json {
  const scores = metadata.required(
    "tokenizer.ggml.scores",
    metadata.numbers("tokenizer.ggml.scores"),
  );
  if (scores.length !== tokens.length) {
    metadata.fail(`has ${tokens.length} tokens but ${scores.length} scores`);
  }
  const addSpace = metadata.boolean("tokenizer.ggml.add_space_prefix") ?? true;
  const unknown =
    config["unk_token"] ?? tokens.find((_, id) => types?.[id] === TYPE_UNKNOWN) ?? null;
  const replaceSpaces = { type: "Replace", pattern: { String: " " }, content: "▁" };
  return {
    normalizer: {
      type: "Sequence",
      normalizers: addSpace ? [{ type: "Prepend", prepend: "▁" }, replaceSpaces] : [replaceSpaces],
    },
    pre_tokenizer: null,
    post_processor: postProcessor(metadata, config, true),
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(addSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unknown,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: vocabulary(tokens),
      merges: mergesFromScores(tokens, scores, types),
    },
  };
}

/** Longest token whose splittings are tried; longer ones cannot be reached by pairs in published models. */
const MAX_TOKEN_CHARS = 256;

/**
 * Merges equivalent to SentencePiece's rule "join the neighbours whose union has the best score": every way
 * of splitting a token into two tokens, the best-scored union first (ties by id, as ids follow the order of
 * training).
 */
export function mergesFromScores(
  tokens: readonly string[],
  scores: ArrayLike<number>,
  types: ArrayLike<number> | undefined,
): [string, string][] {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    // Only normal tokens take part: control, unknown and byte tokens are never made by merging.
    if ((types?.[id] ?? 1) === 1 || types?.[id] === TYPE_USER) ids.set(token, id);
  });
  const found: { left: string; right: string; id: number; rank: number }[] = [];
  for (const [token, id] of ids) {
    const chars = Array.from(token);
    if (chars.length < 2 || chars.length > MAX_TOKEN_CHARS) continue;
    let left = "";
    for (let cut = 1; cut < chars.length; cut++) {
      left += chars[cut - 1];
      const right = token.slice(left.length);
      const leftId = ids.get(left);
      const rightId = ids.get(right);
      if (leftId !== undefined && rightId !== undefined) {
        found.push({ left, right, id, rank: leftId });
      }
    }
  }
  found.sort((a, b) => scores[b.id] - scores[a.id] || a.id - b.id || a.rank - b.rank);
  return found.map(({ left, right }) => [left, right]);
}
