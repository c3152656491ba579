/**
 * Speculative decoding by prompt look-up: what followed the last time that a text's end was written is guessed to follow
 * again, and the model is asked about all of it in one step. Where it guesses well (edited copies, summaries that quote),
 * several tokens come of a step; where it does not, it soon stops guessing.
 *
 * Nothing of the text changes: each token is drawn from the model's own logits, by the same random numbers, as without. A
 * guess is kept where it is what was drawn, which accepts a guess x with probability p(x) and otherwise leaves p
 * without x, as speculative sampling does for guesses that are certain. Source: Leviathan et al. 2023, section 2.3.
 */

/** Tokens of a text's end that are looked for. */
const LONGEST_END = 4;
const SHORTEST_END = 2;
/** Tokens guessed at once. */
const MOST_GUESSED = 8;
/** Guesses that all fail before it rests, and the steps that it then rests: twice as many each time. */
const FIRST_REST = 8;
const LONGEST_REST = 256;

export class LookUp {
  /** Where each end of `SHORTEST_END` tokens has stood, by what follows it. */
  private readonly places = new Map<string, number[]>();
  private indexed = 0;
  private rest = 0;
  private nextRest = FIRST_REST;
  /** Guesses at once: more where they prove right. */
  private ambition = 2;

  /** What may follow the tokens so far, at most so many; often nothing. */
  guess(tokens: readonly number[], most: number): readonly number[] {
    this.index(tokens);
    if (this.rest > 0) {
      this.rest -= 1;
      return [];
    }
    const limit = Math.min(most, this.ambition);
    if (limit < 1 || tokens.length <= SHORTEST_END) return [];
    const at = this.bestPlace(tokens);
    return at === undefined ? [] : tokens.slice(at, at + limit);
  }

  /** How many of a guess proved right. */
  learn(guessed: number, right: number): void {
    if (guessed === 0) return;
    if (right === guessed) {
      this.ambition = Math.min(MOST_GUESSED, 2 * this.ambition);
      this.nextRest = FIRST_REST;
    } else if (right > 0) this.ambition = Math.max(2, right + 1);
    else {
      this.ambition = 2;
      this.rest = this.nextRest;
      this.nextRest = Math.min(LONGEST_REST, 2 * this.nextRest);
    }
  }

  private index(tokens: readonly number[]): void {
    // The very end has nothing behind it yet.
    for (; this.indexed + SHORTEST_END < tokens.length; this.indexed++) {
      const key = tokens.slice(this.indexed, this.indexed + SHORTEST_END).join();
      const known = this.places.get(key);
      if (known) known.push(this.indexed + SHORTEST_END);
      else this.places.set(key, [this.indexed + SHORTEST_END]);
    }
  }

  /** Behind the longest earlier occurrence of the text's end; of those, the latest. */
  private bestPlace(tokens: readonly number[]): number | undefined {
    const places = this.places.get(tokens.slice(-SHORTEST_END).join()) ?? [];
    let best: number | undefined;
    let longest = 0;
    for (let i = places.length - 1; i >= 0 && longest < LONGEST_END; i--) {
      let length = SHORTEST_END;
      while (
        length < LONGEST_END &&
        places[i] > length &&
        tokens[places[i] - length - 1] === tokens[tokens.length - length - 1]
      )
        length += 1;
      if (length > longest) [best, longest] = [places[i], length];
    }
    return best;
  }
}
