/**
 * Memory of the CPU backend: native blocks, and the arena of a training step.
 *
 * A native block is unmapped only once no buffer in it and no typed array over it is reachable (FinalizationRegistry), so
 * a stale buffer reads zeros or newer data but never unmapped memory; its physical pages go back as soon as it is released.
 */
import {
  BYTES_PER_ELEMENT,
  type Arena,
  type Buffer,
  type DType,
  type HostArray,
} from "../contract/training.js";
import { PlanishError } from "../../common/errors.js";
import { refusal } from "./library.js";
import type { NativeLibrary } from "../contract/native-library.js";
import { NativeMapping } from "./mapping.js";

/** A buffer in host memory. Kernels receive its address and element counts. */
export class NativeBuffer implements Buffer {
  readonly address: bigint;

  constructor(
    readonly dtype: DType,
    readonly length: number,
    private readonly mapping: NativeMapping,
    /** Bytes from the mapping's beginning. */
    private readonly offset: number,
    /** Set where the buffer is long-lived: what `free` gives back. */
    readonly block?: Block,
  ) {
    this.address = mapping.address + BigInt(offset);
  }

  /** Its elements from `offset` on as typed arrays that follow one another; see NativeMapping. */
  arrays(offset = 0, length = this.length - offset): Iterable<HostArray> {
    const { dtype, mapping } = this;
    return mapping.arrays(dtype, this.offset + offset * BYTES_PER_ELEMENT[dtype], length);
  }
}

/** The buffer as this backend's own. Throws PlanishError on another backend's. */
export function nativeBuffer(buffer: Buffer): NativeBuffer {
  if (buffer instanceof NativeBuffer) return buffer;
  throw new PlanishError(
    "cpu backend: this buffer belongs to another backend; copy it with read and write",
  );
}

/** A piece of native memory, 64-byte aligned. */
export interface Block {
  readonly mapping: NativeMapping;
  readonly offset: number;
  readonly length: number;
  /** Index of the size class for blocks cut from a slab, −1 for blocks of their own. */
  readonly sizeClass: number;
}

const ALIGNMENT = 64;
/** Blocks above this size are mapped one by one; smaller ones are cut from slabs. */
const LARGEST_SMALL_BLOCK = 256 * 1024;
const SLAB_BYTES = 4 * 1024 * 1024;
const CHUNK_BYTES = 64 * 1024 * 1024;
/** Released arena chunks kept for the next arena, so that a step does not fault its pages in anew. */
const LARGEST_CHUNK_CACHE = 1024 * 1024 * 1024;

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

function checkLength(length: number): void {
  if (!Number.isSafeInteger(length) || length < 0) {
    throw new PlanishError(
      `buffer length ${length} is not a count of elements; give an integer of at least 0`,
    );
  }
}

/** Blocks and chunks of one backend. */
export class NativeMemory {
  private readonly registry: FinalizationRegistry<{ pointer: unknown; bytes: number }>;
  private readonly freeLists: Block[][] = [];
  private slab: NativeMapping | undefined;
  private slabUsed = 0;
  private chunkCache: NativeMapping[] = [];

  constructor(private readonly library: NativeLibrary) {
    this.registry = new FinalizationRegistry(({ pointer, bytes }) =>
      library.release(pointer, bytes),
    );
  }

  /** A zero-filled mapping of its own. */
  private map(bytes: number): NativeMapping {
    const pointer = this.library.allocate(bytes);
    if (!pointer) {
      throw new PlanishError(
        refusal(this.library, bytes, "use a smaller model, batch or sequence length"),
      );
    }
    const mapping = new NativeMapping(this.library, pointer, bytes);
    this.registry.register(mapping, { pointer, bytes });
    return mapping;
  }

  private unmap({ pointer, bytes }: NativeMapping): void {
    this.library.discard(pointer, bytes);
  }

  /** Zero-filled long-lived memory. */
  alloc(dtype: DType, length: number): NativeBuffer {
    checkLength(length);
    const bytes = Math.max(roundUp(length * BYTES_PER_ELEMENT[dtype], ALIGNMENT), ALIGNMENT);
    const block = bytes > LARGEST_SMALL_BLOCK ? this.largeBlock(bytes) : this.smallBlock(bytes);
    return new NativeBuffer(dtype, length, block.mapping, block.offset, block);
  }

  private largeBlock(bytes: number): Block {
    return { mapping: this.map(bytes), offset: 0, length: bytes, sizeClass: -1 };
  }

