/**
 * Token ids of a context and its continuation, cut as lm-evaluation-harness cuts them: the whole is tokenized, and what
 * lies beyond as many tokens as the context alone has is the continuation.
 */

import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { PlanishError } from "../common/errors.js";

export interface EncodedPair {
  readonly context: readonly number[];
  readonly continuation: readonly number[];
}

export interface EncodePairOptions {
  /** Puts before the context what the tokenizer puts before a text, such as a beginning-of-sequence token (default false). */
  readonly addBos?: boolean;
}

/** What Python's `str.strip` takes for white space; JavaScript's own set differs in a few control characters. */
const SPACE =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const LEADING = new RegExp(`^${SPACE}+`);
const TRAILING = new RegExp(`${SPACE}+$`);

/** Python's `str.strip`. */
export function stripSpace(text: string): string {
  return text.replace(LEADING, "").replace(TRAILING, "");
}

/**
 * An encoder of pairs that share contexts: a context is tokenized once in a row. Trailing white space of a context moves to
 * the continuation, where tokenizers keep it. An empty context becomes the tokenizer's first token of a text (or
 * the last, where it has no first), since something must predict the continuation's first token.
 * @throws PlanishError (from the encoder) when nothing is left to score.
 */
export function pairEncoder(
  tokenizer: Tokenizer,
  options: EncodePairOptions = {},
): (context: string, continuation: string) => EncodedPair {
  const { addBos = false } = options;
  const encode = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: addBos });
  let lastText: string | undefined;
  let lastIds: readonly number[] = [];
  return (context, continuation) => {
    const text = context.replace(TRAILING, "");
    const tail = context.slice(text.length) + continuation;
    if (text === "") {
      const ids = tokenizer.encode(tail, { addSpecialTokens: false });
      const prefix = tokenizer.bosTokenId ?? tokenizer.eosTokenIds[0];
      if (prefix === undefined)
        throw new PlanishError(
          "an empty context needs a token that begins a text, and the tokenizer has neither BOS nor EOS",
        );
      return checked(
        { context: [prefix], continuation: ids[0] === prefix ? ids.slice(1) : ids },
        tail,
      );
    }
    if (text !== lastText) {
      lastIds = encode(text);
      lastText = text;
    }
    return checked(
      { context: lastIds, continuation: encode(text + tail).slice(lastIds.length) },
      tail,
    );
  };
}

function checked(pair: EncodedPair, continuation: string): EncodedPair {
  if (pair.continuation.length === 0)
    throw new PlanishError(
      `continuation ${JSON.stringify(continuation)} adds no token to its context; it cannot be scored`,
    );
  return pair;
}
