/**
 * The header of a safetensors file, fully checked before any of its claims is used.
 *
 * Layout: 8 bytes little-endian header length N, N bytes of JSON
 * `{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string: string}}`, then the data.
 * Offsets count from the start of the data; tensors must tile it without gaps, as the format's reference
 * implementation demands.
 */

import { quoted } from "../common/bounds.js";
import { LIMITS, parseJson, shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { StoredTensor } from "./checkpoint.js";
import { ELEMENT_BYTES, isElementType } from "./element-types.js";
import { foreignKind } from "./foreign-file.js";
import { isJsonObject } from "./file-reader.js";

/** The format's own limit on the header. */
export const MAX_HEADER_BYTES = 100_000_000;
export const METADATA_KEY = "__metadata__";

export interface HeaderEntry extends StoredTensor {
  /** Position of its first byte in the file. */
  readonly position: number;
}

export interface SafetensorsHeader {
  readonly entries: readonly HeaderEntry[];
  readonly metadata: Readonly<Record<string, string>>;
}

/** Quotes a name from a file for an error line: control characters escaped, long names cut. */
export function quoteName(name: string): string {
  return quoted(name, 80);
}

/**
 * Checks the length field: `lengthField` is the file's first 8 bytes. Returns the header's size in bytes.
 * Throws PlanishError when the file is too short, or the length is absurd or reaches beyond the file.
 */
export function checkHeaderLength(lengthField: bigint, fileSize: number, file: string): number {
  if (fileSize === 0) throw new PlanishError(`${file} is empty; fetch it again`);
  if (lengthField > BigInt(MAX_HEADER_BYTES)) {
    const start = Buffer.alloc(8);
    start.writeBigUInt64LE(lengthField);
    const kind = foreignKind(start);
    if (kind !== undefined) throw new PlanishError(`${file} is ${kind}`);
    throw new PlanishError(
      `${file}: not a safetensors file: its header claims ${lengthField} bytes, the format allows ${MAX_HEADER_BYTES}`,
    );
  }
  const length = Number(lengthField);
  if (8 + length > fileSize) {
    throw new PlanishError(
      `${file} is truncated: its header claims ${length} bytes, the file has ${Math.max(0, fileSize - 8)} after the length field; fetch it again`,
    );
  }
  if (length < 2) {
    throw new PlanishError(`${file}: not a safetensors file: header of ${length} bytes`);
  }
  return length;
}

/** Parses and checks header text. `fileSize` is that of the whole file, header included. */
export function parseHeader(
  headerBytes: Uint8Array,
  fileSize: number,
  file: string,
): SafetensorsHeader {
  let json: string;
  try {
    json = new TextDecoder("utf-8", { fatal: true }).decode(headerBytes);
  } catch (cause) {
    throw new PlanishError(
      `${file}: not a safetensors file: its header is not valid JSON (no UTF-8)`,
      { cause },
    );
  }
  const parsed = parseJson(json, `${file}: not a safetensors file: its header`);
  if (!isJsonObject(parsed)) {
    throw new PlanishError(`${file}: not a safetensors file: its header must be a JSON object`);
  }
  const names = Object.keys(parsed);
  if (countTopLevelKeys(json) !== names.length) {
    throw new PlanishError(
      `${file}: tensor ${quoteName(findDuplicateKey(json))} is listed more than once in the header`,
    );
  }
  const dataStart = 8 + headerBytes.byteLength;
  const dataBytes = fileSize - dataStart;
  const metadata = parseMetadata(parsed[METADATA_KEY], file);
  const entries: HeaderEntry[] = [];
  for (const name of names) {
    if (name === METADATA_KEY) continue;
    entries.push(parseEntry(name, parsed[name], dataStart, dataBytes, file));
  }
  checkTiling(entries, dataStart, dataBytes, file);
  return { entries, metadata };
}

function parseMetadata(value: unknown, file: string): Record<string, string> {
  if (value === undefined) return {};
  if (!isJsonObject(value) || Object.values(value).some((item) => typeof item !== "string")) {
    throw new PlanishError(`${file}: ${METADATA_KEY} must map strings to strings`);
  }
  return value as Record<string, string>;
}

function parseEntry(
  name: string,
  value: unknown,
  dataStart: number,
  dataBytes: number,
  file: string,
): HeaderEntry {
  const where = `${file}: tensor ${quoteName(name)}`;
  if (!isJsonObject(value)) throw new PlanishError(`${where}: its header entry must be an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string") throw new PlanishError(`${where}: its dtype must be a string`);
  if (!isElementType(dtype)) {
    throw new PlanishError(
      `${where}: type ${quoteName(dtype)} is not supported (accepted: ${Object.keys(ELEMENT_BYTES).join(", ")}); 8-bit and smaller floats (F8…, F4…) are codes of a model that is quantized already: give the original`,
    );
  }
  if (Array.isArray(shape) && shape.length > LIMITS.rank) {
    throw new PlanishError(
      `${where}: its shape has ${shape.length} dimensions; at most ${LIMITS.rank} are accepted`,
    );
  }
  if (!Array.isArray(shape) || !shape.every(isCount)) {
    throw new PlanishError(`${where}: its shape must be an array of non-negative integers`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw new PlanishError(
      `${where}: its data_offsets must be two non-negative integers, not ${shown(offsets)}`,
    );
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end)
    throw new PlanishError(`${where}: its data ends (${end}) before it begins (${begin})`);
  if (end > dataBytes) {
    throw new PlanishError(
      `${where}: its data ends at byte ${end} but the file holds ${dataBytes} bytes of data; it is truncated or its header lies`,
    );
  }
  const claimed = sizeInBytes(shape, ELEMENT_BYTES[dtype]);
  if (claimed !== end - begin) {
    throw new PlanishError(
      `${where}: shape [${shape.join(", ")}] of ${dtype} takes ${claimed ?? "too many"} bytes, its data_offsets span ${end - begin}`,
    );
  }
  return { name, shape, type: dtype, bytes: claimed, file, position: dataStart + begin };
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** Product of the shape times the element size, or undefined where that is beyond exact integers. */
export function sizeInBytes(shape: readonly number[], elementBytes: number): number | undefined {
  if (shape.includes(0)) return 0;
  let size = elementBytes;
  for (const extent of shape) {
    size *= extent;
    if (!Number.isSafeInteger(size)) return undefined;
  }
  return size;
}

function checkTiling(
  entries: readonly HeaderEntry[],
  dataStart: number,
  dataBytes: number,
  file: string,
): void {
  const ordered = [...entries].sort((a, b) => a.position - b.position || a.bytes - b.bytes);
  let reached = dataStart;
  let before = "";
  for (const entry of ordered) {
    const where = `${file}: tensor ${quoteName(entry.name)}`;
    if (entry.position < reached) {
      throw new PlanishError(`${where}: its data overlaps that of tensor ${quoteName(before)}`);
    }
    if (entry.position > reached) {
      throw new PlanishError(
        `${where}: ${entry.position - reached} bytes before its data belong to no tensor`,
      );
    }
    reached = entry.position + entry.bytes;
    before = entry.name;
  }
  if (reached !== dataStart + dataBytes) {
    throw new PlanishError(
      `${file}: ${dataStart + dataBytes - reached} bytes at its end belong to no tensor`,
    );
  }
}

/**
 * Walks valid JSON text and hands over the raw (still escaped) keys of its outermost object.
 * `JSON.parse` keeps only the last of two equal keys, so they must be counted in the text.
 */
function* topLevelKeys(json: string): Generator<string> {
  let depth = 0;
  let expectKey = false;
  for (let i = 0; i < json.length; i++) {
    switch (json.charCodeAt(i)) {
      case 0x22: {
        const start = i + 1;
        for (i++; json.charCodeAt(i) !== 0x22; i++) if (json.charCodeAt(i) === 0x5c) i++;
        if (depth === 1 && expectKey) {
          yield json.slice(start, i);
          expectKey = false;
        }
        break;
      }
      case 0x7b:
      case 0x5b:
        depth++;
        if (depth === 1) expectKey = true;
        break;
      case 0x7d:
      case 0x5d:
        depth--;
        break;
      case 0x2c:
        if (depth === 1) expectKey = true;
        break;
    }
  }
}

function countTopLevelKeys(json: string): number {
  let count = 0;
  for (const _ of topLevelKeys(json)) count++;
  return count;
}

function findDuplicateKey(json: string): string {
  const seen = new Set<string>();
  for (const raw of topLevelKeys(json)) {
    const key = JSON.parse(`"${raw}"`) as string;
    if (seen.has(key)) return key;
    seen.add(key);
  }
  return "";
}
