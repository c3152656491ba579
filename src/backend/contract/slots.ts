/** Where a step's values lie: rows of f32 that values take in turns, as one is last read and the next is written. */

/** Index of a slot. */
export type Slot = number;

/** Given out while blocks are planned; the widths that come out say how large each slot has to be. */
export class Slots {
  /** Channels of the widest value that each slot held. */
  readonly widths: number[] = [];
  private readonly free = new Set<Slot>();

  /** A free slot for a value of `width` channels: the narrowest that is wide enough, else the widest, else a new one. */
  take(width: number): Slot {
    const byWidth = [...this.free].sort((a, b) => this.widths[a] - this.widths[b] || a - b);
    const slot =
      byWidth.find((each) => this.widths[each] >= width) ?? byWidth.at(-1) ?? this.widths.length;
    this.free.delete(slot);
    this.widths[slot] = Math.max(this.widths[slot] ?? 0, width);
    return slot;
  }

  release(slot: Slot): void {
    this.free.add(slot);
  }
}
