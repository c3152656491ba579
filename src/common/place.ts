/**
 * Where results go: a path from the command line is resolved and checked before any work, so that hours are never lost to
 * a slash too many, a missing right or a full disk.
 */
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  type Stats,
} from "node:fs";
import { basename, dirname, resolve, sep } from "node:path";
import { quoted } from "./bounds.js";
import { PlanishError, UsageError } from "./errors.js";
import { formatBytes } from "./format.js";
import { acquireLock, type Lock } from "./lock.js";
import { describeFsError } from "./read-file.js";
import { temporaryName, TEMPORARY_SUFFIX_BYTES } from "./temporary.js";

export interface PlaceOptions {
  /** What the path is, as the user knows it (default: `--out`). */
  readonly flag?: string;
  /** What will be there: a directory that must not exist, one that may, or a file that is replaced. */
  readonly kind: "new directory" | "directory" | "file";
  /** A new directory may exist all the same: an interrupted run had named it. Whoever asks looks at what it is. */
  readonly mayExist?: boolean;
  /** Directory or file that is read meanwhile; the result may neither be it nor lie in it. */
  readonly source?: string;
  /** Bytes that will be written, as far as they are known. */
  readonly bytes?: number;
}

/** Most bytes of one name on the file systems in use. */
const MAX_NAME_BYTES = 255;

/**
 * The absolute path of a result, without slashes at its end. A directory may lack its parents. Nothing stays behind of
 * the trial that it can be written.
 * @throws UsageError when the path cannot be meant, PlanishError when it cannot be used; one line with the reason.
 */
export function outputPlace(given: string, options: PlaceOptions): string {
  const path = outputPath(given, options);
  const { flag = "--out", kind } = options;
  const directory = kind === "directory" && statOf(path) !== undefined ? path : dirname(path);
  try {
    const { made } = inDirectory(directory, () => {
      const trial = temporaryName(resolve(directory, basename(path)));
      closeSync(openSync(trial, "wx"));
      rmSync(trial);
    });
    removeEmpty(directory, made);
  } catch (error) {
    throw cannotWrite(`${flag} ${quoted(given)}`, directory, error);
  }
  return path;
}

/** Makes a directory with its parents for some work; `made` is the topmost that was not there. */
function inDirectory<T>(directory: string, work: () => T): { value: T; made: string | undefined } {
  for (let attempt = 1; ; attempt++) {
    const made = mkdirSync(directory, { recursive: true });
    try {
      return { value: work(), made };
    } catch (error) {
      // Another process whose work came to nothing may have removed the parents that it had made.
      if ((error as NodeJS.ErrnoException).code === "ENOENT" && attempt < MOST_ATTEMPTS) continue;
      removeEmpty(directory, made);
      throw error;
    }
  }
}
const MOST_ATTEMPTS = 10;

/** Removes a directory and its parents up to one that was made for it, as far as nothing is in them. */
function removeEmpty(directory: string, made: string | undefined): void {
  if (made === undefined) return;
  for (let at = directory; at.length >= made.length; at = dirname(at)) {
    try {
      rmdirSync(at);
    } catch {
      return;
    }
  }
}

/**
 * `outputPlace`, for this process alone until the lock is released. The lock lies beside a new directory, and in one that
 * may exist. Missing parents are made, and those that are still empty when the lock is released go again.
 * @throws PlanishError also when another process works there, naming it.
 */
export function lockedPlace(given: string, options: PlaceOptions): { path: string; lock: Lock } {
  const path = outputPath(given, options);
  const { flag = "--out", kind } = options;
  const directory = kind === "directory" ? path : dirname(path);
  try {
    const { value: lock, made } = inDirectory(directory, () =>
      acquireLock(kind === "directory" ? resolve(path, LOCK_FILE) : `${path}.lock`, path),
    );
    let released = false;
    const release = (): void => {
      if (released) return;
      released = true;
      lock[Symbol.dispose]();
      removeEmpty(directory, made);
    };
    return { path, lock: { path: lock.path, [Symbol.dispose]: release } };
  } catch (error) {
    throw cannotWrite(`${flag} ${quoted(given)}`, directory, error);
  }
}

/** The lock of a directory that may exist lies in it under this name. */
export const LOCK_FILE = "planish.lock";

/** Whether a directory is missing or holds nothing but the lock of whoever asks. */
export function holdsNothing(directory: string): boolean {
  return (
    !existsSync(directory) || readdirSync(directory).every((name) => name.startsWith(LOCK_FILE))
  );
}

