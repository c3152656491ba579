/**
 * Blocks of a WebAssembly memory, for JavaScript to hand out: whole pages, from ranges that came back or from growing it.
 * A memory grows to 4 GiB at most and never shrinks, so what comes back is joined with its neighbours and used again.
 */
import type { WasmMemory } from "./webassembly.js";

export const PAGE_BYTES = 2 ** 16;
/** One page less than 4 GiB, so that every size fits 32 bits. */
export const MOST_PAGES = 2 ** 16 - 1;

interface Range {
  readonly start: number;
  readonly end: number;
}

export class LinearMemory {
  /** In order; no two touch. */
  private free: Range[] = [];
  private taken = 0;

  constructor(private readonly memory: WasmMemory) {}

  /** Bytes handed out. */
  get used(): number {
    return this.taken;
  }

  /** The address of zero-filled memory, or undefined when there is none left. */
  take(bytes: number): number | undefined {
    const size = wholePages(bytes);
    const found = this.free.findIndex(({ start, end }) => end - start >= size);
    let address: number | undefined;
    if (found >= 0) {
      const { start, end } = this.free[found];
      this.free.splice(found, 1, ...(end - start > size ? [{ start: start + size, end }] : []));
      new Uint8Array(this.memory.buffer, start, size).fill(0);
      address = start;
    } else address = this.grown(size);
    if (address !== undefined) this.taken += size;
    return address;
  }

  /** Gives back what `take` handed out for `bytes`. */
  give(address: number, bytes: number): void {
    const size = wholePages(bytes);
    this.taken -= size;
    let start = address;
    let end = address + size;
    const at = this.free.findIndex((range) => range.start > address);
    const next = at < 0 ? this.free.length : at;
    let from = next;
    let count = 0;
    if (next < this.free.length && this.free[next].start === end) {
      end = this.free[next].end;
      count++;
    }
    if (next > 0 && this.free[next - 1].end === start) {
      start = this.free[next - 1].start;
      from--;
      count++;
    }
    this.free.splice(from, count, { start, end });
  }

  private grown(size: number): number | undefined {
    try {
      return this.memory.grow(size / PAGE_BYTES) * PAGE_BYTES;
    } catch {
      // The limit, or the system refuses.
      return undefined;
    }
  }
}

function wholePages(bytes: number): number {
  return Math.max(1, Math.ceil(bytes / PAGE_BYTES)) * PAGE_BYTES;
}
