/**
 * Lock files: one process at a time works on a directory. A lock names its owner; the lock of a process that has ended
 * is taken over. (The packages for this renew a time stamp from a timer, which kernels that run for minutes without
 * returning to the event loop would starve; the owner's pid and start time need no timer.)
 */
import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { PlanishError } from "./errors.js";
import { processSchema, processState, thisProcess, processExists } from "./process-identity.js";

/** Says that the file is one of ours. */
const MARK = "planish lock";
/** Larger files are no locks. */
const MAX_LOCK_BYTES = 4096;

const lockSchema = processSchema.extend({
  lock: z.literal(MARK),
  /** Told apart from every other lock, so that only one process takes over this one. */
  id: z.string().regex(/^[0-9a-f]{16}$/),
});

/** Somebody else has the lock. */
export class LockedError extends PlanishError {
  override readonly name = "LockedError";
}

type LockRecord = z.infer<typeof lockSchema>;

/** Held by this process, to be released when it ends for whatever reason but a kill. */
const held = new Map<string, LockRecord>();
let listening = false;

/** A lock that is held until it is disposed of. */
export interface Lock extends Disposable {
  readonly path: string;
}

/**
 * Takes the lock file `path`. Its directory must exist.
 * @param what What the owner works on, for the one line that tells a second process.
 * @throws PlanishError when a running process (or one on another machine) has it, naming the process; errors of the
 * file system as they come.
 */
export function acquireLock(path: string, what: string): Lock {
  const record: LockRecord = {
    lock: MARK,
    id: randomBytes(8).toString("hex"),
    ...thisProcess(),
  };
  for (;;) {
    if (create(path, record)) break;
    const found = readLock(path);
    if (found === undefined) continue;
    if (found === "foreign")
      throw new PlanishError(
        `${path} is in the way: Planish keeps its lock there, and this file is none; move it away`,
      );
    const state = processState(found);
    if (state === "running")
      throw new LockedError(
        found.pid === process.pid
          ? `this process works on ${what} already; wait for it to end`
          : `another planish (pid ${found.pid}) works on ${what}; wait for it to end, or stop it`,
      );
    if (state === "unknown")
      throw new LockedError(
        `planish (pid ${found.pid} on ${found.host}) works on ${what}; if it has ended, remove ${path}`,
      );
    if (takeOver(path, found, record, what)) break;
  }
  removeAbandoned(path);
  held.set(path, record);
  if (!listening) process.on("exit", releaseAll);
  listening = true;
  return { path, [Symbol.dispose]: () => release(path, record) };
}

/**
 * Replaces the lock of an ended process. Whoever replaces it holds a lock named by its id meanwhile, so no second process
 * takes it for ended and replaces the successor.
 */
function takeOver(path: string, stale: LockRecord, record: LockRecord, what: string): boolean {
  using _claim = acquireLock(`${path}.${stale.id}`, what);
  const now = readLock(path);
  if (now === undefined || now === "foreign" || now.id !== stale.id) return false;
  const temporary = writeRecord(path, record);
  try {
    renameSync(temporary, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw error;
  }
  return true;
}

/** Makes the file with its content in one step; false when there is one already. */
function create(path: string, record: LockRecord): boolean {
  const temporary = writeRecord(path, record);
  try {
    linkSync(temporary, path);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // ENOENT: another process took the record for an abandoned one.
    if (code === "EEXIST" || code === "ENOENT") return false;
    if (!["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"].includes(code ?? "")) throw error;
    return createWithoutLinks(path, record);
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** Where the file system has no hard links (FAT): a reader may see the file before its content. */
function createWithoutLinks(path: string, record: LockRecord): boolean {
  try {
    writeFileSync(path, JSON.stringify(record), { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function writeRecord(path: string, record: LockRecord): string {
  const temporary = `${path}.${process.pid}-${randomBytes(4).toString("hex")}`;
  const file = openSync(temporary, "wx");
  try {
    writeFileSync(file, `${JSON.stringify(record)}\n`);
    fsyncSync(file);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  } finally {
    closeSync(file);
  }
  return temporary;
}

/**
 * Removes the records of processes that were killed while they took this lock. One that was killed before it had written its
 * record left an empty file, of which only the name says whose it was: on this machine, as far as anybody can tell. Should a
 * process of another one be about to write it, that process finds it gone and tries again.
 */
function removeAbandoned(path: string): void {
  for (const name of readdirSync(dirname(path))) {
    const pid = /\.(\d+)-[0-9a-f]{8}$/.exec(name)?.[1];
    if (!name.startsWith(`${basename(path)}.`) || pid === undefined) continue;
    const file = join(dirname(path), name);
    const found = readLock(file);
    if (found === undefined) continue;
    const ended =
      found === "foreign"
        ? isEmptyFile(file) && !processExists(Number(pid))
        : processState(found) === "ended";
    if (ended) rmSync(file, { force: true });
  }
}

function isEmptyFile(path: string): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found !== undefined && found.isFile() && found.size === 0;
}

/** What a lock file says; undefined when it is gone, "foreign" when it is something else. */
function readLock(path: string): LockRecord | "foreign" | undefined {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT" && !isDanglingLink(path)
      ? undefined
      : "foreign";
  }
  try {
    if (!fstatSync(file).isFile()) return "foreign";
    const bytes = Buffer.alloc(MAX_LOCK_BYTES);
    const length = readSync(file, bytes);
    const found = lockSchema.safeParse(JSON.parse(bytes.toString("utf8", 0, length)));
    return found.success ? found.data : "foreign";
  } catch {
    return "foreign";
  } finally {
    closeSync(file);
  }
}

function isDanglingLink(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

function release(path: string, record: LockRecord): void {
  if (held.get(path) !== record) return;
  held.delete(path);
  const now = readLock(path);
  if (now !== undefined && now !== "foreign" && now.id === record.id) rmSync(path, { force: true });
}

function releaseAll(): void {
  for (const [path, record] of held) {
    try {
      release(path, record);
    } catch {
      // The process is ending; the next owner finds that it has.
    }
  }
}
