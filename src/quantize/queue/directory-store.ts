/** Objects as files of a directory that all machines see under some path of their own (NFS, or one machine's disk). */
import {
  closeSync,
  constants,
  copyFileSync,
  createReadStream,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join, sep } from "node:path";
import type { Readable } from "node:stream";
import { outputPlace } from "../../common/place.js";
import { temporaryName } from "../../common/temporary.js";
import { passingCode, type Content, type ObjectStore } from "./object-store.js";

export class DirectoryStore implements ObjectStore {
  readonly name: string;
  private readonly directory: string;

  /** @throws UsageError or PlanishError when nothing can be written there. */
  constructor(given: string) {
    this.directory = outputPlace(given, { flag: "--store", kind: "directory" });
    this.name = this.directory;
    mkdirSync(this.directory, { recursive: true });
  }

  private path(key: string): string {
    return join(this.directory, ...key.split("/"));
  }

  put(key: string, content: Content, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const path = this.path(key);
    mkdirSync(dirname(path), { recursive: true });
    const partial = temporaryName(path);
    try {
      if ("path" in content) copyFileSync(content.path, partial, constants.COPYFILE_EXCL);
      else writePieces(partial, content.pieces());
      const file = openSync(partial, "r+");
      try {
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(partial, path);
    } catch (error) {
      rmSync(partial, { force: true });
      return Promise.reject(asError(error));
    }
    return Promise.resolve();
  }

  async get(key: string, signal?: AbortSignal): Promise<Readable | undefined> {
    const stream = createReadStream(this.path(key), { signal });
    try {
      await new Promise<void>((resolve, reject) => {
        stream.once("open", () => resolve());
        stream.once("error", reject);
      });
      return stream;
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  }

  size(key: string): Promise<number | undefined> {
    return Promise.resolve(statSync(this.path(key), { throwIfNoEntry: false })?.size);
  }

  remove(key: string): Promise<void> {
    rmSync(this.path(key), { force: true });
    return Promise.resolve();
  }

  list(prefix: string): Promise<string[]> {
    try {
      const names = readdirSync(this.path(prefix), { recursive: true, withFileTypes: true });
      const base = this.path(prefix);
      return Promise.resolve(
        names
          .filter((entry) => entry.isFile() && !entry.name.includes(".partial-"))
          .map(({ parentPath, name }) => {
            const inside = join(parentPath, name).slice(base.length).split(sep).filter(Boolean);
            return prefix + inside.join("/");
          })
          .sort(),
      );
    } catch (error) {
      if (isAbsent(error)) return Promise.resolve([]);
      return Promise.reject(asError(error));
    }
  }

  passing(error: unknown): string | undefined {
    return passingCode(error);
  }

  close(): void {
    // Files are closed as they are done with.
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

function isAbsent(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "ENOENT";
}

function writePieces(path: string, pieces: Iterable<Uint8Array>): void {
  const file = openSync(path, "wx");
  try {
    for (const piece of pieces)
      for (let at = 0; at < piece.length;) at += writeSync(file, piece, at, piece.length - at);
  } finally {
    closeSync(file);
  }
}
