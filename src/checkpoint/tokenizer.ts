/**
 * Text to token ids and back, as `tokenizer.json` says (tokenizer/pipeline.ts). Decoding is faithful to the tokens: the
 * clean-up of spaces before punctuation that some tokenizer configurations ask for is not applied, since it
 * changes text (code above all) and cannot be done while streaming.
 */

import { isIntegerIn, oneLine } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { Checkpoint, TokenizerFiles } from "./checkpoint.js";
import { isJsonObject } from "./file-reader.js";
import { completeAddedTokens, specialTokenStrings } from "./tokenizer/special-tokens.js";
import { TokenizerPipeline } from "./tokenizer/pipeline.js";

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
   * character whose bytes are spread over several tokens comes out when its last byte has come. Where byte
   * tokens of SentencePiece make no text together, characters that have come out among them stay.
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
  const specialTokens = specialTokenStrings(files.config, [generationConfig, config], (id) =>
    inner.idToToken(id),
  );
  const idOf = (name: string): number | undefined =>
    specialTokens[name] === undefined ? undefined : inner.tokenToId(specialTokens[name]);
  const eosTokenIds = new Set<number>();
  for (const ids of [generationConfig["eos_token_id"], config["eos_token_id"], idOf("eos_token")]) {
    for (const id of Array.isArray(ids) ? ids : [ids]) {
      if (typeof id === "number" && Number.isSafeInteger(id) && id >= 0) eosTokenIds.add(id);
    }
  }
  const configBos = config["bos_token_id"];

  const decode = (
    ids: ArrayLike<number>,
    { skipSpecialTokens = true }: DecodeOptions = {},
  ): string => (ids.length === 0 ? "" : inner.decode(Array.from(ids), skipSpecialTokens));

  return {
    encode: (text, { addSpecialTokens = true } = {}) => inner.encode(text, addSpecialTokens),
    decode,
    stream: (options) => streamingDecoder((ids) => decode(ids, options)),
    bosTokenId: idOf("bos_token") ?? (isIntegerIn(configBos, { min: 0 }) ? configBos : undefined),
    eosTokenIds: [...eosTokenIds],
    vocabSize: inner.size,
    chatTemplate: chatTemplate(files.config["chat_template"]),
    tokenToId: (token) => inner.tokenToId(token),
    idToToken: (id) => inner.idToToken(id),
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

function build(files: TokenizerFiles): TokenizerPipeline {
  if (!isJsonObject(files.tokenizer["model"])) {
    throw new PlanishError(
      "cannot build the tokenizer: tokenizer.json has no model; copy the tokenizer files of the model again",
    );
  }
  try {
    return new TokenizerPipeline(completeAddedTokens(files.tokenizer, files.config));
  } catch (error) {
    if (error instanceof PlanishError) throw error;
    throw new PlanishError(
      `cannot build the tokenizer from tokenizer.json: ${oneLine((error as Error).message)}`,
      { cause: error },
    );
  }
}

/** A template is one string, or a list of named ones, of which "default" is meant for chat. */
function chatTemplate(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return undefined;
  const named = value.filter(isJsonObject);
  const chosen = named.find((item) => item["name"] === "default") ?? named[0];
  return typeof chosen?.["template"] === "string" ? chosen["template"] : undefined;
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
