/** Lists of kernel calls that the native side runs in one go (native/plan.cpp); the numbers are those of Operation. */
import type { EngineMemory, Place } from "./memory.js";

export const OPERATION = {
  embed: 0,
  positions: 1,
  site: 2,
  product: 3,
  cache: 4,
  attention: 5,
  norm: 6,
  flatten: 7,
} as const;
export type Operation = keyof typeof OPERATION;

const WORDS = 24;

/** A real parameter, told from an integer by its wrapper. */
export class Real {
  constructor(readonly value: number) {}
}
export type Word = number | bigint | Real;

/** What a multi-part product is made of (PackedPart in native/packed_matmul.h). */
export interface ProductPart {
  readonly n: number;
  readonly a: bigint;
  readonly aScale: bigint;
  readonly packed: bigint;
  readonly bScale: bigint;
  readonly bias: bigint;
  readonly out: bigint;
  readonly outStride: number;
}

export class Plan {
  private readonly calls: { readonly operation: Operation; readonly words: readonly Word[] }[] = [];
  private place: Place<Uint8Array> | undefined;

  constructor(private readonly memory: EngineMemory) {}

  /** Appends a call: its kernel's parameters in order, without rows and chunks. */
  add(operation: Operation, ...words: Word[]): void {
    if (words.length >= WORDS) throw new RangeError(`plan: ${operation} has ${words.length} words`);
    this.calls.push({ operation, words });
  }

  /** A table of parts, as `product` takes it. */
  parts(parts: readonly ProductPart[]): bigint {
    const place = this.memory.alloc<Uint8Array>("u8", parts.length * 64);
    const table = new BigInt64Array(place.data.buffer, place.data.byteOffset, parts.length * 8);
    parts.forEach((part, i) =>
      table.set(
        [
          BigInt(part.n),
          part.a,
          part.aScale,
          part.packed,
          part.bScale,
          part.bias,
          part.out,
          BigInt(part.outStride),
        ],
        i * 8,
      ),
    );
    return place.address;
  }

  get length(): number {
    return this.calls.length;
  }

  /** Writes the calls to native memory; returns their address. */
  finish(): bigint {
    this.place = this.memory.alloc<Uint8Array>("u8", this.calls.length * WORDS * 8);
    const view = new DataView(this.place.data.buffer, this.place.data.byteOffset);
    this.calls.forEach(({ operation, words }, call) => {
      const base = call * WORDS * 8;
      view.setBigInt64(base, BigInt(OPERATION[operation]), true);
      words.forEach((word, i) => {
        const at = base + 8 * (i + 1);
        if (word instanceof Real) view.setFloat64(at, word.value, true);
        else view.setBigInt64(at, BigInt(word), true);
      });
    });
    return this.place.address;
  }
}
