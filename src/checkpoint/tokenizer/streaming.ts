/** Text from token ids as they come, equal to what decoding them all at once gives. */

/** Turns ids into text as they come; see `Tokenizer.stream`. */
export interface StreamingDecoder {
  /** Takes the next id; returns the text that is now certain, which may be empty. */
  push(id: number): string;
  /** Returns what was held back; the decoder is then empty. */
  flush(): string;
}

/** Ids after which unfinished bytes are taken for garbage: a UTF-8 character has at most 4 bytes. */
const MAX_HELD_IDS = 8;

/** Ids of context at which a shorter one is looked for: ids whose text is empty make it grow. */
const LONGEST_CONTEXT = 32;

/**
 * Decodes a sliding window: ids already emitted but kept as context (decoders strip a space at the start of
 * what they are given), then ids held back because their text still ends in an incomplete character. The window is
 * short whatever the ids decode to, so that a token costs the same at the end of a long text as at its beginning.
 */
export function streamingDecoder(decode: (ids: number[]) => string): StreamingDecoder {
  let window: number[] = [];
  let emittedIds = 0;
  let emittedText = "";

  /** Keeps the last ids alone if they have text together; else the last ones are nothing to whatever comes. */
  const shorten = (): void => {
    for (let count = 2; count < window.length; count *= 2) {
      const tail = window.slice(-count);
      const tailText = decode(tail);
      if (tailText === "") continue;
      window = tail;
      emittedText = tailText;
      return;
    }
    const rest = window.slice(0, -LONGEST_CONTEXT / 2);
    if (decode(rest) === emittedText) window = rest;
  };

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
      if (window.length >= LONGEST_CONTEXT) shorten();
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
