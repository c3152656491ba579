/**
 * Every option of `tokenizer.json` that is implemented, as data: for each kind of part and each type of it, its
 * options and the values they take. What is not in these tables is refused by name, never ignored.
 */

import { describeRange, isIntegerIn, LIMITS, shown, type Range } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { isJsonObject } from "../file-reader.js";

export type Json = Readonly<Record<string, unknown>>;
export type PartKind = "normalizer" | "pre_tokenizer" | "model" | "post_processor" | "decoder";

/** What an option takes. */
interface Option {
  /** The accepted values in words. */
  readonly accepts: string;
  readonly test: (value: unknown) => boolean;
  /** May be left out; the original library has a default then. */
  readonly optional?: boolean;
}

type Options = Readonly<Record<string, Option>>;
type Types = Readonly<Record<string, Options>>;

const optional = (option: Option): Option => ({ ...option, optional: true });
const orNull = (option: Option): Option => ({
  accepts: `${option.accepts} or null`,
  test: (value) => value === null || option.test(value),
  optional: true,
});
const only = (...values: readonly unknown[]): Option => ({
  accepts: values.map((value) => JSON.stringify(value)).join(" or "),
  test: (value) => values.includes(value),
});

const BOOLEAN: Option = { accepts: "true or false", test: (value) => typeof value === "boolean" };
const STRING: Option = { accepts: "a string", test: (value) => typeof value === "string" };
const whole = (range: Range): Option => ({
  accepts: `a whole number ${describeRange(range)}`,
  test: (value) => isIntegerIn(value, range),
});
const ID = whole({ min: 0, max: LIMITS.vocabulary - 1 });
const COUNT = whole({ min: 0, max: LIMITS.width });
const LENGTH = whole({ min: 1, max: LIMITS.width });
const CHARACTER: Option = {
  accepts: "one character",
  test: (value) => typeof value === "string" && Array.from(value).length === 1,
};
const PATTERN: Option = {
  accepts: '{"String": …} or {"Regex": …}',
  test: (value) =>
    isJsonObject(value) &&
    Object.keys(value).length === 1 &&
    (typeof value["String"] === "string" || typeof value["Regex"] === "string"),
};
const PARTS: Option = { accepts: "a list", test: Array.isArray };
const TOKEN_AND_ID: Option = {
  accepts: "[token, id]",
  test: (value) =>
    Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && ID.test(value[1]),
};
const OBJECT: Option = { accepts: "an object", test: isJsonObject };
const BEHAVIOR = only("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous");
const NONE: Option = { accepts: "null", test: (value) => value === null, optional: true };

const BYTE_LEVEL: Options = {
  add_prefix_space: BOOLEAN,
  trim_offsets: BOOLEAN,
  use_regex: optional(BOOLEAN),
};
const METASPACE: Options = {
  replacement: CHARACTER,
  prepend_scheme: optional(only("always", "first", "never")),
  split: optional(BOOLEAN),
  // Written by older versions; it must agree with prepend_scheme (parts() of the pre-tokenizers checks that).
  add_prefix_space: optional(BOOLEAN),
  str_rep: optional(STRING),
};
const VOCABULARY: Option = {
  accepts: "an object of whole numbers",
  test: (value) => isJsonObject(value) && Object.values(value).every(ID.test),
};

/** The tables: kind, type, option. */
export const OPTIONS: Readonly<Record<PartKind, Types>> = {
  normalizer: {
    NFC: {},
    NFD: {},
    NFKC: {},
    NFKD: {},
    Nmt: {},
    Lowercase: {},
    StripAccents: {},
    ByteLevel: {},
    Strip: { strip_left: BOOLEAN, strip_right: BOOLEAN },
    Prepend: { prepend: STRING },
    Replace: { pattern: PATTERN, content: STRING },
    Precompiled: { precompiled_charsmap: STRING },
    BertNormalizer: {
      clean_text: BOOLEAN,
      handle_chinese_chars: BOOLEAN,
      strip_accents: orNull(BOOLEAN),
      lowercase: BOOLEAN,
    },
    Sequence: { normalizers: PARTS },
  },
  pre_tokenizer: {
    ByteLevel: BYTE_LEVEL,
    Metaspace: METASPACE,
    Split: { pattern: PATTERN, behavior: BEHAVIOR, invert: BOOLEAN },
    Punctuation: { behavior: optional(BEHAVIOR) },
    Digits: { individual_digits: BOOLEAN },
    Whitespace: {},
    WhitespaceSplit: {},
    BertPreTokenizer: {},
    CharDelimiterSplit: { delimiter: CHARACTER },
    FixedLength: { length: optional(LENGTH) },
    Sequence: { pretokenizers: PARTS },
  },
  model: {
    BPE: {
      // A dropout would make ids a matter of chance.
      dropout: { ...only(null, 0), optional: true },
      unk_token: orNull(STRING),
      continuing_subword_prefix: { ...only(null, ""), optional: true },
      end_of_word_suffix: orNull(STRING),
      fuse_unk: optional(BOOLEAN),
      byte_fallback: optional(BOOLEAN),
      ignore_merges: optional(BOOLEAN),
      vocab: VOCABULARY,
      merges: PARTS,
    },
    Unigram: {
      unk_id: orNull(ID),
      byte_fallback: optional(BOOLEAN),
      vocab: {
        accepts: "a list of [token, score]",
        test: (value) =>
          Array.isArray(value) &&
          value.length > 0 &&
          value.every(
            (entry) =>
              Array.isArray(entry) &&
              entry.length === 2 &&
              typeof entry[0] === "string" &&
              Number.isFinite(entry[1]),
          ),
      },
    },
    WordPiece: {
      unk_token: STRING,
      continuing_subword_prefix: STRING,
      max_input_chars_per_word: LENGTH,
      vocab: VOCABULARY,
    },
    WordLevel: { unk_token: STRING, vocab: VOCABULARY },
  },
  post_processor: {
    ByteLevel: BYTE_LEVEL,
    TemplateProcessing: { single: PARTS, pair: PARTS, special_tokens: OBJECT },
    BertProcessing: { sep: TOKEN_AND_ID, cls: TOKEN_AND_ID },
    RobertaProcessing: {
      sep: TOKEN_AND_ID,
      cls: TOKEN_AND_ID,
      trim_offsets: BOOLEAN,
      add_prefix_space: BOOLEAN,
    },
    Sequence: { processors: PARTS },
  },
  decoder: {
    ByteLevel: BYTE_LEVEL,
    Metaspace: METASPACE,
    BPEDecoder: { suffix: STRING },
    WordPiece: { prefix: STRING, cleanup: BOOLEAN },
    Replace: { pattern: PATTERN, content: STRING },
    Strip: { content: CHARACTER, start: COUNT, stop: COUNT },
    Fuse: {},
    ByteFallback: {},
    Sequence: { decoders: PARTS },
  },
};

