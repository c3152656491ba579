/**
 * Writing safetensors: streaming (one tensor's data in memory at a time), deterministic byte for byte, and
 * atomic: files appear under their final names only when complete and flushed to disk.
 */

import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { bytePieces } from "../common/bytes.js";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { freeBytes } from "../common/place.js";
import { temporaryName } from "../common/temporary.js";
import { ELEMENT_BYTES, type ElementType } from "./element-types.js";
import { describeFsError } from "./file-reader.js";
import { METADATA_KEY, quoteName, sizeInBytes } from "./safetensors-header.js";

export interface TensorEntry {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: readonly number[];
  /** Its bytes, row-major and little-endian; called once, when it is this tensor's turn in the file. */
  readonly data: () => ArrayBufferView;
}

/** The file operations that writing uses, replaceable to simulate a full disk. */
export interface WriteFs {
  openSync(path: string, flags: string): number;
  writeSync(fd: number, data: Uint8Array, offset: number, length: number): number;
  fsyncSync(fd: number): void;
  closeSync(fd: number): void;
  renameSync(from: string, to: string): void;
}

export interface WriteOptions {
  /** Data bytes above which tensors are spread over shards with an index (default 4 GB). */
  readonly maxShardBytes?: number;
  readonly fs?: WriteFs;
  /** Checked between tensors; what was begun is removed. */
  readonly signal?: AbortSignal;
}

export interface WrittenFiles {
  /** Final paths: the file, or the shards and their index. */
  readonly files: readonly string[];
  /** Bytes of tensor data. */
  readonly dataBytes: number;
}

const DEFAULT_SHARD_BYTES = 4e9;
const realFs: WriteFs = { openSync, writeSync, fsyncSync, closeSync, renameSync };

interface Planned extends TensorEntry {
  readonly bytes: number;
}

interface PlannedFile {
  readonly path: string;
  readonly header: Uint8Array;
  readonly tensors: readonly Planned[];
}

/**
 * Writes tensors to `path` (`….safetensors`), or above `maxShardBytes` to shards beside it named
 * `…-00001-of-00002.safetensors` with an index `path.index.json`. Tensors are ordered by element size (wider
 * first, which keeps all aligned), then name, whatever order they come in; data are called for in that order.
 * Throws PlanishError on duplicate names, data of the wrong size and a full disk, InterruptedError on
 * abort; no partial file stays.
 */
export async function writeSafetensors(
  path: string,
  entries: Iterable<TensorEntry>,
  metadata: Readonly<Record<string, string>> = {},
  options: WriteOptions = {},
): Promise<WrittenFiles> {
  const { maxShardBytes = DEFAULT_SHARD_BYTES, fs = realFs, signal } = options;
  const planned = plan(path, entries);
  const dataBytes = planned.reduce((sum, { bytes }) => sum + bytes, 0);
  const files = planFiles(path, planned, metadata, dataBytes, maxShardBytes);
  const index = files.length > 1 ? indexFile(`${path}.index.json`, files, dataBytes) : undefined;
  const outputs = index ? [...files, index] : files;
  const needed = outputs.reduce((sum, { header }) => sum + header.byteLength, dataBytes);
  const begun: string[] = [];
  try {
    for (const file of outputs) {
      const partial = temporaryName(file.path);
      begun.push(partial);
      await writeFile(partial, file, fs, signal);
    }
    for (const [i, { path: final }] of outputs.entries()) fs.renameSync(begun[i], final);
  } catch (error) {
    for (const partial of begun) rmSync(partial, { force: true });
    throw explain(error, path, needed);
  }
  // The other form left from an earlier writing would be found beside, or before, the new one.
  rmSync(index ? path : `${path}.index.json`, { force: true });
  syncDirectory(dirname(path));
  return { files: outputs.map((file) => file.path), dataBytes };
}

function plan(path: string, entries: Iterable<TensorEntry>): Planned[] {
  const names = new Set<string>();
  const planned: Planned[] = [];
  for (const entry of entries) {
    const { name, type, shape } = entry;
    const where = `cannot write ${path}: tensor ${quoteName(name)}`;
    if (names.has(name)) throw new PlanishError(`${where} is given twice`);
    if (name === METADATA_KEY) throw new PlanishError(`${where}: this name is reserved`);
    names.add(name);
    const bytes = sizeInBytes(shape, ELEMENT_BYTES[type]);
    if (
      bytes === undefined ||
      !shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0)
    ) {
      throw new PlanishError(`${where} has impossible shape [${shape.join(", ")}] of ${type}`);
    }
    planned.push({ name, type, shape, data: entry.data, bytes });
  }
  return planned.sort(
    (a, b) => ELEMENT_BYTES[b.type] - ELEMENT_BYTES[a.type] || (a.name < b.name ? -1 : 1),
  );
}

