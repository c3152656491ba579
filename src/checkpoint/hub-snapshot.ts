/**
 * Snapshots of models from the Hugging Face hub, in the hub's own cache layout, so that other programs'
 * downloads are found and ours are found by them:
 * `models--org--name/{blobs/<etag>, snapshots/<commit>/<file> → blob, refs/<revision>}`.
 *
 * `snapshotDownload` of `@huggingface/hub` fetches every file of a repository, checks no hashes and prints to
 * standard output, so the walk over files is here, and their transfer in hub-transfer.ts; listing is the library's.
 */

import { createHash } from "node:crypto";
import { createReadStream, existsSync, statSync } from "node:fs";
import { copyFile, mkdir, readdir, readlink, rename, rm, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { listFiles, modelInfo, type ListFileEntry } from "@huggingface/hub";
import { PlanishError } from "../common/errors.js";
import { acquireLock, type Lock } from "../common/lock.js";
import { silentProgress, type ProgressSink, type ProgressTask } from "../common/progress.js";
import { readUserText } from "../common/read-file.js";
import { temporaryName, writeAtomically } from "../common/temporary.js";
import { isJsonObject, readJsonObject } from "./file-reader.js";
import { contentHash, fetchBlob, isPart, type HubAccess } from "./hub-transfer.js";
import { INDEX_FILE, SINGLE_FILE } from "./safetensors.js";

export interface HubModel {
  /** `org/name`. */
  readonly repo: string;
  /** Branch, tag or commit. */
  readonly revision: string;
}

export interface HubOptions {
  /** Root of the hub's cache (default: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub). */
  readonly cacheDir?: string;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
  /** Files that are there are hashed again, and fetched again when they are damaged; else their size is compared. */
  readonly verify?: boolean;
  /** Replaces the network, for tests and proxies. */
  readonly fetch?: typeof fetch;
}

/** A commit, or a token: one short line. */
const MAX_REF_BYTES = 4096;

const COMMIT = /^[0-9a-f]{40}$/;

/** Default root of the hub's cache; empty variables count as unset. */
export function hubCacheDir(env: NodeJS.ProcessEnv = process.env): string {
  if (env["HF_HUB_CACHE"]) return env["HF_HUB_CACHE"];
  return join(hubHome(env), "hub");
}

function hubHome(env: NodeJS.ProcessEnv): string {
  return env["HF_HOME"] || join(env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "huggingface");
}

function repoDirectory(model: HubModel, cacheDir: string): string {
  return join(cacheDir, `models--${model.repo.split("/").join("--")}`);
}

/** The directory of a complete snapshot that is already in the cache, or undefined. Uses no network. */
export function cachedSnapshot(model: HubModel, cacheDir: string): string | undefined {
  const directory = repoDirectory(model, cacheDir);
  let commit = model.revision;
  if (!COMMIT.test(commit)) {
    const ref = join(directory, "refs", ...commit.split("/"));
    if (!existsSync(ref)) return undefined;
    commit = readUserText(ref, { most: MAX_REF_BYTES }).trim();
    if (!COMMIT.test(commit)) return undefined;
  }
  const snapshot = join(directory, "snapshots", commit);
  return isComplete(snapshot) ? snapshot : undefined;
}

/** Weights are fetched last, so a snapshot with all its weights has everything. */
function isComplete(snapshot: string): boolean {
  if (!existsSync(join(snapshot, "config.json"))) return false;
  if (existsSync(join(snapshot, SINGLE_FILE))) return true;
  if (!existsSync(join(snapshot, INDEX_FILE))) return false;
  const { weight_map: shards } = readJsonObject(join(snapshot, INDEX_FILE));
  if (!isJsonObject(shards)) return false;
  return Object.values(shards).every(
    (shard) => typeof shard === "string" && existsSync(join(snapshot, shard)),
  );
}

const WEIGHTS = /^model(-\d+-of-\d+)?\.safetensors$/;
const SMALL_FILES = /^([\w.-]+\.json|[\w.-]+\.jinja|tokenizer\.model|merges\.txt|vocab\.txt)$/;

/** Fetches what a model needs to run: JSON, tokenizer files and safetensors of the repository's root. */
export async function downloadSnapshot(model: HubModel, options: HubOptions): Promise<string> {
  const { cacheDir = hubCacheDir(), progress = silentProgress, signal } = options;
  const access = {
    accessToken: accessToken(),
    hubUrl: process.env["HF_ENDPOINT"]?.replace(/\/+$/, "") || undefined,
    fetch: abortable(options.fetch ?? fetch, signal),
  };
  const { sha: commit } = await modelInfo({
    name: model.repo,
    revision: model.revision,
    additionalFields: ["sha"],
    ...access,
  });
  if (!COMMIT.test(commit)) throw new PlanishError(`the hub names no commit for ${model.repo}`);
  const wanted: ListFileEntry[] = [];
  for await (const entry of listFiles({ repo: model.repo, revision: commit, ...access })) {
    if (entry.type === "file" && (WEIGHTS.test(entry.path) || SMALL_FILES.test(entry.path))) {
      wanted.push(entry);
    }
  }
  if (!wanted.some(({ path }) => WEIGHTS.test(path))) {
    throw new PlanishError(
      `${model.repo} has no safetensors weights (${SINGLE_FILE} or shards of it) at ${model.revision}; choose a repository that has`,
    );
  }
  const directory = repoDirectory(model, cacheDir);
  using _lock = await lockModel(model, cacheDir);
  wanted.sort((a, b) => Number(WEIGHTS.test(a.path)) - Number(WEIGHTS.test(b.path)));
  const task = progress.task(
    model.repo,
    wanted.reduce((sum, { size }) => sum + size, 0),
  );
  try {
    for (const entry of wanted) {
      await fetchFile(model, commit, entry, directory, access, task, options);
    }
  } finally {
    task.done();
  }
  await removeParts(join(directory, "blobs"));
  if (model.revision !== commit) {
    const ref = join(directory, "refs", ...model.revision.split("/"));
    await mkdir(dirname(ref), { recursive: true });
    writeAtomically(ref, commit);
  }
  return join(directory, "snapshots", commit);
}

async function fetchFile(
  model: HubModel,
  commit: string,
  entry: ListFileEntry,
  directory: string,
  access: HubAccess,
  task: ProgressTask,
  { signal, verify = false }: HubOptions,
): Promise<void> {
  const pointer = join(directory, "snapshots", commit, entry.path);
  const etag = entry.lfs?.oid ?? entry.xetHash ?? entry.oid ?? "";
  if (!/^[0-9a-f]{40,64}$/.test(etag)) {
    throw new PlanishError(`the hub gives no hash for ${model.repo}/${entry.path}`);
  }
  const blob = join(directory, "blobs", etag);
  if (!(await isKept(blob, entry, verify, signal))) {
    await mkdir(dirname(blob), { recursive: true });
    await fetchBlob(blob, {
      ...access,
      ...{ repo: model.repo, commit, entry, signal },
      onBytes: (count) => task.advance(count, entry.path),
    });
  } else {
    task.advance(entry.size, entry.path);
  }
  if (!existsSync(pointer)) await link(blob, pointer);
}

/** Whether a blob is there with the listed size and, with `verify`, the listed hash. */
async function isKept(
  blob: string,
  entry: ListFileEntry,
  verify: boolean,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  if (statSync(blob, { throwIfNoEntry: false })?.size !== entry.size) return false;
  if (!verify) return true;
  const hash = contentHash(entry);
  if (!hash) return true;
  await pipeline(createReadStream(blob), hash, { signal });
  return hash.digest("hex") === (entry.lfs?.oid ?? entry.oid);
}

/** One process at a time fetches a model. The hub's own clients keep their locks in the same folder. */
async function lockModel(model: HubModel, cacheDir: string): Promise<Lock> {
  const folder = join(cacheDir, ".locks", basename(repoDirectory(model, cacheDir)));
  await mkdir(folder, { recursive: true });
  return acquireLock(join(folder, "planish.lock"), `${model.repo} in ${cacheDir}`);
}

/** Removes parts of files that nobody wants any more. Under the lock, nobody else has any on the way. */
async function removeParts(blobs: string): Promise<void> {
  for (const name of await readdir(blobs)) if (isPart(name)) await rm(join(blobs, name));
}

/**
 * Names of a snapshot's files whose content is not what the hub's hash, which is the name of the blob, says. Uses no
 * network. Copies, where links could not be made, are not known by hash and not looked at.
 */
export async function damagedFiles(snapshot: string, signal?: AbortSignal): Promise<string[]> {
  const damaged: string[] = [];
  for (const entry of await readdir(snapshot, { withFileTypes: true })) {
    if (!entry.isSymbolicLink()) continue;
    const file = join(snapshot, entry.name);
    const expected = basename(await readlink(file));
    const size = statSync(file, { throwIfNoEntry: false })?.size;
    const hash =
      expected.length === 64
        ? createHash("sha256")
        : createHash("sha1").update(`blob ${size ?? 0}\0`);
    if (size !== undefined) await pipeline(createReadStream(file), hash, { signal });
    if (size === undefined || hash.digest("hex") !== expected) damaged.push(entry.name);
  }
  return damaged.sort();
}

async function link(blob: string, pointer: string): Promise<void> {
  await mkdir(dirname(pointer), { recursive: true });
  await rm(pointer, { force: true });
  try {
    await symlink(relative(dirname(pointer), blob), pointer);
  } catch {
    // Windows grants symbolic links to few; the cache then holds copies, as the hub's own clients do.
    const incomplete = temporaryName(pointer);
    await copyFile(blob, incomplete);
    await rename(incomplete, pointer);
  }
}

function accessToken(): string | undefined {
  const env = process.env;
  if (env["HF_TOKEN"]) return env["HF_TOKEN"];
  const file = env["HF_TOKEN_PATH"] || join(hubHome(env), "token");
  return existsSync(file)
    ? readUserText(file, { what: "access token", most: MAX_REF_BYTES }).trim() || undefined
    : undefined;
}

function abortable(inner: typeof fetch, signal: AbortSignal | undefined): typeof fetch {
  return (input, init) => inner(input, { ...init, ...(signal ? { signal } : {}) });
}

/** SHA-256 of a file in hexadecimal. */
export async function fileSha256(path: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash, { signal });
  return hash.digest("hex");
}
