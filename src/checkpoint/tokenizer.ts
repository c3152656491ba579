/**
 * Text to token ids and back, over `@huggingface/tokenizers`. Decoding is faithful to the tokens: the
 * clean-up of spaces before punctuation that some tokenizer configurations ask for is not applied, since it
 * changes text (code above all) and cannot be done while streaming.
 */

import * as library from "@huggingface/tokenizers";
import { isIntegerIn } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { Checkpoint, TokenizerFiles } from "./checkpoint.js";
import { isJsonObject } from "./file-reader.js";
import { adaptTokenizerJson } from "./tokenizer-json.js";

/**
 * The part of the library that is used. Its own declarations import one another without file endings, which
 * TypeScript does not resolve for ES modules.
 */
interface LibraryTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
}

const { Tokenizer: LibraryTokenizer } = library as unknown as {
  Tokenizer: new (tokenizer: object, config: object) => LibraryTokenizer;
};

export interface EncodeOptions {
  /** Adds what the tokenizer puts around a text, such as a beginning-of-sequence token (default true). */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leaves out special tokens (default true). */
  readonly skipSpecialTokens?: boolean;
}

/** Turns ids into text as they come; see `Tokenizer.stream`. */
export interface StreamingDecoder {
  /** Takes the next id; returns the text that is now certain, which may be empty. */
  push(id: number): string;
  /** Returns what was held back; the decoder is then empty. */
  flush(): string;
}

export interface Tokenizer {
  /** Token ids of a text. Special tokens written out in the text become their ids. */
  encode(text: string, options?: EncodeOptions): number[];
  /** Text of token ids. Throws PlanishError on an id outside the vocabulary. */
  decode(ids: ArrayLike<number>, options?: DecodeOptions): string;
  /**
   * A decoder for one stream of ids: the concatenation of what it returns is `decode` of all ids. A
   * character whose bytes are spread over several tokens comes out when its last byte has come.
   */
  stream(options?: DecodeOptions): StreamingDecoder;
  readonly bosTokenId: number | undefined;
  /** Every id that ends a generation, without repeats. */
  readonly eosTokenIds: readonly number[];
  /** Largest id plus one; a model's `vocab_size` may be padded beyond it. */
  readonly vocabSize: number;
  /** Jinja source of the chat template, when there is one. */
  readonly chatTemplate: string | undefined;
  /** The id of a token as it is spelled in the vocabulary. */
  tokenToId(token: string): number | undefined;
  /** The spelling of an id in the vocabulary. */
  idToToken(id: number): string | undefined;
  /** The strings behind `bos_token`, `eos_token`, `unk_token` and `pad_token`, which chat templates use. */
  readonly specialTokens: Readonly<Record<string, string>>;
}

/**
 * Builds a tokenizer from its parsed files. `config` and `generationConfig` are the model's, for the ids that
 * end a generation and for `bos_token_id`. Throws PlanishError when the files don't make a tokenizer.
 */
export function createTokenizer(
  files: TokenizerFiles,
  config: Readonly<Record<string, unknown>> = {},
  generationConfig: Readonly<Record<string, unknown>> = {},
): Tokenizer {
  const inner = build(files);
  const specialTokens = specialTokenStrings(files.config);
  const idOf = (name: string): number | undefined =>
    specialTokens[name] === undefined ? undefined : inner.token_to_id(specialTokens[name]);
  const eosTokenIds = new Set<number>();
  for (const ids of [generationConfig["eos_token_id"], config["eos_token_id"], idOf("eos_token")]) {
    for (const id of Array.isArray(ids) ? ids : [ids]) {
      if (typeof id === "number" && Number.isSafeInteger(id) && id >= 0) eosTokenIds.add(id);
    }
  }
  const configBos = config["bos_token_id"];
  const vocabSize = largestId(files.tokenizer) + 1;

  const decode = (
    ids: ArrayLike<number>,
    { skipSpecialTokens = true }: DecodeOptions = {},
  ): string => {
    if (ids.length === 0) return "";
    const list = Array.from(ids);
    for (const id of list) {
      if (inner.id_to_token(id) === undefined) {
        throw new PlanishError(
          `cannot decode token id ${id}: the tokenizer has no such id (it has 0 to ${vocabSize - 1})`,
        );
      }
    }
    return inner.decode(list, {
      skip_special_tokens: skipSpecialTokens,
      clean_up_tokenization_spaces: false,
    });
  };

  return {
    encode: (text, { addSpecialTokens = true } = {}) =>
      text === "" && !addSpecialTokens
        ? []
        : inner.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode,
    stream: (options) => streamingDecoder((ids) => decode(ids, options)),
    bosTokenId: idOf("bos_token") ?? (isIntegerIn(configBos, { min: 0 }) ? configBos : undefined),
    eosTokenIds: [...eosTokenIds],
    vocabSize,
    chatTemplate: chatTemplate(files.config["chat_template"]),
    tokenToId: (token) => inner.token_to_id(token),
    idToToken: (id) => inner.id_to_token(id),
    specialTokens,
  };
}

