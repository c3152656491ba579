/**
 * Where bytes lie that several machines share: a directory or a bucket, as little of either as the content-addressed store
 * (`blob-store.ts`) needs. Keys are made by us, never read from a queue.
 */
import type { Readable } from "node:stream";

/** Bytes to be stored: a file, or parts of memory that follow one another. */
export type Content =
  | { readonly path: string; readonly bytes: number }
  | { readonly pieces: () => Iterable<Uint8Array>; readonly bytes: number };

export interface ObjectStore {
  /** For messages. */
  readonly name: string;
  /** An object appears complete or not at all. */
  put(key: string, content: Content, signal?: AbortSignal): Promise<void>;
  /** Undefined when there is none. */
  get(key: string, signal?: AbortSignal): Promise<Readable | undefined>;
  /** Bytes of an object; undefined when there is none. */
  size(key: string): Promise<number | undefined>;
  /** Removes an object, if there is one. */
  remove(key: string): Promise<void>;
  /** Keys that begin with `prefix`, which ends with a slash. */
  list(prefix: string): Promise<string[]>;
  /** What went wrong in a few words when the same call may succeed later (full, busy, unreachable); else undefined. */
  passing(error: unknown): string | undefined;
  close(): void;
}

/** Errors of connections, which any store may have. */
const PASSING_CODES: Readonly<Record<string, string>> = {
  ENOSPC: "no space is left",
  EDQUOT: "the quota is used up",
  EROFS: "it is read-only",
  EACCES: "access is denied",
  EPERM: "access is denied",
  EIO: "the disk reported an error",
  ESTALE: "the network file system is away",
  EBUSY: "it is busy",
  EMFILE: "too many files are open",
  ECONNREFUSED: "nobody answers",
  ECONNRESET: "the connection broke",
  EPIPE: "the connection broke",
  ETIMEDOUT: "no answer came in time",
  EHOSTUNREACH: "the host cannot be reached",
  ENETUNREACH: "the network cannot be reached",
  EAI_AGAIN: "its name cannot be looked up",
};

export function passingCode(error: unknown): string | undefined {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code !== undefined && Object.hasOwn(PASSING_CODES, code) ? PASSING_CODES[code] : undefined;
}
