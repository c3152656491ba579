/**
 * The content-addressed store of runs on many machines. Bytes are kept under their SHA-256 and checked when they are
 * fetched, so a pointer is a hash and whoever reads gets what was written or an error. Beside the bytes there are records, small
 * texts under a name, and marks of the runs that use a blob, so that the last of them removes it.
 *
 *   blobs/<2 digits>/<sha256>      the bytes
 *   uses/<sha256>/<run>            empty: the run points to these bytes
 *   runs/<run>/<name>.json         what is known of a run's finished blocks
 */
import { createHash } from "node:crypto";
import { createWriteStream, renameSync, rmSync } from "node:fs";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { bytePieces } from "../../common/bytes.js";
import { InterruptedError, PlanishError } from "../../common/errors.js";
import { formatBytes, formatDuration } from "../../common/format.js";
import type { ProgressSink } from "../../common/progress.js";
import { temporaryName } from "../../common/temporary.js";
import { recordFile, type FileRecord } from "../../checkpoint/file-record.js";
import { DirectoryStore } from "./directory-store.js";
import type { Content, ObjectStore } from "./object-store.js";
import { S3Store } from "./s3-store.js";

/** A blob that is gone, or does not hold the bytes of its name: whoever has the source can make it again. */
export class DamagedBlobError extends PlanishError {
  override readonly name = "DamagedBlobError";
  constructor(
    readonly sha256: string,
    message: string,
  ) {
    super(message);
  }
}

/** Records are settings and reports; larger ones are none of ours. */
const MOST_RECORD_BYTES = 64 * 2 ** 20;
const FIRST_WAIT = 200;
const LONGEST_WAIT = 5000;

export interface BlobStoreOptions {
  readonly progress: ProgressSink;
  /** Seconds that a store which is full, busy or away is waited for. */
  readonly patience: number;
  readonly signal?: AbortSignal;
}

/** Bytes that this process has moved, and how long it waited for them. */
export interface Traffic {
  written: number;
  read: number;
  seconds: number;
}

export class BlobStore {
  readonly traffic: Traffic = { written: 0, read: 0, seconds: 0 };

  constructor(
    private readonly objects: ObjectStore,
    private readonly options: BlobStoreOptions,
  ) {}

  /** `address`: a directory, or `s3://bucket/prefix`. @throws UsageError, PlanishError when it cannot be used. */
  static async open(address: string, options: BlobStoreOptions): Promise<BlobStore> {
    const objects = address.startsWith("s3:")
      ? await S3Store.open(address)
      : new DirectoryStore(address);
    return new BlobStore(objects, options);
  }

  get name(): string {
    return this.objects.name;
  }

  /** Keeps values under the hash of their bytes, for a run. */
  async keepValues(run: string, values: ArrayBufferView): Promise<FileRecord> {
    const sha = createHash("sha256");
    for (const piece of bytePieces(values)) sha.update(piece);
    const record = { bytes: values.byteLength, sha256: sha.digest("hex") };
    await this.keep(run, record, { pieces: () => bytePieces(values), bytes: record.bytes });
    return record;
  }

  async keepText(run: string, text: string): Promise<FileRecord> {
    return this.keepValues(run, Buffer.from(text));
  }

  async keepFile(run: string, path: string): Promise<FileRecord> {
    const record = recordFile(path);
    await this.keep(run, record, { path, bytes: record.bytes });
    return record;
  }

  private async keep(run: string, { sha256, bytes }: FileRecord, content: Content): Promise<void> {
    // Marked first: a run that ends meanwhile must not take the bytes away.
    await this.patiently("write to", () => this.objects.put(useKey(sha256, run), EMPTY));
    const key = blobKey(sha256);
    await this.patiently("write to", async () => {
      if ((await this.objects.size(key)) === bytes) return;
      await this.objects.put(key, content, this.options.signal);
      this.traffic.written += bytes;
    });
  }

  /** Whether a blob is there, by its size; its bytes are checked when it is fetched. */
  async holds({ sha256, bytes }: FileRecord): Promise<boolean> {
    const key = blobKey(sha256);
    return (await this.patiently("read", () => this.objects.size(key))) === bytes;
  }

  /** Fetches a blob into a file, which appears complete and checked. @throws DamagedBlobError */
  async fetchFile({ sha256, bytes }: FileRecord, path: string): Promise<void> {
    const partial = temporaryName(path);
    await this.patiently("read", async () => {
      const from = await this.objects.get(blobKey(sha256), this.options.signal);
      if (!from) throw this.damaged(sha256, "is missing");
      const sha = createHash("sha256");
      let size = 0;
      const check = new Transform({
        transform(chunk: Uint8Array, _encoding, done) {
          size += chunk.length;
          // What is longer than was promised is not written to this machine's disk.
          if (size <= bytes) sha.update(chunk);
          done(null, size <= bytes ? chunk : undefined);
        },
      });
      try {
        await pipeline(from, check, createWriteStream(partial, { flags: "wx" }), {
          signal: this.options.signal,
        });
        if (size !== bytes)
          throw this.damaged(sha256, `has ${size} bytes, and was written with ${bytes}`);
        if (sha.digest("hex") !== sha256)
          throw this.damaged(sha256, "does not hold the bytes that were written (SHA-256)");
        renameSync(partial, path);
        this.traffic.read += bytes;
      } catch (error) {
        rmSync(partial, { force: true });
        throw error;
      }
    });
  }

