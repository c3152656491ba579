/**
 * Who is where, for models with recurrent layers: beside its pages a sequence has a state, which stands after one position
 * and cannot go back. A step on any other position would give wrong numbers without a word, so it is refused here.
 */
import { PlanishError } from "../../common/errors.js";
import type { Chunk } from "./inference.js";

/** Position of a state that nothing is known of. */
const UNKNOWN = -1;

export class SequenceStates {
  /** Tokens that each state has seen. */
  private readonly seen: Int32Array;

  /** `count`: states that are reserved; 0 for models without. */
  constructor(count: number) {
    this.seen = new Int32Array(count);
  }

  /**
   * The state of each chunk, in order: the one that it names, or the first for a chunk that is alone.
   * @throws PlanishError for chunks that share a state, or go on from a position that theirs does not stand at.
   */
  of(chunks: readonly Chunk[]): Int32Array {
    const slots = Int32Array.from(chunks, ({ state = 0 }) => state);
    if (this.seen.length === 0) return slots;
    const taken = new Set<number>();
    chunks.forEach(({ start }, i) => {
      const slot = slots[i];
      this.check(slot);
      if (taken.has(slot))
        throw new PlanishError(
          `two sequences of a step have the state ${slot}; each needs its own in a model with recurrent layers`,
        );
      taken.add(slot);
      if (start !== 0 && this.seen[slot] !== start)
        throw new PlanishError(
          `a chunk starts at position ${start}, and its state ${slot} stands ${this.seen[slot] === UNKNOWN ? "nowhere" : `at ${this.seen[slot]}`}; recurrent layers go on from where they are, or begin at 0`,
        );
    });
    return slots;
  }

  /** A step on these states has begun: until it ends they stand nowhere. */
  begin(slots: Int32Array): void {
    if (this.seen.length > 0) for (const slot of slots) this.seen[slot] = UNKNOWN;
  }

  end(slots: Int32Array, chunks: readonly Chunk[]): void {
    if (this.seen.length > 0)
      chunks.forEach(({ start, tokens }, i) => (this.seen[slots[i]] = start + tokens.length));
  }

  copy(from: number, to: number): void {
    for (const slot of [from, to]) this.check(slot);
    this.seen[to] = this.seen[from];
  }

  private check(slot: number): void {
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.seen.length)
      throw new PlanishError(
        `state ${slot} does not exist; ${this.seen.length} are reserved, numbered from 0`,
      );
  }
}
