/**
 * Reading safetensors: one file, or shards named by `model.safetensors.index.json`. Headers are checked in
 * full when opened (`safetensors-header.ts`); data are read by position, one tensor at a time. Writing is in
 * `safetensors-writer.ts`.
 */

import { basename, dirname, join } from "node:path";
import { shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import { FileReader, isJsonObject, readJsonObject } from "./file-reader.js";
import {
  checkHeaderLength,
  parseHeader,
  quoteName,
  type SafetensorsHeader,
} from "./safetensors-header.js";
import { TensorStore, type LocatedTensor } from "./tensor-store.js";

/** Of a file, in every file system that people use. */
const LONGEST_NAME = 255;

export const SINGLE_FILE = "model.safetensors";
export const INDEX_FILE = "model.safetensors.index.json";

/** Tensors of one or several safetensors files. */
export interface Safetensors {
  readonly store: TensorStore;
  /** `__metadata__` of the file; of shards, merged in order of file name. */
  readonly metadata: Readonly<Record<string, string>>;
}

function openFile(path: string): { reader: FileReader; header: SafetensorsHeader } {
  const reader = new FileReader(path);
  try {
    if (reader.size < 8) {
      throw new PlanishError(
        `${path} is truncated: a safetensors file has at least 8 bytes, this one ${reader.size}; fetch it again`,
      );
    }
    const lengthField = new Uint8Array(8);
    reader.readInto(lengthField, 0, "the header's length");
    const length = checkHeaderLength(
      new DataView(lengthField.buffer).getBigUint64(0, true),
      reader.size,
      path,
    );
    const headerBytes = new Uint8Array(length);
    reader.readInto(headerBytes, 8, "the header");
    return { reader, header: parseHeader(headerBytes, reader.size, path) };
  } catch (error) {
    reader.close();
    throw error;
  }
}

/**
 * Opens one `.safetensors` file, or the shards of an `….index.json`.
 * Throws PlanishError when a file is missing, truncated, or its header lies.
 */
export function openSafetensors(path: string): Safetensors {
  if (path.endsWith(".json")) return openShards(path);
  const { reader, header } = openFile(path);
  const located = new Map<string, LocatedTensor>();
  for (const { position, ...tensor } of header.entries) {
    located.set(tensor.name, { tensor, reader, position });
  }
  return { store: new TensorStore(path, located, [reader]), metadata: header.metadata };
}

function openShards(indexPath: string): Safetensors {
  const { weight_map: weightMap } = readJsonObject(indexPath);
  if (!isJsonObject(weightMap)) {
    throw new PlanishError(`${indexPath}: weight_map must map tensor names to file names`);
  }
  const files = new Set<string>();
  for (const [name, file] of Object.entries(weightMap)) {
    // A shard is a neighbour of its index; anything with a path in it could point outside the checkpoint.
    if (
      typeof file !== "string" ||
      file !== basename(file) ||
      file.length > LONGEST_NAME ||
      !/^[^\p{Cc}\p{Cs}]+\.safetensors$/u.test(file)
    ) {
      throw new PlanishError(
        `${indexPath}: tensor ${quoteName(name)}: ${shown(file)} is no name of a .safetensors file in the same directory`,
      );
    }
    files.add(file);
  }
  const readers: FileReader[] = [];
  try {
    const located = new Map<string, LocatedTensor>();
    const metadata: Record<string, string> = {};
    for (const file of [...files].sort()) {
      const { reader, header } = openFile(join(dirname(indexPath), file));
      readers.push(reader);
      Object.assign(metadata, header.metadata);
      for (const { position, ...tensor } of header.entries) {
        const twin = located.get(tensor.name);
        if (twin) {
          throw new PlanishError(
            `${reader.path}: tensor ${quoteName(tensor.name)} is also in ${twin.tensor.file}`,
          );
        }
        located.set(tensor.name, { tensor, reader, position });
      }
    }
    for (const [name, file] of Object.entries(weightMap)) {
      const tensor = located.get(name)?.tensor;
      if (!tensor || basename(tensor.file) !== file) {
        throw new PlanishError(
          `${indexPath}: tensor ${quoteName(name)} should be in ${shown(file)} but is ${tensor ? `in ${quoteName(basename(tensor.file))}` : "not there"}`,
        );
      }
    }
    return { store: new TensorStore(indexPath, located, readers), metadata };
  } catch (error) {
    for (const reader of readers) reader.close();
    throw error;
  }
}

export { writeSafetensors } from "./safetensors-writer.js";
export type { TensorEntry, WriteFs, WriteOptions, WrittenFiles } from "./safetensors-writer.js";
