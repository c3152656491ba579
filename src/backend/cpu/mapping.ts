/**
 * Native memory of any size, seen by JavaScript in pieces.
 *
 * An ArrayBuffer over foreign memory holds at most `buffer.constants.MAX_LENGTH` bytes (4 GiB on Node 20), and asking for
 * more ends the process. So kernels get addresses, and JavaScript sees a block through ArrayBuffers of at most PIECE_BYTES,
 * made when they are first touched: a KV cache that only kernels read has none.
 */
import { BYTES_PER_ELEMENT, type DType, type HostArray } from "../contract/training.js";
import { hostArray } from "../contract/host-memory.js";
import type { NativeLibrary } from "../contract/native-library.js";

/** Bytes seen as one ArrayBuffer. A multiple of every element's size, so that none lies in two pieces. */
export const PIECE_BYTES = 2 ** 30;

/** What keeps memory mapped: as long as a piece of it is reachable, so is the mapping. */
const mappingOf = new WeakMap<ArrayBufferLike | HostArray, NativeMapping>();

interface Piece {
  readonly buffer: ArrayBufferLike;
  readonly offset: number;
}

export class NativeMapping {
  readonly address: bigint;
  private readonly pieces: (Piece | undefined)[] = [];

  /** @param pointer What `pl_alloc` returned for `bytes`. */
  constructor(
    private readonly library: NativeLibrary,
    readonly pointer: unknown,
    readonly bytes: number,
  ) {
    this.address = library.address(pointer);
  }

  /**
   * Typed arrays that follow one another over `length` elements from byte `offset` on: one, unless they lie in several
   * pieces. @throws RangeError outside the block.
   */
  *arrays(dtype: DType, offset: number, length: number): Generator<HostArray> {
    const width = BYTES_PER_ELEMENT[dtype];
    const end = offset + length * width;
    if (!(offset >= 0 && offset % width === 0 && length >= 0 && end <= this.bytes))
      throw new RangeError(`bytes ${offset} to ${end} lie outside a block of ${this.bytes}`);
    for (let at = offset; at < end;) {
      const piece = Math.floor(at / PIECE_BYTES);
      const stop = Math.min(end, (piece + 1) * PIECE_BYTES);
      const { buffer, offset } = this.piece(piece);
      const start = offset + at - piece * PIECE_BYTES;
      const array = hostArray(dtype, (stop - at) / width, buffer, start);
      // All of WebAssembly's mappings share a buffer.
      if (offset > 0) mappingOf.set(array, this);
      yield array;
      at = stop;
    }
  }

  private piece(index: number): Piece {
    const made = this.pieces[index];
    if (made) return made;
    const start = index * PIECE_BYTES;
    const piece = this.library.view(
      this.address + BigInt(start),
      Math.min(PIECE_BYTES, this.bytes - start),
    );
    if (piece.offset === 0) mappingOf.set(piece.buffer, this);
    this.pieces[index] = piece;
    return piece;
  }
}

/** Copies elements from one run of arrays to another, as typed arrays convert them; both hold equally many in all. */
export function copyArrays(source: Iterable<HostArray>, target: Iterable<HostArray>): void {
  const from = source[Symbol.iterator]();
  let rest: HostArray | undefined;
  for (let to of target)
    while (to.length > 0) {
      if (!rest || rest.length === 0) {
        const next = from.next();
        if (next.done) return;
        rest = next.value;
      }
      const count = Math.min(rest.length, to.length);
      to.set(rest.subarray(0, count));
      rest = rest.subarray(count);
      to = to.subarray(count);
    }
}
