/** The content-addressed store, on a directory and on a real S3 server: bytes come back as they were, or an error does. */
import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { silentProgress } from "../../src/common/progress.js";
import { BlobStore, DamagedBlobError } from "../../src/quantize/queue/blob-store.js";
import { DirectoryStore } from "../../src/quantize/queue/directory-store.js";
import type { ObjectStore } from "../../src/quantize/queue/object-store.js";
import { S3Store } from "../../src/quantize/queue/s3-store.js";
import { BUCKET, noS3, S3Server } from "./s3-server.js";

const RUN = "0123456789abcdef";
const OTHER = "fedcba9876543210";
const scratch = mkdtempSync(join(tmpdir(), "planish-store-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const over = (objects: ObjectStore, patience = 5) =>
  new BlobStore(objects, { progress: silentProgress, patience });
const hash = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const key = (sha256: string) => `blobs/${sha256.slice(0, 2)}/${sha256}`;
const content = (bytes: Uint8Array) => ({ pieces: () => [bytes], bytes: bytes.length });

function behaves(open: () => Promise<ObjectStore>): void {
  let objects: ObjectStore;
  let store: BlobStore;
  beforeAll(async () => {
    objects = await open();
    store = over(objects);
  });
  afterAll(() => objects.close());

  it("gives back what was kept, from memory and from files, small, large and empty", async () => {
    // The largest goes to S3 in parts.
    for (const size of [0, 1, 1000, 70 * 2 ** 20]) {
      const bytes = size > 1000 ? Buffer.alloc(size, randomBytes(4096)) : randomBytes(size);
      const path = join(scratch, "given");
      writeFileSync(path, bytes);
      const record = await store.keepFile(RUN, path);
      expect(record).toEqual({ bytes: size, sha256: hash(bytes) });
      expect(await store.keepValues(RUN, bytes)).toEqual(record);
      expect(await store.holds(record)).toBe(true);
      const back = join(scratch, "back");
      await store.fetchFile(record, back);
      expect(readFileSync(back).equals(bytes)).toBe(true);
    }
    const floats = Float32Array.from({ length: 5000 }, Math.random);
    const record = await store.keepValues(RUN, floats);
    const back = new Float32Array(floats.length);
    await store.fetchValues(record, back);
    expect(back).toEqual(floats);
  });

  it("tells damage of every kind, writes nothing then, and takes the right bytes after", async () => {
    const bytes = randomBytes(5000);
    const record = await store.keepValues(RUN, bytes);
    const flipped = Buffer.from(bytes);
    flipped[77] ^= 4;
    const back = join(mkdtempSync(join(scratch, "damaged-")), "back");
    const into = new Float32Array(1250);
    for (const wrong of [flipped, bytes.subarray(1), Buffer.concat([bytes, bytes]), undefined]) {
      await objects.remove(key(record.sha256));
      if (wrong) await objects.put(key(record.sha256), content(wrong));
      await expect(store.fetchFile(record, back)).rejects.toBeInstanceOf(DamagedBlobError);
      await expect(store.fetchValues(record, into)).rejects.toBeInstanceOf(DamagedBlobError);
      await expect(store.fetchText(record)).rejects.toBeInstanceOf(DamagedBlobError);
      expect(existsSync(back)).toBe(false);
    }
    await store.discard(record.sha256);
    await store.keepValues(RUN, bytes);
    await store.fetchFile(record, back);
    expect(readFileSync(back).equals(bytes)).toBe(true);
  });

  it("keeps blobs as long as a run points to them, and records by name", async () => {
    const bytes = randomBytes(300);
    const record = await store.keepValues(RUN, bytes);
    await store.keepValues(OTHER, bytes);
    await store.keepRecord(RUN, "block-001", '{"a":1}');
    await store.keepRecord(OTHER, "block-001", "{}");
    expect(await store.readRecord(RUN, "block-001")).toBe('{"a":1}');
    expect(await store.readRecord(RUN, "block-002")).toBeUndefined();
    await store.releaseRun(RUN, [record.sha256]);
    expect(await store.holds(record)).toBe(true);
    expect(await store.readRecord(RUN, "block-001")).toBeUndefined();
    await store.releaseRun(OTHER, [record.sha256]);
    expect(await store.holds(record)).toBe(false);
    // Whoever removes twice does no harm.
    await store.releaseRun(OTHER, [record.sha256]);
  });
}

describe("a store in a directory", () =>
  behaves(() => Promise.resolve(new DirectoryStore(join(scratch, "store")))));

describe.skipIf(noS3 !== undefined)(`a store in S3${noS3 ? ` (${noS3})` : ""}`, () => {
  let server: S3Server;
  beforeAll(async () => {
    server = await S3Server.start(join(scratch, "s3"));
    Object.assign(process.env, server.env);
  });
  afterAll(() => server.stop());

  behaves(() => S3Store.open(`s3://${BUCKET}/a/prefix`));

  it("refuses a bucket that is not there, and keys that do not fit", async () => {
    await expect(S3Store.open("s3://nobody-has-this")).rejects.toThrow(/there is no bucket/);
    process.env.AWS_SECRET_ACCESS_KEY = "wrong";
    await expect(S3Store.open(`s3://${BUCKET}`)).rejects.toThrow(/access is denied/);
    process.env.AWS_SECRET_ACCESS_KEY = server.env.AWS_SECRET_ACCESS_KEY;
  });
});

describe("a store that is away for a while", () => {
  /** Fails so many times with this. */
  class Flaky extends DirectoryStore {
    constructor(
      private left: number,
      private readonly error: Error,
    ) {
      super(join(scratch, "flaky"));
    }
    override put(...args: Parameters<DirectoryStore["put"]>): Promise<void> {
      if (this.left-- > 0) return Promise.reject(this.error);
      return super.put(...args);
    }
  }
  const full = Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });

  it("is waited for, and said to be so once", async () => {
    const said: string[] = [];
    const progress = {
      ...silentProgress,
      warn: (message: string) => said.push(message),
      note: (message: string) => said.push(message),
    };
    const store = new BlobStore(new Flaky(3, full), { progress, patience: 60 });
    const record = await store.keepValues(RUN, randomBytes(10));
    expect(await store.holds(record)).toBe(true);
    expect(said).toHaveLength(2);
    expect(said[0]).toMatch(/cannot write to .*: no space is left; trying again/);
    expect(said[1]).toMatch(/can be used again/);
  });

  it("is given up when the patience is over, and at once for what does not pass", async () => {
    const patient = over(new Flaky(Infinity, full), 0.3);
    const ended = await patient.keepValues(RUN, randomBytes(10)).catch((error: unknown) => error);
    expect(ended).toBeInstanceOf(PlanishError);
    expect(ended).toMatchObject({
      resumable: true,
      message: expect.stringMatching(/no space is left, for .*; mend that and go on/),
    });
    const odd = over(new Flaky(Infinity, new Error("odd")), 60);
    await expect(odd.keepValues(RUN, randomBytes(10))).rejects.toThrow("odd");
  });
});

it.each(["s3://UPPER/x", "s3://b/../x", "s3:///x", "s3://bucket/a b", "s3:bucket"])(
  "%s is no address of a bucket",
  async (address) => {
    await expect(S3Store.open(address)).rejects.toThrow(/is no address of a bucket/);
  },
);
