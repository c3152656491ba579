/** Blobs that a worker has fetched to its own disk: blocks that follow one another share states and weights. */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { FileRecord } from "../../checkpoint/file-record.js";
import type { BlobStore } from "./blob-store.js";

export class BlobCache {
  constructor(
    private readonly store: BlobStore,
    private readonly directory: string,
  ) {}

  /** A file of the worker's own beside the blobs. */
  path(name: string): string {
    return join(this.directory, name);
  }

  /** Removes every blob but these. */
  keepOnly(records: readonly FileRecord[]): Promise<void> {
    const wanted = new Set(records.map(({ sha256 }) => sha256));
    for (const name of readdirSync(this.directory))
      if (!wanted.has(name)) rmSync(join(this.directory, name), { force: true });
    return Promise.resolve();
  }

  /** Path of a blob, fetched and checked unless it is here. @throws DamagedBlobError */
  async file(record: FileRecord): Promise<string> {
    const path = join(this.directory, record.sha256);
    if (!existsSync(path)) await this.store.fetchFile(record, path);
    return path;
  }
}
