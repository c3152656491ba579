/**
 * The GGUF container, versions 2 and 3, little-endian: metadata and tensor descriptions, each claim checked
 * against the size of the file before anything is allocated for it. Knows no architectures.
 *
 * Layout: "GGUF", u32 version, u64 tensor count, u64 metadata count; metadata (string key, u32 type, value);
 * tensor descriptions (string name, u32 rank, u64 extents with the fastest first, u32 type, u64 offset); padding
 * to the alignment; data. Strings are a u64 length and UTF-8.
 */

import { isIntegerIn, shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { StoredTensor, StoredType } from "./checkpoint.js";
import { ELEMENT_BYTES, isElementType } from "./element-types.js";
import type { FileReader } from "./file-reader.js";
import { foreignKind } from "./foreign-file.js";
import { BLOCK_FORMATS } from "./gguf-blocks.js";
import { quoteName, sizeInBytes } from "./safetensors-header.js";

/** Numeric arrays come as typed arrays; 64-bit integers as bigint only where they are not exact numbers. */
export type GgufValue = number | bigint | boolean | string | string[] | GgufNumbers | GgufValue[];
export type GgufNumbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

export interface GgufTensor extends StoredTensor {
  /** Position of its first byte in the file. */
  readonly position: number;
}

export interface GgufFile {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensor[];
}

/** More than the largest vocabularies and merge lists by an order of magnitude. */
const MAX_LIST = 4_000_000;
const MAX_STRING_BYTES = 16 << 20;
const MAX_KEYS = 65_536;
/** Arrays inside arrays, in the whole file: published files have none, and an empty one takes far more memory than bytes. */
const MAX_NESTED = 65_536;
const MAX_TENSORS = 1_000_000;
const MAX_RANK = 4;
const MAX_ALIGNMENT = 1 << 20;
const DEFAULT_ALIGNMENT = 32;

const TENSOR_TYPES: Readonly<Record<number, StoredType>> = {
  0: "F32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  6: "Q5_0",
  7: "Q5_1",
  8: "Q8_0",
  12: "Q4_K",
  13: "Q5_K",
  14: "Q6_K",
  39: "MXFP4",
  24: "I8",
  26: "I32",
  27: "I64",
  28: "F64",
  30: "BF16",
};

/** The file's number for a type. @throws PlanishError for types that GGUF has none for. */
export function ggufTypeCode(type: StoredType): number {
  const code = Object.entries(TENSOR_TYPES).find(([, name]) => name === type)?.[0];
  if (code === undefined) throw new PlanishError(`GGUF has no tensors of type ${type}`);
  return Number(code);
}

/** Names of types that exist but are not read, for the error. */
const OTHER_TYPES: Readonly<Record<number, string>> = {
  9: "Q8_1",
  10: "Q2_K",
  11: "Q3_K",
  15: "Q8_K",
  16: "IQ2_XXS",
  17: "IQ2_XS",
  18: "IQ3_XXS",
  19: "IQ1_S",
  20: "IQ4_NL",
  21: "IQ3_S",
  22: "IQ2_S",
  23: "IQ4_XS",
  25: "I16",
  29: "IQ1_M",
  34: "TQ1_0",
  35: "TQ2_0",
};

const VALUE_BYTES: readonly number[] = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
const TYPE_BOOL = 7;
const TYPE_STRING = 8;
const TYPE_ARRAY = 9;

/** Sequential reading of the file's front part through a window, with a bound on everything. */
class Cursor {
  position = 0;
  /** Arrays inside arrays so far. */
  nested = 0;
  readonly #reader: FileReader;
  #window = new Uint8Array(0);
  #windowStart = 0;

  constructor(reader: FileReader) {
    this.#reader = reader;
  }

  get remaining(): number {
    return this.#reader.size - this.position;
  }

  get path(): string {
    return this.#reader.path;
  }

  /** The next `count` bytes, valid until the next call. */
  take(count: number, what: string): Uint8Array {
    if (count > this.remaining) {
      throw new PlanishError(
        `${this.path} is truncated: ${what} needs ${count} bytes at byte ${this.position}, ${this.remaining} are left; fetch it again`,
      );
    }
    let start = this.position - this.#windowStart;
    if (start + count > this.#window.byteLength) {
      this.#window = new Uint8Array(Math.min(this.remaining, Math.max(count, 1 << 20)));
      this.#reader.readInto(this.#window, this.position, what);
      this.#windowStart = this.position;
      start = 0;
    }
    this.position += count;
    return this.#window.subarray(start, start + count);
  }

  view(count: number, what: string): DataView {
    const bytes = this.take(count, what);
    return new DataView(bytes.buffer, bytes.byteOffset, count);
  }

  u32(what: string): number {
    return this.view(4, what).getUint32(0, true);
  }

  u64(what: string): bigint {
    return this.view(8, what).getBigUint64(0, true);
  }

  /** A count of things that each take at least `minBytes` in the rest of the file. */
  count(what: string, minBytes: number, limit: number): number {
    const claimed = this.u64(what);
    if (claimed > BigInt(limit) || claimed * BigInt(minBytes) > BigInt(this.remaining)) {
      throw new PlanishError(
        `${this.path}: claims ${claimed} for ${what}, more than ${claimed > BigInt(limit) ? `the ${limit} that are accepted` : `the ${this.remaining} bytes left in the file can hold`}`,
      );
    }
    return Number(claimed);
  }

  string(what: string): string {
    const length = this.count(`the length of ${what}`, 1, MAX_STRING_BYTES);
    return utf8.decode(this.take(length, what));
  }
}

// Not fatal: some published vocabularies hold tokens that are not whole characters.
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** Whether the file begins like GGUF. */
export function looksLikeGguf(reader: FileReader): boolean {
  if (reader.size < 4) return false;
  const magic = new Uint8Array(4);
  reader.readInto(magic, 0, "the first bytes");
  return magic[0] === 0x47 && magic[1] === 0x47 && magic[2] === 0x55 && magic[3] === 0x46;
}

/** Parses and checks everything before the data. Throws PlanishError naming the file and the claim. */
export function parseGguf(reader: FileReader): GgufFile {
  const { path } = reader;
  if (reader.size === 0) throw new PlanishError(`${path} is empty; fetch it again`);
  if (!looksLikeGguf(reader)) {
    const start = new Uint8Array(Math.min(16, reader.size));
    reader.readInto(start, 0, "the first bytes");
    const kind = foreignKind(start);
    if (kind !== undefined) throw new PlanishError(`${path} is ${kind}`);
    throw new PlanishError(`${path}: not a GGUF file: it does not begin with "GGUF"`);
  }
  const cursor = new Cursor(reader);
  cursor.take(4, "the magic number");
  const version = cursor.u32("the version");
  if (version !== 2 && version !== 3) {
    throw new PlanishError(
      version !== 0 && (version & 0xffff) === 0
        ? `${path}: big-endian GGUF is not supported; use the little-endian file`
        : `${path}: GGUF version ${version} is not supported (accepted: 2 and 3); convert it with a current llama.cpp`,
    );
  }
  // A description takes at least its name's length, rank, one extent, type and offset; a key its length, a
  // type and one byte.
  const tensorCount = cursor.count("the number of tensors", 8 + 4 + 4 + 8, MAX_TENSORS);
  const keyCount = cursor.count("the number of metadata keys", 8 + 4 + 1, MAX_KEYS);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = cursor.string(`metadata key ${i}`);
    const where = `metadata ${quoteName(key)}`;
    if (metadata.has(key)) throw new PlanishError(`${path}: ${where} is listed more than once`);
    metadata.set(key, readValue(cursor, cursor.u32(where), where, 0));
  }
  const alignment = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT;
  if (
    !isIntegerIn(alignment, { min: 1, max: MAX_ALIGNMENT }) ||
    (alignment & (alignment - 1)) !== 0
  ) {
    throw new PlanishError(
      `${path}: general.alignment must be a power of two up to ${MAX_ALIGNMENT}, not ${shown(alignment)}`,
    );
  }
  const described: Described[] = [];
  for (let i = 0; i < tensorCount; i++) described.push(readTensor(cursor, i));
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  return { version, metadata, tensors: placeTensors(described, dataStart, alignment, reader) };
}