  /** Fetches a blob into memory. @throws DamagedBlobError */
  async fetchValues({ sha256, bytes }: FileRecord, into: Float32Array): Promise<void> {
    await this.patiently("read", async () => {
      const from = await this.objects.get(blobKey(sha256), this.options.signal);
      if (!from) throw this.damaged(sha256, "is missing");
      const sha = createHash("sha256");
      let at = 0;
      for await (const part of from) {
        const chunk = part as Uint8Array;
        if (at + chunk.length > into.byteLength) throw this.damaged(sha256, "is too long");
        sha.update(chunk);
        new Uint8Array(into.buffer, into.byteOffset + at, chunk.length).set(chunk);
        at += chunk.length;
      }
      if (at !== bytes)
        throw this.damaged(sha256, `has ${at} bytes, and was written with ${bytes}`);
      if (sha.digest("hex") !== sha256)
        throw this.damaged(sha256, "does not hold the bytes that were written (SHA-256)");
      this.traffic.read += bytes;
    });
  }

  /** @throws DamagedBlobError, PlanishError when it is longer than any text of ours. */
  async fetchText({ sha256, bytes }: FileRecord): Promise<string> {
    if (bytes > MOST_RECORD_BYTES)
      throw new PlanishError(`a description of ${formatBytes(bytes)} is none of ours`);
    const text = await this.patiently("read", () => this.readAll(blobKey(sha256)));
    if (text === undefined) throw this.damaged(sha256, "is missing");
    this.traffic.read += text.length;
    if (createHash("sha256").update(text).digest("hex") !== sha256)
      throw this.damaged(sha256, "does not hold the bytes that were written (SHA-256)");
    return text.toString("utf8");
  }

  private async readAll(key: string): Promise<Buffer | undefined> {
    const from = await this.objects.get(key, this.options.signal);
    if (!from) return undefined;
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of from) {
      size += (part as Uint8Array).length;
      if (size > MOST_RECORD_BYTES) break;
      parts.push(part as Uint8Array);
    }
    return Buffer.concat(parts);
  }

  private damaged(sha256: string, problem: string): DamagedBlobError {
    return new DamagedBlobError(
      sha256,
      `${this.name}: blob ${sha256.slice(0, 12)}… ${problem}; it is made again from the model`,
    );
  }

  /** Removes bytes that are not what their name says. */
  async discard(sha256: string): Promise<void> {
    await this.patiently("write to", () => this.objects.remove(blobKey(sha256)));
  }

  async keepRecord(run: string, name: string, text: string): Promise<void> {
    const bytes = Buffer.from(text);
    await this.patiently("write to", () =>
      this.objects.put(recordKey(run, name), { pieces: () => [bytes], bytes: bytes.length }),
    );
  }

  async readRecord(run: string, name: string): Promise<string | undefined> {
    const text = await this.patiently("read", () => this.readAll(recordKey(run, name)));
    return text?.toString("utf8");
  }

  async removeRecord(run: string, name: string): Promise<void> {
    await this.patiently("write to", () => this.objects.remove(recordKey(run, name)));
  }

  /** A run has no more use for a blob; bytes that no other run points to go. */
  async release(run: string, sha256: string): Promise<void> {
    await this.patiently("write to", async () => {
      await this.objects.remove(useKey(sha256, run));
      const others = await this.objects.list(`uses/${sha256}/`);
      if (others.length === 0) await this.objects.remove(blobKey(sha256));
    });
  }

  /** Removes a run's records and what only it points to. */
  async releaseRun(run: string, blobs: Iterable<string>): Promise<void> {
    for (const sha256 of new Set(blobs)) await this.release(run, sha256);
    await this.patiently("write to", async () => {
      for (const key of await this.objects.list(`runs/${run}/`)) await this.objects.remove(key);
    });
  }

  close(): void {
    this.objects.close();
  }

  /** Repeats what fails for a passing reason, until the patience is over. */
  private async patiently<T>(what: string, work: () => Promise<T>): Promise<T> {
    const { progress, patience, signal } = this.options;
    const began = performance.now();
    let told = false;
    for (let wait = FIRST_WAIT; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
      try {
        const result = await work();
        if (told) progress.note(`${this.name} can be used again`);
        this.traffic.seconds += (performance.now() - began) / 1000;
        return result;
      } catch (error) {
        if (signal?.aborted) throw new InterruptedError("stopped while moving data");
        const reason = this.objects.passing(error);
        if (reason === undefined) throw error;
        const waited = (performance.now() - began) / 1000;
        if (waited + wait / 1000 > patience)
          throw new PlanishError(
            `cannot ${what} ${this.name}: ${reason}, for ${formatDuration(waited)}; mend that and go on`,
            { cause: error, resumable: true },
          );
        if (!told)
          progress.warn(`cannot ${what} ${this.name}: ${reason}; trying again until that changes`);
        told = true;
        await sleep(wait, undefined, { signal }).catch(() => undefined);
      }
    }
  }
}

const EMPTY: Content = { pieces: () => [], bytes: 0 };

function blobKey(sha256: string): string {
  return `blobs/${sha256.slice(0, 2)}/${sha256}`;
}

function useKey(sha256: string, run: string): string {
  return `uses/${sha256}/${run}`;
}

function recordKey(run: string, name: string): string {
  return `runs/${run}/${name}.json`;
}
