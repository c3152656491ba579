/**
 * One file of the hub's onto the disk. What has come of a download that was cut stays beside its place and the next one
 * asks for the rest only (`Range`), provided that the server still has the same file (`If-Range`). Whatever the server
 * says, a file gets its name only with the listed size and hash.
 */

import { createHash, type Hash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync, statSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ReadableStream } from "node:stream/web";
import { fileDownloadInfo, HubApiError, type ListFileEntry } from "@huggingface/hub";
import { PlanishError } from "../common/errors.js";
import { readUserText } from "../common/read-file.js";
import { writeAtomically } from "../common/temporary.js";

export interface HubAccess {
  readonly accessToken: string | undefined;
  readonly hubUrl: string | undefined;
  readonly fetch: typeof fetch;
}

export interface Transfer extends HubAccess {
  readonly repo: string;
  readonly commit: string;
  readonly entry: ListFileEntry;
  readonly signal?: AbortSignal;
  /** Told of bytes that have come, those of an earlier attempt included. */
  readonly onBytes: (count: number) => void;
}

const PART = ".planish-part";
/** Where the validator of a part is kept: which file it is the beginning of, in the server's words. */
const ETAG = `${PART}.etag`;
/** One header line. */
const MAX_ETAG_BYTES = 4096;

/** Whether a file beside blobs is a part of ours; earlier versions gave them the name of their process. */
export function isPart(name: string): boolean {
  return /^[0-9a-f]{40,64}\.(planish-part(\.etag)?|partial-\d+-[0-9a-f]{8})$/.test(name);
}

/** The hash that the listing names: SHA-256 for large files, git's SHA-1 of a blob for the others. */
export function contentHash({ lfs, oid, size }: ListFileEntry): Hash | undefined {
  if (lfs) return createHash("sha256");
  return oid ? createHash("sha1").update(`blob ${size}\0`) : undefined;
}

/**
 * Fetches a file to `blob`. Only one process at a time may do so.
 * @throws PlanishError when what comes is not what is listed, HubApiError or the network's error when it does not come.
 */
export async function fetchBlob(blob: string, transfer: Transfer): Promise<void> {
  const { repo, commit, entry } = transfer;
  const info = await fileDownloadInfo({
    ...{ repo, path: entry.path, revision: commit },
    ...{ accessToken: transfer.accessToken, hubUrl: transfer.hubUrl, fetch: transfer.fetch },
  });
  if (!info) throw new PlanishError(`the hub has no ${entry.path} in ${repo}`);
  const counter = new Counter(transfer.onBytes);
  // A part may be of another file than the server has now, or damaged: then it is fetched whole.
  if ((await receive(blob, info.url, transfer, counter)) === "not the file")
    await receive(blob, info.url, transfer, counter);
}

/** Counts every byte of a file once, however often it comes. */
class Counter {
  private counted = 0;
  constructor(private readonly onBytes: (count: number) => void) {}
  reach(position: number): void {
    if (position <= this.counted) return;
    this.onBytes(position - this.counted);
    this.counted = position;
  }
}

async function receive(
  blob: string,
  url: string,
  transfer: Transfer,
  counter: Counter,
): Promise<"done" | "not the file"> {
  const { entry, repo, signal } = transfer;
  const part = blob + PART;
  const kept = statSync(part, { throwIfNoEntry: false })?.size ?? 0;
  let position = 0;
  if (kept < entry.size || entry.size === 0) {
    const response = await transfer.fetch(url, { headers: headersOf(blob, kept, transfer) });
    if (!response.ok && response.status !== 416) {
      await response.body?.cancel();
      throw new HubApiError(response.url, response.status);
    }
    const continues =
      kept > 0 &&
      response.status === 206 &&
      (response.headers.get("content-range") ?? "").startsWith(`bytes ${kept}-`);
    if (!continues && response.status !== 200) {
      await response.body?.cancel();
      return await failed();
    }
    if (!continues) await keepEtag(blob, response.headers.get("etag"));
    position = continues ? kept : 0;
    counter.reach(position);
    const count = new Transform({
      transform(chunk: Uint8Array, _encoding, done) {
        position += chunk.byteLength;
        counter.reach(Math.min(position, entry.size));
        // More than is listed is not written: it is another file, however long.
        done(position > entry.size ? new TooLong() : null, chunk);
      },
    });
    const file = createWriteStream(part, { flags: continues ? "a" : "w", flush: true });
    const body = response.body ?? new Response(new Uint8Array()).body;
    try {
      await pipeline(Readable.fromWeb(body as ReadableStream<Uint8Array>), count, file, { signal });
    } catch (error) {
      if (!(error instanceof TooLong)) throw error;
    }
    if (position < entry.size)
      throw new PlanishError(
        `${entry.path} of ${repo} came damaged: ${position} of ${entry.size} bytes; try again, and the rest is fetched`,
      );
  }
  const hash = contentHash(entry);
  if (hash) await pipeline(createReadStream(part), hash, { signal });
  const isListed =
    statSync(part).size === entry.size &&
    (hash === undefined || hash.digest("hex") === (entry.lfs?.oid ?? entry.oid));
  if (!isListed) return await failed();
  await rm(blob + ETAG, { force: true });
  await rename(part, blob);
  return "done";

  /** Nothing of it is of use. It is no failure yet where a part from before may be the cause. */
  async function failed(): Promise<"not the file"> {
    for (const name of [part, blob + ETAG]) await rm(name, { force: true });
    if (kept > 0) return "not the file";
    throw new PlanishError(
      `${entry.path} of ${repo} came damaged (${position} of ${entry.size} bytes, or another hash than the hub lists); try again`,
    );
  }
}

class TooLong extends Error {}

function headersOf(blob: string, kept: number, { accessToken }: Transfer): Record<string, string> {
  // A range of a compressed answer would be none of the file.
  const headers: Record<string, string> = { "accept-encoding": "identity" };
  if (accessToken !== undefined) headers["authorization"] = `Bearer ${accessToken}`;
  if (kept === 0) return headers;
  headers["range"] = `bytes=${kept}-`;
  if (existsSync(blob + ETAG))
    headers["if-range"] = readUserText(blob + ETAG, { most: MAX_ETAG_BYTES });
  return headers;
}

/** Weak validators say nothing about single bytes. */
async function keepEtag(blob: string, etag: string | null): Promise<void> {
  if (etag !== null && /^"[\x21\x23-\x7e]{1,1000}"$/.test(etag)) writeAtomically(blob + ETAG, etag);
  else await rm(blob + ETAG, { force: true });
}
