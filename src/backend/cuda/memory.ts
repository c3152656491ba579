/**
 * Memory of the CUDA backend: buffers, the arena of a step, scratch space of kernels, and transfers through pinned
 * host memory. Everything is ordered by one stream, so memory given back is never reused too early.
 */
import {
  BYTES_PER_ELEMENT,
  type Arena,
  type Buffer,
  type DType,
  type HostArray,
  type Uploads,
} from "../contract/training.js";
import { bytePieces } from "../../common/bytes.js";
import { PlanishError } from "../../common/errors.js";
import { newHostArray } from "../contract/host-memory.js";
import type { CudaDriver, DevicePointer, Event, PinnedMemory, Stream } from "./driver.js";

/** Device memory with a type. Kernels receive `pointer`. */
export class CudaBuffer implements Buffer {
  constructor(
    readonly dtype: DType,
    readonly length: number,
    readonly pointer: DevicePointer,
    /** Long-lived: what `free` gives back. */
    readonly owned: boolean,
  ) {}

  get bytes(): number {
    return this.length * BYTES_PER_ELEMENT[this.dtype];
  }
}

/** The buffer as this backend's own. Throws PlanishError on another backend's. */
export function cudaBuffer(buffer: Buffer): CudaBuffer {
  if (buffer instanceof CudaBuffer) return buffer;
  throw new PlanishError(
    "cuda backend: this buffer belongs to another backend; copy it with read and write",
  );
}

/** Allocations start at multiples of this: full sectors, and what cuBLASLt's fastest kernels ask for. */
const ALIGNMENT = 256;
const CHUNK_BYTES = 64 * 2 ** 20;

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

export function checkLength(length: number): void {
  if (!Number.isSafeInteger(length) || length < 0) {
    throw new PlanishError(
      `buffer length ${length} is not a count of elements; give an integer of at least 0`,
    );
  }
}

interface Chunk {
  readonly pointer: DevicePointer;
  readonly bytes: number;
}

interface Position {
  readonly chunk: number;
  readonly offset: number;
  readonly used: number;
}

/** Bump allocation over chunks of the stream-ordered pool; see Arena. */
export class CudaArena implements Arena {
  private readonly chunks: Chunk[] = [];
  private chunk = 0;
  private offset = 0;
  private used = 0;
  private peak = 0;
  private disposed = false;
  private readonly marks: Position[] = [];

  constructor(
    private readonly driver: CudaDriver,
    private readonly stream: Stream,
    /** Called before memory goes back: work not yet enqueued may still want it. */
    private readonly beforeFree: () => void = () => undefined,
  ) {}

  get peakBytes(): number {
    return this.peak;
  }

  private take(bytes: number): Chunk {
    const size = Math.max(CHUNK_BYTES, roundUp(bytes, 2 ** 21));
    return { pointer: this.driver.allocate(size, this.stream), bytes: size };
  }

  alloc(dtype: DType, length: number): CudaBuffer {
    if (this.disposed) throw new PlanishError("this arena was disposed; allocate from a live one");
    checkLength(length);
    const bytes = roundUp(length * BYTES_PER_ELEMENT[dtype], ALIGNMENT);
    if (this.chunks.length === 0) this.chunks.push(this.take(bytes));
    while (this.offset + bytes > this.chunks[this.chunk].bytes) {
      const next = this.chunk + 1;
      // A chunk that is too small for this request is exchanged, not skipped: nothing in it is in use.
      if (next < this.chunks.length && this.chunks[next].bytes < bytes) {
        this.driver.free(this.chunks[next].pointer, this.stream);
        this.chunks[next] = this.take(bytes);
      } else if (next === this.chunks.length) {
        this.chunks.push(this.take(bytes));
      }
      this.chunk = next;
      this.offset = 0;
    }
    const pointer = this.chunks[this.chunk].pointer + this.offset;
    this.offset += bytes;
    this.used += bytes;
    if (this.used > this.peak) this.peak = this.used;
    return new CudaBuffer(dtype, length, pointer, false);
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
    this.beforeFree();
    for (const { pointer } of this.chunks) this.driver.free(pointer, this.stream);
    this.chunks.length = 0;
  }
}

/**
 * Space that one kernel call needs between its launches. Launches are ordered by the stream, so every call starts at
 * the beginning again (`begin`); it grows to the largest call.
 */
export class Scratch implements Disposable {
  private pointer: DevicePointer = 0;
  private bytes = 0;
  private offset = 0;
  /** Blocks that a call outgrew: its earlier pointers stay valid until the next `begin`. */
  private outgrown: DevicePointer[] = [];

  constructor(
    private readonly driver: CudaDriver,
    private readonly stream: Stream,
  ) {}

  /** Starts a call: everything taken before is free again. */
  begin(): void {
    this.offset = 0;
    for (const pointer of this.outgrown) this.driver.free(pointer, this.stream);
    this.outgrown.length = 0;
  }

  /** `bytes` of space, 256-byte aligned. */
  take(bytes: number): DevicePointer {
    const size = roundUp(Math.max(bytes, 1), ALIGNMENT);
    if (this.offset + size > this.bytes) {
      if (this.pointer !== 0) this.outgrown.push(this.pointer);
      // Twice the need at first, so that a few calls settle the size.
      this.bytes = roundUp(Math.max(2 * size, this.bytes + size, CHUNK_BYTES), 2 ** 21);
      if (this.bytes > 2 ** 30) this.bytes = roundUp(this.offset + size, 2 ** 21);
      this.pointer = this.driver.allocate(this.bytes, this.stream);
      this.offset = 0;
    }
    const pointer = this.pointer + this.offset;
    this.offset += size;
    return pointer;
  }