function planFiles(
  path: string,
  planned: readonly Planned[],
  metadata: Readonly<Record<string, string>>,
  dataBytes: number,
  maxShardBytes: number,
): PlannedFile[] {
  if (dataBytes <= maxShardBytes)
    return [{ path, header: header(planned, metadata), tensors: planned }];
  const shards: Planned[][] = [];
  let filled = Infinity;
  for (const tensor of planned) {
    if (filled + tensor.bytes > maxShardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards[shards.length - 1].push(tensor);
    filled += tensor.bytes;
  }
  const stem = join(dirname(path), basename(path, ".safetensors"));
  const five = (count: number): string => String(count).padStart(5, "0");
  return shards.map((tensors, i) => ({
    path: `${stem}-${five(i + 1)}-of-${five(shards.length)}.safetensors`,
    header: header(tensors, metadata),
    tensors,
  }));
}

/** Length field and JSON, padded with spaces so that the data begin at a multiple of 8. */
function header(
  tensors: readonly Planned[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const sortedMetadata = Object.fromEntries(
    Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1)),
  );
  const members: [string, unknown][] =
    Object.keys(metadata).length > 0 ? [[METADATA_KEY, sortedMetadata]] : [];
  let begin = 0;
  for (const { name, type, shape, bytes } of tensors) {
    members.push([name, { dtype: type, shape, data_offsets: [begin, begin + bytes] }]);
    begin += bytes;
  }
  // Joined by hand: an object would move names that look like integers to the front.
  const json = `{${members.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`;
  const text = new TextEncoder().encode(json);
  const padded = Math.ceil(text.byteLength / 8) * 8;
  const bytes = new Uint8Array(8 + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(text, 8);
  return bytes;
}

function indexFile(path: string, files: readonly PlannedFile[], dataBytes: number): PlannedFile {
  const homes = files.flatMap(({ path: file, tensors }) =>
    tensors.map(({ name }): [string, string] => [name, basename(file)]),
  );
  homes.sort(([a], [b]) => (a < b ? -1 : 1));
  const index = { metadata: { total_size: dataBytes }, weight_map: Object.fromEntries(homes) };
  const text = `${JSON.stringify(index, null, 2)}\n`;
  return { path, header: new TextEncoder().encode(text), tensors: [] };
}

async function writeFile(
  partial: string,
  file: PlannedFile,
  fs: WriteFs,
  signal: AbortSignal | undefined,
): Promise<void> {
  const fd = fs.openSync(partial, "w");
  try {
    writeAll(fd, file.header, fs);
    for (const { name, type, shape, bytes, data } of file.tensors) {
      const content = data();
      if (content.byteLength !== bytes) {
        throw new PlanishError(
          `cannot write ${file.path}: tensor ${quoteName(name)}: shape [${shape.join(", ")}] of ${type} takes ${bytes} bytes, its data have ${content.byteLength}`,
        );
      }
      for (const piece of bytePieces(content)) writeAll(fd, piece, fs);
      // Lets a signal handler run, which is what may have aborted.
      await setImmediate();
      if (signal?.aborted) throw new InterruptedError(`writing ${file.path} was interrupted`);
    }
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

function writeAll(fd: number, bytes: Uint8Array, fs: WriteFs): void {
  for (let done = 0; done < bytes.byteLength;) {
    done += fs.writeSync(fd, bytes, done, bytes.byteLength - done);
  }
}

function explain(error: unknown, path: string, needed: number): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (error instanceof PlanishError || typeof code !== "string") return error;
  if (code !== "ENOSPC" && code !== "EDQUOT") {
    return new PlanishError(`cannot write ${path}: ${describeFsError(error)}`, { cause: error });
  }
  const free = freeBytes(dirname(path));
  return new PlanishError(
    `disk full: ${path} needs ${needed} bytes (${(needed / 1e6).toFixed(1)} MB)` +
      `${free === undefined ? "" : `, ${(free / 1e6).toFixed(1)} MB are free`}; free some space or choose another directory`,
    { cause: error },
  );
}

/** Makes the renames durable. Some systems cannot flush a directory; the files themselves are flushed. */
function syncDirectory(directory: string): void {
  if (!existsSync(directory)) return;
  try {
    const fd = openSync(directory, "r");
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch {
    return;
  }
}