  /** Size classes are powers of two, from 64 bytes on. */
  private smallBlock(bytes: number): Block {
    const sizeClass = Math.max(0, Math.ceil(Math.log2(bytes / ALIGNMENT)));
    const recycled = this.freeLists[sizeClass]?.pop();
    if (recycled) {
      const { mapping, offset, length } = recycled;
      for (const array of mapping.arrays("u8", offset, length)) array.fill(0);
      return recycled;
    }
    const length = ALIGNMENT * 2 ** sizeClass;
    if (!this.slab || this.slabUsed + length > SLAB_BYTES) {
      this.slab = this.map(SLAB_BYTES);
      this.slabUsed = 0;
    }
    const offset = this.slabUsed;
    this.slabUsed += length;
    return { mapping: this.slab, offset, length, sizeClass };
  }

  free(buffer: NativeBuffer): void {
    const block = buffer.block;
    if (!block)
      throw new PlanishError(
        "only buffers from `alloc` are freed; an arena's go back with the arena",
      );
    if (block.sizeClass < 0) this.unmap(block.mapping);
    else (this.freeLists[block.sizeClass] ??= []).push(block);
  }

  /** A chunk of at least `bytes` for an arena; contents undefined. */
  takeChunk(bytes: number): NativeMapping {
    const fits = this.chunkCache.findIndex((chunk) => chunk.bytes >= bytes);
    if (fits >= 0) return this.chunkCache.splice(fits, 1)[0];
    return this.map(Math.max(CHUNK_BYTES, roundUp(bytes, 2 ** 21)));
  }

  giveChunk(chunk: NativeMapping): void {
    const cached = this.chunkCache.reduce((sum, each) => sum + each.bytes, 0);
    if (cached + chunk.bytes > LARGEST_CHUNK_CACHE) {
      this.unmap(chunk);
      return;
    }
    this.chunkCache.push(chunk);
    this.chunkCache.sort((x, y) => x.bytes - y.bytes);
  }

  /** Gives back everything that no live buffer uses. */
  dispose(): void {
    for (const chunk of this.chunkCache) this.unmap(chunk);
    this.chunkCache = [];
    this.freeLists.length = 0;
    this.slab = undefined;
  }
}

interface Position {
  readonly chunk: number;
  readonly offset: number;
  readonly used: number;
}

/** Bump allocation over chunks; see Arena. */
export class NativeArena implements Arena {
  private readonly chunks: NativeMapping[] = [];
  private chunk = 0;
  private offset = 0;
  private used = 0;
  private peak = 0;
  private disposed = false;
  private readonly marks: Position[] = [];

  constructor(private readonly memory: NativeMemory) {}

  get peakBytes(): number {
    return this.peak;
  }

  alloc(dtype: DType, length: number): NativeBuffer {
    if (this.disposed) throw new PlanishError("this arena was disposed; allocate from a live one");
    checkLength(length);
    const bytes = roundUp(length * BYTES_PER_ELEMENT[dtype], ALIGNMENT);
    if (this.chunks.length === 0) this.chunks.push(this.memory.takeChunk(bytes));
    while (this.offset + bytes > this.chunks[this.chunk].bytes) {
      const next = this.chunk + 1;
      // A chunk that is too small for this request is exchanged, not skipped: nothing in it is in use.
      if (next < this.chunks.length && this.chunks[next].bytes < bytes) {
        this.memory.giveChunk(this.chunks[next]);
        this.chunks[next] = this.memory.takeChunk(bytes);
      } else if (next === this.chunks.length) {
        this.chunks.push(this.memory.takeChunk(bytes));
      }
      this.chunk = next;
      this.offset = 0;
    }
    const buffer = new NativeBuffer(dtype, length, this.chunks[this.chunk], this.offset);
    this.offset += bytes;
    this.used += bytes;
    if (this.used > this.peak) this.peak = this.used;
    return buffer;
  }

  mark(): number {
    const last = this.marks.length - 1;
    const top = this.marks[last];
    // A loop that rewinds to where it marked must not grow the list.
    if (top && top.chunk === this.chunk && top.offset === this.offset) return last;
    this.marks.push({ chunk: this.chunk, offset: this.offset, used: this.used });
    return last + 1;
  }

  rewind(mark: number): void {
    const position = this.marks[mark];
    if (!position)
      throw new PlanishError(
        `arena mark ${mark} is not live; rewind to marks in the order of a stack`,
      );
    this.marks.length = mark + 1;
    this.chunk = position.chunk;
    this.offset = position.offset;
    this.used = position.used;
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    for (const chunk of this.chunks) this.memory.giveChunk(chunk);
    this.chunks.length = 0;
  }
}
