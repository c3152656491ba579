/**
 * Whole files whose paths come from people: regular files only, with a limit on their size, so that a device, a pipe or
 * a mistaken path ends in one line and not in a wait without end. (Weights are read in pieces: `checkpoint/file-reader.ts`.)
 */
import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from "node:fs";
import { parseJson, type JsonLimits } from "./bounds.js";
import { PlanishError } from "./errors.js";
import { formatBytes } from "./format.js";

export interface ReadOptions {
  /** Most bytes that are accepted. */
  readonly most: number;
  /** What the file is for, such as "recipe"; stands before its path in errors. */
  readonly what?: string;
  /** What to give instead, added to errors after a semicolon. */
  readonly hint?: string;
}

/** Texts for calibration and evaluation; below the longest string that Node.js can make (512 MB). */
export const MAX_TEXT_BYTES = 500_000_000;

/** JSON files beside weights (configs, tokenizers, indexes) above this size are not what they claim to be. */
export const MAX_JSON_BYTES = 256_000_000;

/** Recipes, templates, key files: what people write by hand. */
export const MAX_SETTINGS_BYTES = 16_000_000;

/** Bytes asked for at a time where the size is not known beforehand. */
const CHUNK = 1 << 16;

/**
 * The bytes of a regular file.
 * @throws PlanishError when it is missing, no regular file (a directory, device, pipe or socket), or larger than `most`.
 */
export function readUserFile(path: string, options: ReadOptions): Buffer {
  const { most } = options;
  let file: number | undefined;
  try {
    // Opening a pipe would block until somebody writes to it; this returns at once.
    file = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    const stats = fstatSync(file);
    if (!stats.isFile()) fail(path, options, kindOf(stats));
    if (stats.size > most) tooLarge(path, options, formatBytes(stats.size));
    return readAll(file, stats.size, most) ?? tooLarge(path, options, "it");
  } catch (error) {
    if (error instanceof PlanishError) throw error;
    return fail(path, options, describeFsError(error), error);
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/** The text of a UTF-8 file, without a byte order mark. @throws PlanishError as `readUserFile`, or when it is no UTF-8. */
export function readUserText(path: string, options: ReadOptions): string {
  const bytes = readUserFile(path, options);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    return fail(path, options, "it is no UTF-8 text", error);
  }
}

/** What a JSON file holds. @throws PlanishError as `readUserText` and `parseJson`. */
export function readUserJson(path: string, options: ReadOptions & JsonLimits): unknown {
  const { what } = options;
  return parseJson(
    readUserText(path, options),
    what === undefined ? path : `${what} ${path}`,
    options,
  );
}

/** Everything up to the end, or undefined when that is more than `most`. Sizes of files in /proc are 0 and mean nothing. */
function readAll(file: number, size: number, most: number): Buffer | undefined {
  let bytes = Buffer.allocUnsafe(Math.min(most, Math.max(size, CHUNK)) + 1);
  let filled = 0;
  for (;;) {
    const got = readSync(file, bytes, filled, bytes.length - filled, null);
    if (got === 0) return bytes.subarray(0, filled);
    filled += got;
    if (filled > most) return undefined;
    if (filled === bytes.length) {
      const larger = Buffer.allocUnsafe(Math.min(most + 1, 2 * bytes.length));
      bytes.copy(larger);
      bytes = larger;
    }
  }
}

function kindOf(stats: Stats): string {
  if (stats.isDirectory()) return "it is a directory";
  if (stats.isFIFO()) return "it is a pipe; write it to a file first";
  if (stats.isSocket()) return "it is a socket";
  return "it is a device";
}

function tooLarge(path: string, options: ReadOptions, size: string): never {
  return fail(path, options, `${size} is more than the ${formatBytes(options.most)} accepted`);
}

function fail(path: string, options: ReadOptions, reason: string, cause?: unknown): never {
  const { what, hint } = options;
  const subject = what === undefined ? path : `${what} ${path}`;
  throw new PlanishError(
    `cannot read ${subject}: ${reason}${hint === undefined ? "" : `; ${hint}`}`,
    { cause },
  );
}

/** What went wrong in the file system, in words; falls back to the error's own message. */
export function describeFsError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  switch (code) {
    case "ENOENT":
      return "it does not exist";
    case "EACCES":
    case "EPERM":
      return "permission denied";
    case "EISDIR":
      return "it is a directory";
    case "ENOTDIR":
      return "a part of its path is no directory";
    case "ELOOP":
      return "its links lead in a circle";
    case "ENAMETOOLONG":
      return "its name is too long";
    case "ENXIO":
    case "ENODEV":
      return "it is a socket or a device";
    case "ERR_INVALID_ARG_VALUE":
      return "its path holds a null byte";
    case "EMFILE":
    case "ENFILE":
      return "too many open files";
    case "EIO":
      return "the disk reported a read error";
    default:
      return message ?? String(error);
  }
}
