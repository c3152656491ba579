/**
 * Memory of the reference backend: plain typed arrays. Temporary memory is poisoned when it is handed out and when
 * it is given back, so that reading it before writing, or after its arena was rewound, shows as NaN here
 * instead of as a wrong number on a device that reuses the bytes.
 */

import type { Arena, Buffer, DType } from "../../contract/training.js";
import { HostBuffer } from "../../contract/host-memory.js";

function poison(buffer: HostBuffer): void {
  buffer.data.fill(buffer.dtype === "f64" || buffer.dtype === "f32" ? NaN : 0x55);
}

export class ReferenceArena implements Arena {
  #stack: HostBuffer[] = [];
  #bytes = 0;
  #peak = 0;

  get peakBytes(): number {
    return this.#peak;
  }

  alloc(dtype: DType, length: number): Buffer {
    const buffer = HostBuffer.zeros(dtype, length);
    poison(buffer);
    this.#stack.push(buffer);
    this.#bytes += buffer.byteLength;
    this.#peak = Math.max(this.#peak, this.#bytes);
    return buffer;
  }

  mark(): number {
    return this.#stack.length;
  }

  rewind(mark: number): void {
    if (!Number.isInteger(mark) || mark < 0 || mark > this.#stack.length) {
      throw new RangeError(
        `arena: mark ${mark} is not one of 0 … ${this.#stack.length}; it may have been rewound past`,
      );
    }
    for (const buffer of this.#stack.splice(mark)) {
      poison(buffer);
      this.#bytes -= buffer.byteLength;
    }
  }

  [Symbol.dispose](): void {
    this.rewind(0);
  }
}
