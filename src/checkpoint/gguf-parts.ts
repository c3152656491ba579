/**
 * A GGUF model cut into several files, as llama.cpp cuts it: `<name>-00001-of-00003.gguf` and so on, each with the keys
 * `split.no`, `split.count` and `split.tensors.count`; the model's other metadata are in the first one.
 */
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { PlanishError } from "../common/errors.js";
import { FileReader } from "./file-reader.js";
import { GgufMetadata } from "./gguf-metadata.js";
import { parseGguf, type GgufFile, type GgufTensor } from "./gguf-parser.js";
import { quoteName } from "./safetensors-header.js";

/** More than any published model has. */
const MOST_PARTS = 10_000;
const PART = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/;

/** One file of a model, opened. */
export interface GgufPart {
  readonly reader: FileReader;
  readonly tensors: readonly GgufTensor[];
}

export interface GgufParts {
  /** What messages call the model: the path that was given, or that of its first part. */
  readonly path: string;
  readonly metadata: GgufFile["metadata"];
  readonly parts: readonly GgufPart[];
}

/**
 * Opens a GGUF file, with all parts of its model where it is one of several, whichever was given. The caller closes the
 * readers.
 * @throws PlanishError naming a part that is missing or belongs to another model.
 */
export function openGgufParts(path: string): GgufParts {
  const given = openPart(path);
  const declared = partOf(given.file, path);
  if (declared.count === 1)
    return { path, metadata: given.file.metadata, parts: [partFrom(given)] };
  const opened = new Map([[declared.index, given]]);
  try {
    const name = PART.exec(basename(path));
    if (!name)
      throw new PlanishError(
        `${path} is part ${declared.index + 1} of ${declared.count} of a model, and its name does not tell the others; keep the names that the parts came with (…-00001-of-${pad(declared.count)}.gguf)`,
      );
    for (let index = 0; index < declared.count; index++) {
      if (opened.has(index)) continue;
      const other = join(dirname(path), `${name[1]}-${pad(index + 1)}-of-${name[3]}.gguf`);
      if (!existsSync(other))
        throw new PlanishError(
          `${path} is part ${declared.index + 1} of ${declared.count} of a model, and ${basename(other)} is missing beside it; put all parts into one directory`,
        );
      const part = openPart(other);
      opened.set(index, part);
      const found = partOf(part.file, other);
      if (
        found.index !== index ||
        found.count !== declared.count ||
        found.tensors !== declared.tensors
      )
        throw new PlanishError(
          `${other} is part ${found.index + 1} of ${found.count} of another model than ${path} is; its name says part ${index + 1} of ${declared.count}`,
        );
    }
    const parts = Array.from({ length: declared.count }, (_, index) => opened.get(index)!);
    checkTensors(path, parts, declared.tensors);
    const [first] = parts;
    return {
      path: first.reader.path,
      metadata: first.file.metadata,
      parts: parts.map(partFrom),
    };
  } catch (error) {
    for (const { reader } of opened.values()) reader.close();
    throw error;
  }
}

interface Opened {
  readonly reader: FileReader;
  readonly file: GgufFile;
}

function openPart(path: string): Opened {
  const reader = new FileReader(path);
  try {
    return { reader, file: parseGguf(reader) };
  } catch (error) {
    reader.close();
    throw error;
  }
}

function partFrom({ reader, file }: Opened): GgufPart {
  return { reader, tensors: file.tensors };
}

/** Which part a file is, counted from 0; a file that says nothing is the only one. */
function partOf(file: GgufFile, path: string) {
  const metadata = new GgufMetadata(file.metadata, path);
  const count = metadata.count("split.count") ?? 1;
  const index = metadata.count("split.no") ?? 0;
  if (count < 1 || count > MOST_PARTS || index >= count)
    throw new PlanishError(
      `${path}: split.no ${index} and split.count ${count} name no part of a model; from 1 to ${MOST_PARTS} parts are read`,
    );
  return { count, index, tensors: metadata.count("split.tensors.count") };
}

function checkTensors(path: string, parts: readonly Opened[], declared: number | undefined): void {
  const names = parts.flatMap(({ file }) => file.tensors.map(({ name }) => name));
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name))
      throw new PlanishError(`${path}: tensor ${quoteName(name)} is in two parts of the model`);
    seen.add(name);
  }
  if (declared !== undefined && declared !== names.length)
    throw new PlanishError(
      `${path}: the parts hold ${names.length} tensors together and declare ${declared}; some part is not the model's`,
    );
}

function pad(part: number): string {
  return String(part).padStart(5, "0");
}