  [Symbol.dispose](): void {
    this.begin();
    if (this.pointer !== 0) this.driver.free(this.pointer, this.stream);
    this.pointer = 0;
    this.bytes = 0;
  }
}

const STAGING_BYTES = 16 * 2 ** 20;

interface Stage {
  readonly memory: PinnedMemory;
  readonly idle: Event;
}

/** Copies between JavaScript's arrays and the device through two pinned stages, one filled while the other travels. */
export class Transfers implements Disposable {
  private readonly stages: Stage[] = [];
  private next = 0;

  constructor(
    private readonly driver: CudaDriver,
    private readonly stream: Stream,
  ) {}

  private stage(): Stage {
    if (this.stages.length < 2) {
      const fresh = {
        memory: this.driver.allocatePinned(STAGING_BYTES),
        idle: this.driver.createEvent(false),
      };
      this.stages.push(fresh);
      this.next = this.stages.length - 1;
      return fresh;
    }
    this.next = (this.next + 1) % 2;
    const stage = this.stages[this.next];
    this.driver.synchronizeEvent(stage.idle);
    return stage;
  }

  /** Copies `source` in; returns once the host array may change again, not when the device has it. */
  write(target: DevicePointer, source: ArrayBufferView): void {
    let at = target;
    for (const part of bytePieces(source, STAGING_BYTES)) {
      const { memory, idle } = this.stage();
      new Uint8Array(memory.bytes).set(part);
      this.driver.copyToDevice(at, memory.address, part.length, this.stream);
      this.driver.record(idle, this.stream);
      at += part.length;
    }
  }

  /** Fills `target` from the device; waits for all earlier work of the stream. */
  read(source: DevicePointer, target: ArrayBufferView): void {
    let pending: { stage: Stage; part: Uint8Array } | undefined;
    const finish = () => {
      if (!pending) return;
      const { stage, part } = pending;
      this.driver.synchronizeEvent(stage.idle);
      part.set(new Uint8Array(stage.memory.bytes, 0, part.length));
      pending = undefined;
    };
    let at = source;
    for (const part of bytePieces(target, STAGING_BYTES)) {
      const stage = this.stage();
      this.driver.copyToHost(stage.memory.address, at, part.length, this.stream);
      this.driver.record(stage.idle, this.stream);
      // The part before is taken out of its stage while this one travels.
      finish();
      pending = { stage, part };
      at += part.length;
    }
    finish();
  }

  [Symbol.dispose](): void {
    for (const { memory, idle } of this.stages) {
      this.driver.synchronizeEvent(idle);
      this.driver.destroyEvent(idle);
      this.driver.freePinned(memory);
    }
    this.stages.length = 0;
  }
}

/** Arrays locked in memory, and a stream of their own that takes them to the device; see Uploads. */
export class CudaUploads implements Uploads {
  private readonly copies: Stream;
  /** Marks the place on either stream that the other waits for. */
  private readonly mark: Event;
  private readonly locked: HostArray[] = [];

  private constructor(
    private readonly driver: CudaDriver,
    private readonly stream: Stream,
    private readonly beforeStart: () => void,
  ) {
    this.copies = driver.createStream();
    this.mark = driver.createEvent(false);
  }

  /** @param beforeStart Called before a place on `stream` is marked: it enqueues what still waits to be enqueued. */
  static open(
    driver: CudaDriver,
    stream: Stream,
    arrays: readonly HostArray[],
    beforeStart: () => void,
  ): CudaUploads | undefined {
    const uploads = new CudaUploads(driver, stream, beforeStart);
    for (const array of arrays) {
      if (!driver.register(array)) {
        uploads[Symbol.dispose]();
        return undefined;
      }
      uploads.locked.push(array);
    }
    return uploads;
  }

  start(source: HostArray, target: Buffer): void {
    const { pointer, dtype, length } = cudaBuffer(target);
    if (source.length > length || !isHostArrayOf(dtype, source))
      throw new PlanishError(
        `uploads: ${source.length} elements of ${source.constructor.name} do not go into ${length} of ${dtype} as they are`,
      );
    if (!this.locked.some((array) => array.buffer === source.buffer))
      throw new PlanishError("uploads: the source is no part of the arrays that were made ready");
    this.beforeStart();
    this.driver.record(this.mark, this.stream);
    this.driver.waitFor(this.mark, this.copies);
    this.driver.copyArrayToDevice(pointer, source, this.copies);
  }

  join(): void {
    this.driver.record(this.mark, this.copies);
    this.driver.waitFor(this.mark, this.stream);
  }

  [Symbol.dispose](): void {
    this.driver.synchronize(this.copies);
    for (const array of this.locked) this.driver.unregister(array);
    this.locked.length = 0;
    this.driver.destroyEvent(this.mark);
    this.driver.destroyStream(this.copies);
  }
}

function isHostArrayOf(dtype: DType, data: HostArray): boolean {
  return data.constructor === newHostArray(dtype, 0).constructor;
}

/** `data` as an array of `dtype`, itself when it is one. */
export function asHostArray(dtype: DType, data: HostArray): HostArray {
  if (isHostArrayOf(dtype, data)) return data;
  const converted = newHostArray(dtype, data.length);
  converted.set(data);
  return converted;
}
