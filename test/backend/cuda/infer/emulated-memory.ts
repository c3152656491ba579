/** Memory of the emulated GPU: poisoned where nothing was written, and an address outside of it throws. */
import { elementsToFloat32 } from "../../../../src/checkpoint/element-types.js";

interface Allocation {
  readonly start: number;
  readonly bytes: ArrayBuffer;
}

export class EmulatedMemory {
  private readonly allocations = new Map<number, Allocation>();
  /** Where the last address was found. */
  private latest: Allocation | undefined;
  private next = 2 ** 40;

  allocate(bytes: number): number {
    const start = this.next;
    this.next += Math.ceil(bytes / 256) * 256 + 4096;
    const memory = new ArrayBuffer(bytes);
    new Uint8Array(memory).fill(0xff);
    this.allocations.set(start, { start, bytes: memory });
    return start;
  }

  free(pointer: number): void {
    this.latest = undefined;
    if (!this.allocations.delete(pointer)) throw new Error(`address ${pointer} was not allocated`);
  }

  find(pointer: number): Allocation {
    const holds = ({ start, bytes }: Allocation) =>
      pointer >= start && pointer < start + bytes.byteLength;
    if (this.latest && holds(this.latest)) return this.latest;
    for (const allocation of this.allocations.values())
      if (holds(allocation)) return (this.latest = allocation);
    throw new Error(`address ${pointer} is in no memory of the device`);
  }

  view<T>(
    type: new (buffer: ArrayBuffer, offset: number, length: number) => T,
    pointer: number,
    length: number,
  ): T {
    const { start, bytes } = this.find(pointer);
    return new type(bytes, pointer - start, length);
  }

  /** Elements from `pointer` to the end of its allocation. */
  rest<T>(
    type: {
      new (buffer: ArrayBuffer, offset: number, length: number): T;
      readonly BYTES_PER_ELEMENT: number;
    },
    pointer: number,
  ): T {
    const { start, bytes } = this.find(pointer);
    const length = Math.floor((bytes.byteLength - (pointer - start)) / type.BYTES_PER_ELEMENT);
    return new type(bytes, pointer - start, length);
  }

  /** 16-bit numbers as floats. */
  halves(pointer: number, length: number, bf16: number): Float32Array {
    const out = new Float32Array(length);
    const bytes = this.view(Uint8Array, pointer, 2 * length);
    elementsToFloat32(bf16 ? "BF16" : "F16", bytes, out, 0);
    return out;
  }
}
