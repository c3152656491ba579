/**
 * From token ids to text that may be shown: characters whose bytes are spread over tokens are held until they are
 * whole, and what may turn out to be the beginning of a stop string until that is decided. Tokens are given out whole,
 * so that text, tokens and log-probabilities agree.
 *
 * Stop strings are looked for in the text, and in the text with the special tokens that they name written out.
 */
import type { StreamingDecoder } from "../checkpoint/tokenizer/streaming.js";

/** A generated token; the texts of one generation's tokens, joined, are its text. */
export interface OutputToken<Extra> {
  readonly token: number;
  readonly text: string;
  readonly extra: Extra;
}

interface Held<Extra> {
  readonly token: number;
  text: string;
  /** Spelling of a special token, which is no part of the text but may be one of a stop string. */
  readonly hidden: string;
  readonly extra: Extra;
}

export class TextOutput<Extra> {
  private held: Held<Extra>[] = [];
  /** The stop string that ended the text. */
  stopString: string | undefined;

  constructor(
    private readonly decoder: StreamingDecoder,
    private readonly stops: readonly string[],
    /** The spelling of a special token, which the decoder leaves out; empty for others. */
    private readonly hiddenSpelling: (token: number) => string = () => "",
    /** A text that comes out in one go, however many tokens it is made of. */
    private readonly mark?: string,
  ) {}

  /** Takes a token; returns those whose text is now certain. After a stop string (`stopString`) nothing more comes. */
  push(token: number, extra: Extra): OutputToken<Extra>[] {
    const hidden = this.hiddenSpelling(token);
    // The decoder would drop a special token, after going through its window again.
    const text = hidden === "" ? this.decoder.push(token) : "";
    this.held.push({ token, text, hidden, extra });
    return this.release(false);
  }

  /** The text ends here: returns everything held. */
  flush(): OutputToken<Extra>[] {
    if (this.stopString !== undefined) return [];
    const rest = this.decoder.flush();
    // A decoder holds text back only after a token that it gave none for, and such a token is held here.
    const last = this.held[this.held.length - 1];
    if (last !== undefined) last.text += rest;
    return this.release(true);
  }

  private release(all: boolean): OutputToken<Extra>[] {
    const text = this.held.map((item) => item.text).join("");
    const written = this.held.map((item) => this.written(item)).join("");
    const inText = this.findStop(text);
    const inWritten = written === text ? undefined : this.findStop(written);
    const stop = earlier(
      inText,
      inWritten && { ...inWritten, at: this.textPosition(inWritten.at) },
    );
    if (stop !== undefined) {
      this.stopString = stop.text;
      return this.take(stop.at, true);
    }
    if (all) return this.take(text.length, true);
    const certain = this.textPosition(written.length - this.undecided(written));
    return this.take(Math.min(text.length - this.undecided(text), certain), false);
  }

  /** A token's text, or the spelling of a special one that some stop string holds. */
  private written({ text, hidden }: Held<Extra>): string {
    return hidden !== "" && this.stops.some((stop) => stop.includes(hidden)) ? hidden : text;
  }

  /** The place in the text that a place in the text with special tokens written out stands for. */
  private textPosition(position: number): number {
    let at = 0;
    let before = 0;
    for (const item of this.held) {
      const { length } = this.written(item);
      if (before + length >= position) return item.hidden === "" ? at + position - before : at;
      before += length;
      at += item.text.length;
    }
    return at;
  }

  /**
   * Takes the tokens that end within the first `length` characters, except trailing ones without text, whose bytes may
   * belong to a character to come. With `cut` also the beginning of the token that crosses that place.
   */
  private take(length: number, cut: boolean): OutputToken<Extra>[] {
    let count = 0;
    let end = 0;
    let unfinished = false;
    for (let i = 0, at = 0; i < this.held.length; i++) {
      const { text, hidden } = this.held[i];
      at += text.length;
      if (at > length) break;
      if (text !== "") unfinished = false;
      else if (hidden === "") unfinished = true;
      // A special token adds no bytes to what others began; one that may begin a stop string waits like text.
      const mayWait = text === "" && (unfinished || this.written(this.held[i]) !== "");
      if (mayWait && !cut) continue;
      count = i + 1;
      end = at;
    }
    const taken = this.held.splice(0, count);
    if (cut && end < length) {
      const next = this.held[0];
      taken.push({ ...next, text: next.text.slice(0, length - end) });
    }
    if (cut) this.held = [];
    return taken;
  }

  /** The stop string that begins first; of several there, the longest. */
  private findStop(text: string): { at: number; text: string } | undefined {
    let found: { at: number; text: string } | undefined;
    for (const stop of this.stops) {
      const at = text.indexOf(stop);
      if (at < 0) continue;
      if (!found || at < found.at || (at === found.at && stop.length > found.text.length))
        found = { at, text: stop };
    }
    return found;
  }

  /** Characters at the end that may begin a stop string, or the mark. */
  private undecided(text: string): number {
    let longest = 0;
    for (const stop of this.mark === undefined ? this.stops : [...this.stops, this.mark])
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--)
        if (text.endsWith(stop.slice(0, n))) {
          longest = n;
          break;
        }
    return longest;
  }
}

interface FoundStop {
  readonly at: number;
  readonly text: string;
}

/** The one that begins first; of two there, the longer. */
function earlier(a: FoundStop | undefined, b: FoundStop | undefined): FoundStop | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  if (a.at !== b.at) return a.at < b.at ? a : b;
  return a.text.length >= b.text.length ? a : b;
}
