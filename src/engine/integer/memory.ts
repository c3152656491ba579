/**
 * Memory of an engine: native blocks that plans name by address. They live until the engine is disposed, so the typed
 * arrays over them must not leave this folder.
 */
import { BYTES_PER_ELEMENT, type DType, type HostArray } from "../../backend/backend.js";
import type { NativeLibrary } from "../../backend/cpu/library.js";
import { typedView } from "../../backend/cpu/memory.js";
import { PlanishError } from "../../common/errors.js";

/** A typed array and where it lies. */
export interface Place<T extends HostArray = HostArray> {
  readonly data: T;
  readonly address: bigint;
}

const ALIGNMENT = 64;
/** Larger blocks are mapped one by one; smaller ones are cut from slabs of this size. */
const SLAB_BYTES = 1 << 20;

interface Mapping {
  readonly pointer: unknown;
  readonly bytes: number;
  readonly view: ArrayBuffer;
  readonly address: bigint;
}

export class EngineMemory implements Disposable {
  private readonly mappings: Mapping[] = [];
  private slab: Mapping | undefined;
  private used = 0;
  private readonly allocate: (bytes: number) => unknown;
  private readonly release: (pointer: unknown, bytes: number) => unknown;

  constructor(private readonly library: NativeLibrary) {
    this.allocate = library.bind("void* pl_alloc(int64_t bytes)");
    this.release = library.bind("void pl_free(void* pointer, int64_t bytes)");
  }

  /** Zero-filled memory. @throws PlanishError when the system refuses it. */
  alloc<T extends HostArray>(type: DType, length: number): Place<T> {
    const bytes = Math.max(
      ALIGNMENT,
      Math.ceil((length * BYTES_PER_ELEMENT[type]) / ALIGNMENT) * ALIGNMENT,
    );
    let mapping: Mapping;
    let offset = 0;
    if (bytes > SLAB_BYTES / 4) mapping = this.map(bytes);
    else {
      if (!this.slab || this.used + bytes > SLAB_BYTES) {
        this.slab = this.map(SLAB_BYTES);
        this.used = 0;
      }
      mapping = this.slab;
      offset = this.used;
      this.used += bytes;
    }
    return {
      data: typedView(type, mapping.view, offset, length) as T,
      address: mapping.address + BigInt(offset),
    };
  }

  /** A copy of f32 values. */
  floats(values: ArrayLike<number>): Place<Float32Array> {
    const place = this.alloc<Float32Array>("f32", values.length);
    place.data.set(values);
    return place;
  }

  /** A copy of indices. */
  integers(values: ArrayLike<number>): Place<Int32Array> {
    const place = this.alloc<Int32Array>("i32", values.length);
    place.data.set(values);
    return place;
  }

  /** Gives back a block that was mapped on its own (more than a quarter of a slab); others stay until the end. */
  free(place: Place): void {
    const at = this.mappings.findIndex(
      ({ address, view }) => address === place.address && view !== this.slab?.view,
    );
    if (at < 0 || this.mappings[at].bytes === SLAB_BYTES) return;
    const [mapping] = this.mappings.splice(at, 1);
    this.release(mapping.pointer, mapping.bytes);
  }

  private map(bytes: number): Mapping {
    const pointer = this.allocate(bytes);
    if (!pointer)
      throw new PlanishError(
        `out of memory: ${(bytes / 2 ** 20).toFixed(0)} MiB more were refused by the system; use a smaller model or a smaller cache`,
      );
    const mapping = {
      pointer,
      bytes,
      view: this.library.view(pointer, bytes),
      address: this.library.address(pointer),
    };
    this.mappings.push(mapping);
    return mapping;
  }

  [Symbol.dispose](): void {
    for (const { pointer, bytes } of this.mappings.splice(0)) this.release(pointer, bytes);
    this.slab = undefined;
  }
}
