/**
 * Memory of an engine: native blocks that plans name by address. They live until the engine is disposed, so the typed
 * arrays over them must not leave this folder. What can exceed the largest ArrayBuffer (packed weights, the cache) is
 * reserved without one.
 */
import { BYTES_PER_ELEMENT, type DType, type HostArray } from "../../contract/training.js";
import { refusal } from "../library.js";
import type { NativeLibrary } from "../../contract/native-library.js";
import { copyArrays, NativeMapping, PIECE_BYTES } from "../mapping.js";
import { PlanishError } from "../../../common/errors.js";

/** A typed array and where it lies. */
export interface Place<T extends HostArray = HostArray> {
  readonly data: T;
  readonly address: bigint;
}

/** Bytes of any number, which kernels read and write by address. */
export interface Region {
  readonly address: bigint;
  readonly bytes: number;
  /** Copies bytes to another place in it; the two must not overlap. */
  copy(from: number, to: number, bytes: number): void;
}

const ALIGNMENT = 64;
/** Larger blocks are mapped one by one; smaller ones are cut from slabs of this size. */
const SLAB_BYTES = 1 << 20;

export class EngineMemory implements Disposable {
  private readonly mappings: NativeMapping[] = [];
  private slab: NativeMapping | undefined;
  private used = 0;

  constructor(private readonly library: NativeLibrary) {}

  /**
   * Zero-filled memory that JavaScript reads and writes, of at most PIECE_BYTES.
   * @throws PlanishError when the system refuses it.
   */
  alloc<T extends HostArray>(type: DType, length: number): Place<T> {
    const { mapping, offset, bytes } = this.place(length * BYTES_PER_ELEMENT[type]);
    if (bytes > PIECE_BYTES)
      throw new PlanishError(
        `a buffer of ${length} elements is more than the engine takes in one piece (${PIECE_BYTES / BYTES_PER_ELEMENT[type]} elements); the model's config.json claims sizes that no model has`,
      );
    const [data] = mapping.arrays(type, offset, length);
    return { data: data as T, address: mapping.address + BigInt(offset) };
  }

  /** Zero-filled memory of any size. @throws PlanishError when the system refuses it. */
  reserve(bytes: number): Region {
    const { mapping, offset } = this.place(bytes);
    const arrays = (at: number, length: number) => mapping.arrays("u8", offset + at, length);
    return {
      address: mapping.address + BigInt(offset),
      bytes,
      copy: (from, to, length) => copyArrays(arrays(from, length), arrays(to, length)),
    };
  }

  /** A copy of f32 values. */
  floats(values: ArrayLike<number>): { readonly address: bigint } {
    const { mapping, offset } = this.place(4 * values.length);
    copyArrays(
      [values instanceof Float32Array ? values : Float32Array.from(values)],
      mapping.arrays("f32", offset, values.length),
    );
    return { address: mapping.address + BigInt(offset) };
  }

  /** A copy of indices. */
  integers(values: ArrayLike<number>): Place<Int32Array> {
    const place = this.alloc<Int32Array>("i32", values.length);
    place.data.set(values);
    return place;
  }

  private place(bytes: number): { mapping: NativeMapping; offset: number; bytes: number } {
    const rounded = Math.max(ALIGNMENT, Math.ceil(bytes / ALIGNMENT) * ALIGNMENT);
    if (rounded > SLAB_BYTES / 4) return { mapping: this.map(rounded), offset: 0, bytes: rounded };
    if (!this.slab || this.used + rounded > SLAB_BYTES) {
      this.slab = this.map(SLAB_BYTES);
      this.used = 0;
    }
    const offset = this.used;
    this.used += rounded;
    return { mapping: this.slab, offset, bytes: rounded };
  }

  private map(bytes: number): NativeMapping {
    const pointer = Number.isSafeInteger(bytes) ? this.library.allocate(bytes) : null;
    if (!pointer)
      throw new PlanishError(
        refusal(this.library, bytes, "use a smaller model or a smaller cache"),
      );
    const mapping = new NativeMapping(this.library, pointer, bytes);
    this.mappings.push(mapping);
    return mapping;
  }

  [Symbol.dispose](): void {
    for (const { pointer, bytes } of this.mappings.splice(0)) this.library.release(pointer, bytes);
    this.slab = undefined;
  }
}
