/** A tokenizer's tokens as the bytes that they add to a text, which is what a grammar is matched against. */
import type { Tokenizer } from "../../checkpoint/tokenizer.js";
import { TokenTexts } from "../token-texts.js";

export interface Vocabulary {
  /**
   * Each token's bytes, one character a byte (U+0000 to U+00FF); empty for tokens that add nothing, or nobody knows what:
   * special ones, and holes in the vocabulary.
   */
  readonly bytes: readonly string[];
  /** Tokens that end a text. */
  readonly ends: readonly number[];
}

export function vocabularyOf(tokenizer: Tokenizer): Vocabulary {
  const texts = new TokenTexts(tokenizer);
  const bytes: string[] = [];
  for (let token = 0; token < tokenizer.vocabSize; token++) {
    const isSpecial = texts.hiddenSpelling(token) !== "" || tokenizer.eosTokenIds.includes(token);
    const own = isSpecial ? undefined : texts.of(token, 0).bytes;
    bytes.push(own === undefined ? "" : String.fromCharCode(...own));
  }
  return { bytes, ends: tokenizer.eosTokenIds.filter((token) => token < bytes.length) };
}
