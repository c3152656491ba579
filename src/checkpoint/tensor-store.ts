/**
 * Tensors located in open files: the part of a checkpoint that is the same for every format. Reads one
 * tensor at a time into its result, through a small pooled buffer where the stored type is not float32.
 */

import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { bytePieces } from "../common/bytes.js";
import { PlanishError } from "../common/errors.js";
import type { StoredTensor } from "./checkpoint.js";
import { ELEMENT_BYTES, elementsToFloat32, isElementType } from "./element-types.js";
import type { FileReader } from "./file-reader.js";
import { quoteName } from "./safetensors-header.js";

/** Bytes converted at a time; a multiple of every element and block size is taken from it. */
const CHUNK_BYTES = 4 << 20;

/** Where a tensor's bytes are, and how they become floats. */
export interface LocatedTensor {
  readonly tensor: StoredTensor;
  readonly reader: FileReader;
  readonly position: number;
  /**
   * Row order: row `i` of the tensor is stored row `rowOrder(i)`. Rows are whole numbers of blocks, so
   * this holds for stored bytes as well as for elements.
   */
  readonly rowOrder?: (row: number) => number;
}

/** Dequantizes whole blocks: `bytes` to `out` from `outOffset`. */
export type BlockDecoder = (bytes: Uint8Array, out: Float32Array, outOffset: number) => void;

/** A type stored in blocks of several elements. */
export interface BlockFormat {
  readonly blockElements: number;
  readonly blockBytes: number;
  readonly decode: BlockDecoder;
}

let pool: Uint8Array | undefined;

/** Scratch for conversions. Reads are synchronous and never nested, so one buffer serves all of them. */
function pooledChunk(bytes: number): Uint8Array {
  pool ??= new Uint8Array(CHUNK_BYTES);
  return pool.subarray(0, bytes);
}

/** Number of elements of a shape (1 for a scalar). */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

export class TensorStore implements Disposable {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly #located: ReadonlyMap<string, LocatedTensor>;
  readonly #readers: readonly FileReader[];
  readonly #blockFormats: Readonly<Record<string, BlockFormat>>;
  readonly #path: string;

  /** Takes ownership of `readers`: disposing closes them. */
  constructor(
    path: string,
    located: ReadonlyMap<string, LocatedTensor>,
    readers: readonly FileReader[],
    blockFormats: Readonly<Record<string, BlockFormat>> = {},
  ) {
    this.#path = path;
    this.#located = located;
    this.#readers = readers;
    this.#blockFormats = blockFormats;
    this.tensors = new Map([...located].map(([name, { tensor }]) => [name, tensor]));
  }

  /** Reads one tensor as float32. Throws PlanishError when it is absent, truncated or of no known type. */
  read(name: string): Float32Array {
    const { tensor, reader, position, rowOrder } = this.#find(name);
    const what = `tensor ${quoteName(name)}`;
    const count = elementCount(tensor.shape);
    const out = this.#allocate(count, tensor);
    if (rowOrder) {
      this.#convert(tensor, this.readBytes(name), out, 0);
      return out;
    }
    if (tensor.type === "F32") {
      let at = position;
      for (const piece of bytePieces(out)) {
        reader.readInto(piece, at, what);
        at += piece.byteLength;
      }
      return out;
    }
    const { unitElements, unitBytes } = this.#unit(tensor);
    const unitsPerChunk = Math.floor(CHUNK_BYTES / unitBytes);
    const units = count / unitElements;
    for (let unit = 0; unit < units; unit += unitsPerChunk) {
      const chunk = pooledChunk(Math.min(unitsPerChunk, units - unit) * unitBytes);
      reader.readInto(chunk, position + unit * unitBytes, what);
      this.#convert(tensor, chunk, out, unit * unitElements);
    }
    return out;
  }

  /** Raw bytes of one tensor as stored (rows reordered where the file's order differs). */
  readBytes(name: string): Uint8Array {
    const { tensor, reader, position, rowOrder } = this.#find(name);
    const bytes = this.#allocateBytes(tensor);
    reader.readInto(bytes, position, `tensor ${quoteName(name)}`);
    if (!rowOrder) return bytes;
    const rows = tensor.shape[0];
    const rowBytes = tensor.bytes / rows;
    const ordered = this.#allocateBytes(tensor);
    for (let row = 0; row < rows; row++) {
      const from = rowOrder(row) * rowBytes;
      ordered.set(bytes.subarray(from, from + rowBytes), row * rowBytes);
    }
    return ordered;
  }

  /**
   * SHA-256 in hexadecimal: for each tensor in code-unit order of names, the UTF-8 line
   * `[name, type, shape]` as JSON and a line feed, then its bytes. Independent of how tensors are spread
   * over files and of metadata.
   */
  async hash(): Promise<string> {
    const sha = createHash("sha256");
    const chunk = new Uint8Array(CHUNK_BYTES);
    for (const name of [...this.#located.keys()].sort()) {
      const { tensor, reader, position, rowOrder } = this.#find(name);
      sha.update(`${JSON.stringify([name, tensor.type, tensor.shape])}\n`);
      if (rowOrder) {
        for (const piece of bytePieces(this.readBytes(name))) sha.update(piece);
      } else {
        for (let done = 0; done < tensor.bytes; done += CHUNK_BYTES) {
          const part = chunk.subarray(0, Math.min(CHUNK_BYTES, tensor.bytes - done));
          reader.readInto(part, position + done, `tensor ${quoteName(name)}`);
          sha.update(part);
        }
      }
      // Lets signals and progress bars have their turn between tensors.
      await setImmediate();
    }
    return sha.digest("hex");
  }

  [Symbol.dispose](): void {
    for (const reader of this.#readers) reader.close();
  }

  #find(name: string): LocatedTensor {
    const located = this.#located.get(name);
    if (located) return located;
    const some = [...this.#located.keys()].slice(0, 3).map(quoteName).join(", ");
    throw new PlanishError(
      `${this.#path} has no tensor ${quoteName(name)} (it has ${this.#located.size}${some && `, such as ${some}`})`,
    );
  }

  #allocate(count: number, tensor: StoredTensor): Float32Array {
    try {
      return new Float32Array(count);
    } catch (error) {
      throw new PlanishError(
        `${tensor.file}: tensor ${quoteName(tensor.name)} needs ${4 * count} bytes as float32, more than can be allocated`,
        { cause: error },
      );
    }
  }

  #allocateBytes(tensor: StoredTensor): Uint8Array {
    try {
      return new Uint8Array(tensor.bytes);
    } catch (error) {
      throw new PlanishError(
        `${tensor.file}: tensor ${quoteName(tensor.name)} has ${tensor.bytes} bytes, more than can be allocated in one piece`,
        { cause: error },
      );
    }
  }

  #unit(tensor: StoredTensor): { unitElements: number; unitBytes: number } {
    if (isElementType(tensor.type)) {
      return { unitElements: 1, unitBytes: ELEMENT_BYTES[tensor.type] };
    }
    const format = this.#blockFormats[tensor.type];
    if (format) return { unitElements: format.blockElements, unitBytes: format.blockBytes };
    throw new PlanishError(
      `${tensor.file}: tensor ${quoteName(tensor.name)} has type ${tensor.type}, which has no decoder here`,
    );
  }

  #convert(tensor: StoredTensor, bytes: Uint8Array, out: Float32Array, outOffset: number): void {
    if (isElementType(tensor.type)) elementsToFloat32(tensor.type, bytes, out, outOffset);
    else this.#blockFormats[tensor.type].decode(bytes, out, outOffset);
  }
}
