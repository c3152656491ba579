/**
 * A `tokenizer.json` at work: added tokens, normalizer, pre-tokenizer, model and post-processor one way, decoder
 * the other. It gives what Python's `tokenizers` gives (test/checkpoint/tokenizer-conformance.test.ts); the merging and searching
 * of the models is that of `@huggingface/tokenizers`. docs/notes/tokenizers.md says what that library does differently.
 */

import { PlanishError } from "../../common/errors.js";
import { AddedTokenSplitter, readAddedTokens } from "./added-tokens.js";
import { createDecoder } from "./decoders.js";
import { createModel, type WordModel } from "./models.js";
import { createNormalizer } from "./normalizers.js";
import { checkFile, type Json } from "./options.js";
import { createPostProcessor } from "./post-processors.js";
import { createPreTokenizer, type PreTokenizer } from "./pre-tokenizers.js";
import { splitText } from "./pattern.js";

/** A word of SentencePiece: its mark and what follows up to the next mark. */
const SENTENCEPIECE_WORD = /▁+[^▁]*/gu;

/** Words whose ids are kept, and the longest one (in UTF-16 units) that is. */
const CACHED_WORDS = 10_000;
const CACHED_LENGTH = 64;

export class TokenizerPipeline {
  readonly #model: WordModel;
  readonly #addedIds = new Map<string, number>();
  readonly #tokens: (string | undefined)[];
  /** What the decoder is given for an added token that is looked for in normalized text: its normalized spelling. */
  readonly #normalizedSpellings = new Map<number, string>();
  readonly #specialIds = new Set<number>();
  readonly #splitter: AddedTokenSplitter;
  readonly #words: PreTokenizer;
  readonly #postProcess: (ids: readonly number[]) => number[];
  readonly #decode: (tokens: readonly string[]) => string;
  readonly #cache = new Map<string, readonly number[]>();

  /** Throws PlanishError naming any part or option that is not implemented. */
  constructor(tokenizer: Json) {
    checkFile(tokenizer);
    this.#model = createModel(tokenizer["model"]);
    const normalize = tokenizer["normalizer"]
      ? createNormalizer(tokenizer["normalizer"])
      : identity;
    const added = readAddedTokens(
      (tokenizer["added_tokens"] ?? []) as unknown[],
      (content) => this.#model.ids.get(content),
      this.#model.ids.size,
    );
    this.#tokens = [...this.#model.tokens];
    for (const token of added) {
      this.#addedIds.set(token.content, token.id);
      this.#tokens[token.id] = token.content;
      if (token.special) this.#specialIds.add(token.id);
      if (token.normalized) this.#normalizedSpellings.set(token.id, normalize(token.content));
    }
    this.#splitter = new AddedTokenSplitter(added, normalize);
    const preTokenize = tokenizer["pre_tokenizer"]
      ? createPreTokenizer(tokenizer["pre_tokenizer"])
      : undefined;
    const cutsWords = mergesStayInWords(tokenizer, this.#model);
    this.#words = (pieces) => {
      const words = preTokenize ? preTokenize(pieces) : [...pieces];
      if (!cutsWords) return words;
      return words.flatMap(({ text }) =>
        splitText(text, SENTENCEPIECE_WORD, "Isolated").map((part) => ({
          text: part,
          first: false,
        })),
      );
    };
    this.#postProcess = tokenizer["post_processor"]
      ? createPostProcessor(tokenizer["post_processor"], (id) => this.#tokens[id] !== undefined)
      : (ids) => [...ids];
    const decoder = tokenizer["decoder"] ? createDecoder(tokenizer["decoder"]) : undefined;
    this.#decode = (tokens) => (decoder ? decoder(tokens).join("") : tokens.join(" "));
  }

  /** Ids of a text. Half surrogate pairs count as U+FFFD, as they would in UTF-8. */
  encode(text: string, addSpecialTokens: boolean): number[] {
    const ids: number[] = [];
    for (const section of this.#splitter.split(text.replace(/\p{Surrogate}/gu, "\ufffd"))) {
      if (typeof section === "number") {
        ids.push(section);
        continue;
      }
      for (const { text: word } of this.#words([section])) {
        for (const id of this.#encodeWord(word)) ids.push(id);
      }
    }
    return addSpecialTokens ? this.#postProcess(ids) : ids;
  }

  #encodeWord(word: string): readonly number[] {
    if (word === "") return [];
    const known = this.#cache.get(word);
    if (known) return known;
    const ids = this.#model.encode(word);
    if (word.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHED_WORDS) this.#cache.clear();
      this.#cache.set(word, ids);
    }
    return ids;
  }

  /** Text of ids. Throws PlanishError on an id that has no token. */
  decode(ids: readonly number[], skipSpecialTokens: boolean): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.#tokens[id];
      if (token === undefined) {
        throw new PlanishError(
          `cannot decode token id ${id}: the tokenizer has no such id (it has 0 to ${this.#tokens.length - 1})`,
        );
      }
      if (skipSpecialTokens && this.#specialIds.has(id)) continue;
      tokens.push(this.#normalizedSpellings.get(id) ?? token);
    }
    return this.#decode(tokens);
  }

  /** Largest id plus one. */
  get size(): number {
    return this.#tokens.length;
  }

  tokenToId(token: string): number | undefined {
    return this.#addedIds.get(token) ?? this.#model.ids.get(token);
  }

  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }
}

const identity = (text: string): string => text;

/**
 * SentencePiece tokenizers that do not cut a text merge over all of it as one word, which is slow and defeats
 * caching. Where no merge joins across the beginning of a word ("x▁"), merges in one word never see another word,
 * and their order between words is immaterial: cutting the text into words changes no id. Unknown characters
 * are joined over a cut only where the mark itself is unknown.
 */
export function mergesStayInWords(tokenizer: Json, model: WordModel): boolean {
  const options = tokenizer["model"] as Json;
  const preTokenizer = (tokenizer["pre_tokenizer"] ?? undefined) as Json | undefined;
  if (model.type !== "BPE" || options["ignore_merges"] === true) return false;
  if (options["end_of_word_suffix"] || !model.ids.has("▁")) return false;
  if (
    preTokenizer &&
    !(preTokenizer["type"] === "Metaspace" && preTokenizer["replacement"] === "▁")
  ) {
    return false;
  }
  for (const merge of options["merges"] as (string | string[])[]) {
    const merged = typeof merge === "string" ? merge.replace(" ", "") : merge.join("");
    if (/[^▁]▁/u.test(merged)) return false;
  }
  return true;
}
