/**
 * Text to token ids and back, as `tokenizer.json` says (tokenizer/pipeline.ts). Decoding is faithful to the tokens: the
 * clean-up of spaces before punctuation that some tokenizer configurations ask for is not applied, since it
 * changes text (code above all) and cannot be done while streaming.
 */

import { isIntegerIn, LIMITS, oneLine } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { Checkpoint, TokenizerFiles } from "./checkpoint.js";
import { isJsonObject } from "./file-reader.js";
import { compareSpecialIds, readSpecialIds } from "./tokenizer/special-ids.js";
import { completeAddedTokens, specialTokenStrings } from "./tokenizer/special-tokens.js";
import { streamingDecoder, type StreamingDecoder } from "./tokenizer/streaming.js";
import { TokenizerPipeline } from "./tokenizer/pipeline.js";

export interface EncodeOptions {
  /** Adds what the tokenizer puts around a text, such as a beginning-of-sequence token (default true). */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leaves out special tokens (default true). */
  readonly skipSpecialTokens?: boolean;
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
  /** The template for conversations with tools, where the model has one of its own for them. */
  readonly toolTemplate?: string;
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
  // Embeddings may have more rows than the tokenizer has tokens.
  const rows = isIntegerIn(config["vocab_size"], { max: LIMITS.vocabulary })
    ? config["vocab_size"]
    : 0;
  const size = Math.max(inner.size, rows);
  const modelIds = [
    readSpecialIds(generationConfig, "generation_config.json", size),
    readSpecialIds(config, "config.json", size),
  ];
  const specialTokens = specialTokenStrings(files.config, modelIds, (id) => inner.idToToken(id));
  compareSpecialIds(specialTokens, (spelling) => inner.tokenToId(spelling), modelIds);
  const idOf = (name: string): number | undefined =>
    specialTokens[name] === undefined ? undefined : inner.tokenToId(specialTokens[name]);
  const eosTokenIds = new Set(modelIds.flatMap((ids) => ids.eos_token));
  const ownEos = idOf("eos_token");
  if (ownEos !== undefined) eosTokenIds.add(ownEos);

  const decode = (
    ids: ArrayLike<number>,
    { skipSpecialTokens = true }: DecodeOptions = {},
  ): string => (ids.length === 0 ? "" : inner.decode(Array.from(ids), skipSpecialTokens));

  return {
    encode: (text, { addSpecialTokens = true } = {}) => inner.encode(text, addSpecialTokens),
    decode,
    stream: (options) => streamingDecoder((ids) => decode(ids, options)),
    bosTokenId: idOf("bos_token") ?? modelIds.flatMap((ids) => ids.bos_token).at(0),
    eosTokenIds: [...eosTokenIds],
    vocabSize: inner.size,
    chatTemplate: chatTemplate(files.config["chat_template"]),
    toolTemplate: toolTemplate(files.config["chat_template"]),
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
  return namedTemplate(value, "default") ?? templateOf(value.find(isJsonObject));
}

function toolTemplate(value: unknown): string | undefined {
  return Array.isArray(value) ? namedTemplate(value, "tool_use") : undefined;
}

function namedTemplate(list: readonly unknown[], name: string): string | undefined {
  return templateOf(list.filter(isJsonObject).find((item) => item["name"] === name));
}

function templateOf(item: Record<string, unknown> | undefined): string | undefined {
  return typeof item?.["template"] === "string" ? item["template"] : undefined;
}
