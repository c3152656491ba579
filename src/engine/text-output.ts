/**
 * From token ids to text that may be shown: characters whose bytes are spread over tokens are held until they are
 * whole, and what may turn out to be the beginning of a stop string until that is decided. Tokens are given out whole,
 * so that text, tokens and log-probabilities agree.
 */
import type { StreamingDecoder } from "../checkpoint/tokenizer.js";

/** A generated token; the texts of one generation's tokens, joined, are its text. */
export interface OutputToken<Extra> {
  readonly token: number;
  readonly text: string;
  readonly extra: Extra;
}

interface Held<Extra> {
  readonly token: number;
  text: string;
  readonly extra: Extra;
}

export class TextOutput<Extra> {
  private held: Held<Extra>[] = [];
  /** The stop string that ended the text. */
  stopString: string | undefined;

  constructor(
    private readonly decoder: StreamingDecoder,
    private readonly stops: readonly string[],
  ) {}

  /** Takes a token; returns those whose text is now certain. After a stop string (`stopString`) nothing more comes. */
  push(token: number, extra: Extra): OutputToken<Extra>[] {
    this.held.push({ token, text: this.decoder.push(token), extra });
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
    const stop = this.findStop(text);
    if (stop !== undefined) {
      this.stopString = stop.text;
      return this.take(stop.at, true);
    }
    return this.take(all ? text.length : text.length - this.undecided(text), all);
  }

  /**
   * Takes the tokens that end within the first `length` characters, except trailing ones without text, whose bytes may
   * belong to a character to come. With `cut` also the beginning of the token that crosses that place.
   */
  private take(length: number, cut: boolean): OutputToken<Extra>[] {
    let count = 0;
    let end = 0;
    for (let i = 0, at = 0; i < this.held.length; i++) {
      at += this.held[i].text.length;
      if (at > length) break;
      if (this.held[i].text === "" && !cut) continue;
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

  /** Characters at the end that may begin a stop string. */
  private undecided(text: string): number {
    let longest = 0;
    for (const stop of this.stops)
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--)
        if (text.endsWith(stop.slice(0, n))) {
          longest = n;
          break;
        }
    return longest;
  }
}