function readValue(cursor: Cursor, type: number, where: string, depth: number): GgufValue {
  const bytes = VALUE_BYTES[type];
  if (bytes === undefined) {
    throw new PlanishError(`${cursor.path}: ${where} has unknown value type ${type}`);
  }
  if (type === TYPE_STRING) return cursor.string(where);
  if (type === TYPE_ARRAY) return readArray(cursor, where, depth);
  const view = cursor.view(bytes, where);
  switch (type) {
    case 0:
      return view.getUint8(0);
    case 1:
      return view.getInt8(0);
    case 2:
      return view.getUint16(0, true);
    case 3:
      return view.getInt16(0, true);
    case 4:
      return view.getUint32(0, true);
    case 5:
      return view.getInt32(0, true);
    case 6:
      return view.getFloat32(0, true);
    case TYPE_BOOL:
      return view.getUint8(0) !== 0;
    case 10:
      return exactNumber(view.getBigUint64(0, true));
    case 11:
      return exactNumber(view.getBigInt64(0, true));
    default:
      return view.getFloat64(0, true);
  }
}

function exactNumber(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function readArray(cursor: Cursor, where: string, depth: number): GgufValue {
  if (depth > 1) {
    throw new PlanishError(`${cursor.path}: ${where} nests arrays more than two deep`);
  }
  const type = cursor.u32(where);
  const bytes = VALUE_BYTES[type];
  if (bytes === undefined) {
    throw new PlanishError(`${cursor.path}: ${where} has unknown element type ${type}`);
  }
  const count = cursor.count(`the elements of ${where}`, bytes, MAX_LIST);
  if (type === TYPE_STRING) {
    const strings: string[] = [];
    for (let i = 0; i < count; i++) strings.push(cursor.string(`${where}, element ${i}`));
    return strings;
  }
  if (type === TYPE_ARRAY) {
    cursor.nested += count;
    if (cursor.nested > MAX_NESTED) {
      throw new PlanishError(
        `${cursor.path}: ${where} brings the arrays inside arrays to ${cursor.nested}, at most ${MAX_NESTED} are accepted`,
      );
    }
    const arrays: GgufValue[] = [];
    for (let i = 0; i < count; i++) arrays.push(readArray(cursor, where, depth + 1));
    return arrays;
  }
  // Copied, so that it is aligned and outlives the cursor's window.
  const { buffer } = cursor.take(count * bytes, where).slice();
  switch (type) {
    case 1:
      return new Int8Array(buffer);
    case 2:
      return new Uint16Array(buffer);
    case 3:
      return new Int16Array(buffer);
    case 4:
      return new Uint32Array(buffer);
    case 5:
      return new Int32Array(buffer);
    case 6:
      return new Float32Array(buffer);
    case 10:
      return new BigUint64Array(buffer);
    case 11:
      return new BigInt64Array(buffer);
    case 12:
      return new Float64Array(buffer);
    default:
      return new Uint8Array(buffer);
  }
}

interface Described {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: StoredType;
  readonly bytes: number;
  readonly offset: bigint;
}

function readTensor(cursor: Cursor, index: number): Described {
  const name = cursor.string(`the name of tensor ${index}`);
  const where = `tensor ${quoteName(name)}`;
  const fail = (what: string): never => {
    throw new PlanishError(`${cursor.path}: ${where}: ${what}`);
  };
  const rank = cursor.u32(where);
  if (rank > MAX_RANK) fail(`has ${rank} dimensions, at most ${MAX_RANK} are accepted`);
  const extents: number[] = [];
  for (let axis = 0; axis < rank; axis++) {
    const extent = cursor.u64(where);
    if (extent === 0n || extent > BigInt(Number.MAX_SAFE_INTEGER)) {
      fail(`dimension ${axis} is ${extent}`);
    }
    extents.push(Number(extent));
  }
  const typeId = cursor.u32(where);
  const offset = cursor.u64(where);
  const type = TENSOR_TYPES[typeId];
  if (type === undefined) {
    return fail(
      `type ${OTHER_TYPES[typeId] ?? typeId} is not supported (accepted: ${Object.values(TENSOR_TYPES).join(", ")})`,
    );
  }
  const block = isElementType(type)
    ? { blockElements: 1, blockBytes: ELEMENT_BYTES[type] }
    : BLOCK_FORMATS[type];
  const rowElements = extents[0] ?? 1;
  if (rowElements % block.blockElements !== 0) {
    fail(`rows of ${rowElements} are no whole number of ${type} blocks of ${block.blockElements}`);
  }
  const bytes = sizeInBytes(
    [rowElements / block.blockElements, ...extents.slice(1)],
    block.blockBytes,
  );
  if (bytes === undefined) return fail(`dimensions [${extents.join(", ")}] are too large`);
  return { name, shape: extents.reverse(), type, bytes, offset };
}

function placeTensors(
  described: readonly Described[],
  dataStart: number,
  alignment: number,
  reader: FileReader,
): GgufTensor[] {
  const { path: file, size } = reader;
  const names = new Set<string>();
  const tensors = described.map(({ offset, ...rest }) => {
    const where = `${file}: tensor ${quoteName(rest.name)}`;
    if (names.has(rest.name)) throw new PlanishError(`${where} is listed more than once`);
    names.add(rest.name);
    if (offset % BigInt(alignment) !== 0n) {
      throw new PlanishError(
        `${where}: its offset ${offset} is no multiple of the alignment ${alignment}`,
      );
    }
    if (BigInt(dataStart) + offset + BigInt(rest.bytes) > BigInt(size)) {
      throw new PlanishError(
        `${where}: its ${rest.bytes} bytes at offset ${offset} reach beyond the end of the file (${size} bytes); it is truncated or its header lies`,
      );
    }
    return { ...rest, file, position: dataStart + Number(offset) };
  });
  const ordered = [...tensors].sort((a, b) => a.position - b.position);
  for (let i = 1; i < ordered.length; i++) {
    const before = ordered[i - 1];
    if (before.position + before.bytes > ordered[i].position) {
      throw new PlanishError(
        `${file}: tensor ${quoteName(ordered[i].name)}: its data overlaps that of tensor ${quoteName(before.name)}`,
      );
    }
  }
  return tensors;
}
