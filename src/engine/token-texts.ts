/** Single tokens as people read them, for reports of log-probabilities. */
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import type { TokenText } from "./request.js";

interface Spelling {
  readonly text: string;
  readonly bytes?: readonly number[];
}

/** Ids below `candidates` that the tokenizer cannot spell: holes in its vocabulary, of which no text can be made. */
export function unspelledTokens(tokenizer: Tokenizer, candidates: number): number[] {
  const found: number[] = [];
  for (let id = 0; id < candidates; id++) if (tokenizer.idToToken(id) === undefined) found.push(id);
  return found;
}

/** Makes tokens impossible, in place. */
export function maskTokens(logits: Float32Array | Float64Array, tokens: readonly number[]): void {
  for (const token of tokens) logits[token] = -Infinity;
}

export class TokenTexts {
  private readonly known = new Map<number, Spelling>();
  private readonly hidden = new Map<number, string>();
  private readonly encoder = new TextEncoder();

  constructor(private readonly tokenizer: Tokenizer) {}

  of(token: number, logprob: number): TokenText {
    let spelling = this.known.get(token);
    if (spelling === undefined) this.known.set(token, (spelling = this.spell(token)));
    return { token, ...spelling, logprob };
  }

  /** The spelling of a special token, which the text leaves out; empty for every other token. */
  hiddenSpelling(token: number): string {
    let spelling = this.hidden.get(token);
    if (spelling === undefined) {
      const shown = this.tokenizer.decode([token]);
      spelling = shown === "" ? this.tokenizer.decode([token], { skipSpecialTokens: false }) : "";
      // A blank that the decoder strips from the beginning of a text is no special token.
      if (spelling.trim() === "") spelling = "";
      this.hidden.set(token, spelling);
    }
    return spelling;
  }

  private spell(token: number): Spelling {
    const written = this.tokenizer.idToToken(token);
    if (written === undefined) return { text: "" };
    const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(written);
    const text = this.tokenizer.decode([token], { skipSpecialTokens: false });
    if (hex) return { text, bytes: [parseInt(hex[1], 16)] };
    if (!text.includes("\ufffd")) {
      // SentencePiece decoders strip the blank that a first word begins with.
      const whole = written.startsWith("▁") && !text.startsWith(" ") ? ` ${text}` : text;
      return { text: whole, bytes: [...this.encoder.encode(whole)] };
    }
    const bytes = Array.from(written, (char) => BYTE_OF.get(char));
    return bytes.every((byte) => byte !== undefined) ? { text, bytes } : { text };
  }
}

/**
 * Byte-level tokenizers write each byte as a printable character: those that are printable in Latin-1 as themselves,
 * the others as the characters from U+0100 on. Source: GPT-2, encoder.py, bytes_to_unicode.
 */
const BYTE_OF = new Map<string, number>();
const CHARACTER_OF: string[] = [];
for (let byte = 0, others = 0; byte < 256; byte++) {
  const printable =
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  CHARACTER_OF[byte] = String.fromCharCode(printable ? byte : 0x100 + others++);
  BYTE_OF.set(CHARACTER_OF[byte], byte);
}

/** The character by which byte-level tokenizers write a byte. */
export function byteCharacter(byte: number): string {
  return CHARACTER_OF[byte];
}
