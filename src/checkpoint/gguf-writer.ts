/**
 * Writing a GGUF file (version 3, little-endian; the layout is told in `gguf-parser.ts`): streaming, one tensor's data in
 * memory at a time, and whole or not at all.
 */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { bytePieces } from "../common/bytes.js";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { describedWriteError } from "../common/place.js";
import { temporaryName } from "../common/temporary.js";
import type { StoredType } from "./checkpoint.js";
import { ELEMENT_BYTES, isElementType } from "./element-types.js";
import { BLOCK_FORMATS } from "./gguf-blocks.js";
import { ggufTypeCode, type GgufValue } from "./gguf-parser.js";

/** A metadata value with the type that it has in the file; lists are of strings, int32 or float32. */
export type GgufField =
  | { readonly type: "u32" | "f32"; readonly value: number }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly value: string[] }
  | { readonly type: "i32s"; readonly value: Int32Array }
  | { readonly type: "f32s"; readonly value: Float32Array };

/** Metadata by key, in the order of the file. */
export type GgufFields = ReadonlyMap<string, GgufField>;

export interface GgufEntry {
  readonly name: string;
  readonly type: StoredType;
  /** Row-major: the fastest extent last. */
  readonly shape: readonly number[];
  /** Its bytes; called once, when it is this tensor's turn. */
  readonly data: () => Uint8Array | Promise<Uint8Array>;
}

const ALIGNMENT = 32;
const CODES: Readonly<Record<Exclude<GgufField["type"], `${string}s`> | "array" | "i32", number>> =
  { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 };

/** The values alone, as a reader of the file will find them. */
export function plainValues(fields: GgufFields): Map<string, GgufValue> {
  return new Map(
    [...fields].map(([key, { type, value }]) => [key, type === "f32" ? Math.fround(value) : value]),
  );
}

/** Bytes of a tensor in the file. @throws PlanishError when its rows are no whole number of blocks. */
export function ggufBytes({ name, type, shape }: Omit<GgufEntry, "data">): number {
  const elements = shape.reduce((a, b) => a * b, 1);
  if (isElementType(type)) return elements * ELEMENT_BYTES[type];
  const { blockElements, blockBytes } = BLOCK_FORMATS[type];
  const columns = shape[shape.length - 1];
  if (columns % blockElements !== 0)
    throw new PlanishError(
      `tensor ${name} has rows of ${columns}, and ${type} has blocks of ${blockElements}`,
    );
  return (elements / blockElements) * blockBytes;
}

/** Everything up to the first tensor's description. */
export function ggufFront(fields: GgufFields, tensors: number): Buffer {
  const head = Buffer.alloc(24);
  head.write("GGUF", "latin1");
  head.writeUInt32LE(3, 4);
  head.writeBigUInt64LE(BigInt(tensors), 8);
  head.writeBigUInt64LE(BigInt(fields.size), 16);
  const parts: Buffer[] = [head];
  for (const [key, field] of fields) parts.push(text(key), ...encodedField(field));
  return Buffer.concat(parts);
}

function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

function u64(value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt(value));
  return out;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, "utf8");
  return Buffer.concat([u64(bytes.length), bytes]);
}

function encodedField(field: GgufField): Buffer[] {
  const array = (element: "string" | "i32" | "f32", count: number, data: Buffer): Buffer[] => [
    u32(CODES.array),
    u32(CODES[element]),
    u64(count),
    data,
  ];
  const bytesOf = ({ buffer, byteOffset, byteLength }: Int32Array | Float32Array): Buffer =>
    Buffer.from(buffer, byteOffset, byteLength);
  switch (field.type) {
    case "strings":
      return array("string", field.value.length, Buffer.concat(field.value.map(text)));
    case "i32s":
      return array("i32", field.value.length, bytesOf(field.value));
    case "f32s":
      return array("f32", field.value.length, bytesOf(field.value));
    case "string":
      return [u32(CODES.string), text(field.value)];
    case "bool":
      return [u32(CODES.bool), Buffer.of(field.value ? 1 : 0)];
    case "u32":
      return [u32(CODES.u32), u32(field.value)];
    case "f32":
      return [u32(CODES.f32), bytesOf(Float32Array.of(field.value))];
  }
}

/** Descriptions of tensors that lie one after the other. */
function descriptions(entries: readonly GgufEntry[]): Buffer {
  let offset = 0;
  return Buffer.concat(
    entries.flatMap((entry) => {
      const { name, shape, type } = entry;
      const described = [
        text(name),
        u32(shape.length),
        // The fastest extent first.
        ...shape.toReversed().map(u64),
        u32(ggufTypeCode(type)),
        u64(offset),
      ];
      offset = aligned(offset + ggufBytes(entry));
      return described;
    }),
  );
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/**
 * Writes a file under a temporary name and renames it. `front`: its metadata, or everything before the tensors'
 * descriptions where that is known as bytes.
 * @throws PlanishError for data of the wrong size and a full disk, InterruptedError on the signal; nothing stays.
 */
export async function writeGguf(
  path: string,
  front: GgufFields | Buffer,
  entries: readonly GgufEntry[],
  options: { readonly signal?: AbortSignal } = {},
): Promise<{ bytes: number }> {
  const start = Buffer.isBuffer(front) ? front : ggufFront(front, entries.length);
  const header = Buffer.concat([start, descriptions(entries)]);
  const partial = temporaryName(path);
  let written = 0;
  try {
    const file = openSync(partial, "wx");
    try {
      const put = (bytes: Uint8Array): void => {
        for (const piece of bytePieces(bytes))
          for (let at = 0; at < piece.byteLength;)
            at += writeSync(file, piece, at, piece.byteLength - at);
        written += bytes.byteLength;
      };
      const pad = (): void => put(new Uint8Array(aligned(written) - written));
      put(header);
      pad();
      for (const entry of entries) {
        if (options.signal?.aborted) throw new InterruptedError(`stopped while writing ${path}`);
        const data = await entry.data();
        const expected = ggufBytes(entry);
        if (data.byteLength !== expected)
          throw new PlanishError(
            `tensor ${entry.name} needs ${expected} bytes, its data are ${data.byteLength}`,
          );
        put(data);
        pad();
        await nextTurn();
      }
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(partial, path);
  } catch (error) {
    rmSync(partial, { force: true });
    throw describedWriteError(error, path);
  }
  return { bytes: written };
}