/** The tokenizer of a checkpoint. Throws PlanishError when the checkpoint has none. */
export function loadTokenizer(checkpoint: Checkpoint): Tokenizer {
  return createTokenizer(
    checkpoint.tokenizerFiles(),
    checkpoint.config,
    checkpoint.generationConfig ?? {},
  );
}

function build(files: TokenizerFiles): LibraryTokenizer {
  if (!isJsonObject(files.tokenizer["model"])) {
    throw new PlanishError(
      "cannot build the tokenizer: tokenizer.json has no model; copy the tokenizer files of the model again",
    );
  }
  try {
    return new LibraryTokenizer(adaptTokenizerJson(files.tokenizer), files.config);
  } catch (error) {
    throw new PlanishError(
      `cannot build the tokenizer from tokenizer.json: ${(error as Error).message.replace(/\s+/g, " ")}`,
      { cause: error },
    );
  }
}

function specialTokenStrings(config: Record<string, unknown>): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of ["bos_token", "eos_token", "unk_token", "pad_token"]) {
    const value = config[name];
    const text = isJsonObject(value) ? value["content"] : value;
    if (typeof text === "string") found[name] = text;
  }
  return found;
}

/** A template is one string, or a list of named ones, of which "default" is meant for chat. */
function chatTemplate(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return undefined;
  const named = value.filter(isJsonObject);
  const chosen = named.find((item) => item["name"] === "default") ?? named[0];
  return typeof chosen?.["template"] === "string" ? chosen["template"] : undefined;
}

function largestId(tokenizer: Record<string, unknown>): number {
  let largest = -1;
  const model = tokenizer["model"];
  const vocab = isJsonObject(model) ? model["vocab"] : undefined;
  if (Array.isArray(vocab)) largest = vocab.length - 1;
  else if (isJsonObject(vocab)) {
    for (const id of Object.values(vocab)) if (typeof id === "number" && id > largest) largest = id;
  }
  const added = tokenizer["added_tokens"];
  for (const token of Array.isArray(added) ? added : []) {
    const id = isJsonObject(token) ? token["id"] : undefined;
    if (typeof id === "number" && id > largest) largest = id;
  }
  return largest;
}

/** Ids after which unfinished bytes are taken for garbage: a UTF-8 character has at most 4 bytes. */
const MAX_HELD_IDS = 8;

/**
 * Decodes a sliding window: ids already emitted but kept as context (decoders strip a space at the start of
 * what they are given), then ids held back because their text still ends in an incomplete character.
 */
function streamingDecoder(decode: (ids: number[]) => string): StreamingDecoder {
  let window: number[] = [];
  let emittedIds = 0;
  let emittedText = "";

  const emit = (text: string): string => {
    const fresh = text.slice(emittedText.length);
    const held = window.slice(emittedIds);
    const heldText = decode(held);
    // The held ids become the context only if they have text of their own: after a window of special
    // tokens or of one stripped space, the next decoding would strip a space in mid-text.
    if (heldText !== "") {
      window = held;
      emittedText = heldText;
    } else {
      emittedText = text;
    }
    emittedIds = window.length;
    return fresh;
  };

  return {
    push(id) {
      window.push(id);
      const text = decode(window);
      const incomplete = text.endsWith("\ufffd") && window.length - emittedIds < MAX_HELD_IDS;
      return incomplete ? "" : emit(text);
    },
    flush() {
      const fresh = decode(window).slice(emittedText.length);
      window = [];
      emittedIds = 0;
      emittedText = "";
      return fresh;
    },
  };
}