const ADDED_TOKEN: Options = {
  id: ID,
  content: STRING,
  single_word: optional(BOOLEAN),
  lstrip: optional(BOOLEAN),
  rstrip: optional(BOOLEAN),
  normalized: optional(BOOLEAN),
  special: optional(BOOLEAN),
};

const PART: Option = {
  accepts: "an object or null",
  test: (v) => v === null || isJsonObject(v),
  optional: true,
};

/** The top level. Truncation and padding would change texts behind the caller's back. */
const FILE: Options = {
  version: optional(only("1.0")),
  truncation: NONE,
  padding: NONE,
  added_tokens: optional(PARTS),
  normalizer: PART,
  pre_tokenizer: PART,
  post_processor: PART,
  decoder: PART,
  model: OBJECT,
};

/** One part of the tokenizer, its type and options checked. */
export interface Part {
  readonly type: string;
  /** Where it is in the file, for errors. */
  readonly path: string;
  readonly options: Json;
}

/** Checks the top level of a tokenizer.json. Throws PlanishError naming what is not implemented. */
export function checkFile(tokenizer: Json): void {
  checkOptions("the file", FILE, tokenizer, "tokenizer.json");
}

/** Checks one added token. */
export function checkAddedToken(token: unknown, index: number): Json {
  const path = `added_tokens[${index}]`;
  if (!isJsonObject(token)) fail(path, "must be an object");
  checkOptions("an added token", ADDED_TOKEN, token, path);
  return token;
}

/** Checks a part's type and options. Throws PlanishError naming what is not implemented. */
export function checkPart(kind: PartKind, value: unknown, path: string = kind): Part {
  if (!isJsonObject(value)) fail(path, "must be an object with a type");
  const type = value["type"];
  const types = OPTIONS[kind];
  if (typeof type !== "string" || !Object.hasOwn(types, type)) {
    fail(
      path,
      `type ${shown(type)} is not implemented (accepted: ${Object.keys(types).join(", ")})`,
    );
  }
  const { type: _, ...options } = value;
  checkOptions(type, types[type], options, path);
  return { type, path, options };
}

/** The parts of a Sequence, checked. */
export function sequence(kind: PartKind, part: Part, option: string): Part[] {
  return (part.options[option] as unknown[]).map((item, i) =>
    checkPart(kind, item, `${part.path}.${option}[${i}]`),
  );
}

function checkOptions(owner: string, options: Options, given: Json, path: string): void {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(options, name)) {
      const accepted = Object.keys(options).join(", ") || "none";
      fail(path, `option ${shown(name)} of ${owner} is not implemented (accepted: ${accepted})`);
    }
  }
  for (const [name, option] of Object.entries(options)) {
    if (!Object.hasOwn(given, name)) {
      if (!option.optional) fail(path, `lacks the option ${shown(name)} (${option.accepts})`);
    } else if (!option.test(given[name])) {
      fail(
        path,
        `option ${shown(name)} is ${shown(given[name])}, which is not implemented (accepted: ${option.accepts})`,
      );
    }
  }
}

/** Throws the error of one place in the file. */
export function fail(path: string, problem: string): never {
  throw new PlanishError(
    `cannot build the tokenizer: ${path === "tokenizer.json" ? path : `tokenizer.json, ${path}`}: ${problem}`,
  );
}