/** The checks that write nothing. */
function outputPath(given: string, options: PlaceOptions): string {
  const { flag = "--out", kind, source, bytes } = options;
  const name = `${flag} ${quoted(given)}`;
  if (given === "") throw new UsageError(`${flag} is empty; give the path of a ${plain(kind)}`);
  if (given.includes("\0")) throw new UsageError(`${name} holds a null byte`);
  if (kind === "file" && (given.endsWith("/") || given.endsWith(sep)))
    throw new UsageError(`${name} is written as a directory; give the path of a file`);
  const path = resolve(given);
  const length = Buffer.byteLength(basename(path)) + TEMPORARY_SUFFIX_BYTES;
  if (length > MAX_NAME_BYTES)
    throw new PlanishError(
      `${name} has too long a name: at most ${MAX_NAME_BYTES - TEMPORARY_SUFFIX_BYTES} bytes, to leave room for temporary names`,
    );
  refuseOccupied(name, path, options);
  const ancestor = nearestDirectory(name, path);
  if (kind === "file" && ancestor !== dirname(path))
    throw new PlanishError(`${name} cannot be made: there is no directory ${dirname(path)}`);
  if (source !== undefined) refuseInside(name, path, ancestor, source);
  try {
    accessSync(ancestor, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw cannotWrite(name, ancestor, error);
  }
  const free = freeBytes(ancestor);
  if (bytes !== undefined && free !== undefined && bytes > free)
    throw new PlanishError(
      `${name} needs about ${formatBytes(bytes)} of disk, and ${formatBytes(free)} are free in ${ancestor}; free some space or choose another directory`,
    );
  return path;
}

/** Bytes that may still be written at the directory; undefined where the system does not say. */
export function freeBytes(directory: string): number | undefined {
  try {
    const { bavail, bsize, blocks } = statfsSync(directory);
    // Some network and virtual file systems report no size at all.
    return blocks > 0 ? bavail * bsize : undefined;
  } catch {
    return undefined;
  }
}

function plain(kind: PlaceOptions["kind"]): string {
  return kind === "file" ? "file" : "directory";
}

function refuseOccupied(name: string, path: string, { kind, mayExist }: PlaceOptions): void {
  let link: Stats | undefined;
  try {
    link = lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    // A file among the parents is told with its name below.
    if ((error as NodeJS.ErrnoException).code === "ENOTDIR") return;
    throw new PlanishError(`${name} cannot be used: ${describeFsError(error)}`, { cause: error });
  }
  if (link === undefined) return;
  const stats = statOf(path);
  if (stats === undefined)
    throw new PlanishError(
      `${name} is a link to ${quoted(readlinkSync(path))}, which cannot be reached; remove the link or choose another path`,
    );
  if (kind === "new directory" && !(mayExist && stats.isDirectory()))
    throw new PlanishError(
      `output directory ${path} exists already; choose another --out, or remove it first`,
    );
  if (kind === "directory" && !stats.isDirectory())
    throw new PlanishError(`${name} is no directory; choose another path`);
  if (kind === "file" && !stats.isFile())
    throw new PlanishError(
      `${name} is ${stats.isDirectory() ? "a directory" : "a device, pipe or socket"}; give the path of a regular file`,
    );
}

/** The deepest existing directory on the way to `path`. @throws PlanishError when a part of the way is something else. */
function nearestDirectory(name: string, path: string): string {
  for (let at = dirname(path); ; at = dirname(at)) {
    let entry: Stats | undefined;
    try {
      entry = lstatSync(at, { throwIfNoEntry: false });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOTDIR") continue;
      throw new PlanishError(`${name} cannot be used: ${at}: ${describeFsError(error)}`, {
        cause: error,
      });
    }
    if (entry === undefined) {
      if (at === dirname(at)) throw new PlanishError(`${name} cannot be used: there is no ${at}`);
      continue;
    }
    const stats = statOf(at);
    if (stats?.isDirectory()) return at;
    throw new PlanishError(
      stats === undefined
        ? `${name} cannot be made: ${at} is a link to ${quoted(readlinkSync(at))}, which cannot be reached`
        : `${name} cannot be made: ${at} is no directory`,
    );
  }
}

/** Files are compared by what they are, so that links and other spellings of a path make no difference. */
function refuseInside(name: string, path: string, ancestor: string, source: string): void {
  const read = statOf(source);
  if (read === undefined) return;
  const same = (other: Stats | undefined): boolean =>
    other !== undefined && other.dev === read.dev && other.ino === read.ino;
  if (same(statOf(path)))
    throw new PlanishError(`${name} is the model that is read (${source}); choose another path`);
  for (let at = realpathSync(statOf(path) ? path : ancestor); ; at = dirname(at)) {
    if (same(statOf(at)))
      throw new PlanishError(
        `${name} lies in the model that is read (${source}); choose a path outside of it`,
      );
    if (at === dirname(at)) return;
  }
}

function statOf(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

function cannotWrite(name: string, directory: string, error: unknown): PlanishError {
  if (error instanceof PlanishError) return error;
  return new PlanishError(
    `${name} cannot be written: ${directory}: ${describeWriteError(error)}; choose another path`,
    { cause: error },
  );
}

/** What went wrong in writing, in words. */
export function describeWriteError(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code) {
    case "ENOSPC":
      return "no space is left on the disk";
    case "EDQUOT":
      return "the disk quota is used up";
    case "EROFS":
      return "it is read-only";
    case "ENOENT":
      return "nothing can be made there";
    case "EFBIG":
      return "the file would be larger than the file system or a limit allows";
    case "EIO":
      return "the disk reported an error";
    default:
      return describeFsError(error);
  }
}

/** An error of the file system in one line; others as they are. */
export function describedWriteError(error: unknown, where: string): unknown {
  if (error instanceof PlanishError || !isWriteError(error)) return error;
  const { path } = error as NodeJS.ErrnoException;
  return new PlanishError(`cannot write ${path ?? `in ${where}`}: ${describeWriteError(error)}`, {
    cause: error,
  });
}

/**
 * Whether an error, or what caused it, is the disk being full, gone or read-only: what is done can go on when that is
 * mended.
 */
export function isWriteError(error: unknown): boolean {
  if (error instanceof PlanishError) return isWriteError(error.cause);
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return (
    code !== undefined &&
    ["ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "EACCES", "EPERM"].includes(code)
  );
}
