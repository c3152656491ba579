/**
 * Objects in a bucket of S3, or of a server that speaks its protocol. Credentials and region come from where the AWS SDK
 * looks for them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, profiles, roles of the machine), the server from
 * AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
 */
import { createReadStream } from "node:fs";
import { Readable } from "node:stream";
import type { S3Client } from "@aws-sdk/client-s3";
import { quoted } from "../../common/bounds.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { passingCode, type Content, type ObjectStore } from "./object-store.js";
import { loadS3Packages } from "./packages.js";

/** S3's own rules for names of buckets, without those that only some regions know. */
const ADDRESS = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*?))?\/*$/;
const PREFIX = /^[\w!.*'()-]+(?:\/[\w!.*'()-]+)*$/;

/** Bytes of a part of an upload: S3 takes at most 10 000 of them, so 640 GB in all. */
const PART_BYTES = 64 * 2 ** 20;
/** What is not sent in parts. */
const SMALL_BYTES = 8 * 2 ** 20;

type Packages = Awaited<ReturnType<typeof loadS3Packages>>;

export class S3Store implements ObjectStore {
  private constructor(
    readonly name: string,
    private readonly packages: Packages,
    private readonly client: S3Client,
    private readonly bucket: string,
    private readonly prefix: string,
  ) {}

  /** @throws UsageError for what is no address, PlanishError when the packages or the bucket are missing. */
  static async open(address: string, env: NodeJS.ProcessEnv = process.env): Promise<S3Store> {
    const [, bucket, path = ""] = ADDRESS.exec(address) ?? [];
    if (bucket === undefined || (path !== "" && !PREFIX.test(path)))
      throw new UsageError(
        `--store ${quoted(address)} is no address of a bucket; write one like s3://bucket/prefix`,
      );
    const packages = await loadS3Packages();
    const client = new packages.s3.S3Client({
      region: env.AWS_REGION ?? env.AWS_DEFAULT_REGION ?? "us-east-1",
      // Servers other than Amazon's are seldom reached under a host name for each bucket.
      forcePathStyle: env.AWS_ENDPOINT_URL_S3 !== undefined || env.AWS_ENDPOINT_URL !== undefined,
      // The bytes of every object are held against their SHA-256; some servers do not know the newer checksums.
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
      maxAttempts: 3,
    });
    const store = new S3Store(address, packages, client, bucket, path === "" ? "" : `${path}/`);
    try {
      await client.send(new packages.s3.HeadBucketCommand({ Bucket: bucket }));
    } catch (cause) {
      client.destroy();
      throw new PlanishError(
        `--store ${address} cannot be used: ${store.describe(cause)}; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) give access, AWS_ENDPOINT_URL_S3 names a server other than Amazon's`,
        { cause, resumable: true },
      );
    }
    return store;
  }

  private at(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.bucket, Key: this.prefix + key };
  }

  async put(key: string, content: Content, signal?: AbortSignal): Promise<void> {
    const { s3, storage } = this.packages;
    if (content.bytes <= SMALL_BYTES) {
      const body = Buffer.concat(await collect(open(content)));
      await this.client.send(new s3.PutObjectCommand({ ...this.at(key), Body: body }), {
        abortSignal: signal,
      });
      return;
    }
    const upload = new storage.Upload({
      client: this.client,
      params: { ...this.at(key), Body: open(content) },
      partSize: PART_BYTES,
      queueSize: 2,
    });
    const abort = (): void => void upload.abort();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      await upload.done();
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  async get(key: string, signal?: AbortSignal): Promise<Readable | undefined> {
    const command = new this.packages.s3.GetObjectCommand(this.at(key));
    try {
      const { Body } = await this.client.send(command, { abortSignal: signal });
      return Body as Readable | undefined;
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  }

  async size(key: string): Promise<number | undefined> {
    const command = new this.packages.s3.HeadObjectCommand(this.at(key));
    try {
      return (await this.client.send(command)).ContentLength;
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  }

  async remove(key: string): Promise<void> {
    await this.client.send(new this.packages.s3.DeleteObjectCommand(this.at(key)));
  }

  async list(prefix: string): Promise<string[]> {
    const { paginateListObjectsV2 } = this.packages.s3;
    const keys: string[] = [];
    const pages = paginateListObjectsV2(
      { client: this.client },
      { Bucket: this.bucket, Prefix: this.prefix + prefix },
    );
    for await (const { Contents = [] } of pages)
      keys.push(...Contents.flatMap(({ Key }) => (Key ? [Key.slice(this.prefix.length)] : [])));
    return keys.sort();
  }

  passing(error: unknown): string | undefined {
    const code = passingCode(error);
    if (code !== undefined) return code;
    const { name, $metadata, cause } = error as ServiceError;
    if (cause !== undefined && passingCode(cause) !== undefined) return passingCode(cause);
    const status = $metadata?.httpStatusCode;
    if (name === "TimeoutError") return "no answer came in time";
    if (status === undefined || (status < 500 && status !== 429 && status !== 408))
      return undefined;
    return `it answers ${status} ${name ?? ""}`.trim();
  }

  private describe(error: unknown): string {
    const { name, message, $metadata } = error as ServiceError;
    if ($metadata?.httpStatusCode === 404) return `there is no bucket ${quoted(this.bucket)}`;
    if ($metadata?.httpStatusCode === 403) return "access is denied";
    return this.passing(error) ?? (message || (name ?? "no reason given"));
  }

  close(): void {
    this.client.destroy();
  }
}

interface ServiceError {
  readonly name?: string;
  readonly message?: string;
  readonly cause?: unknown;
  readonly $metadata?: { readonly httpStatusCode?: number };
}

function isAbsent(error: unknown): boolean {
  const { name, $metadata } = error as ServiceError;
  return name === "NoSuchKey" || name === "NotFound" || $metadata?.httpStatusCode === 404;
}

function open(content: Content): Readable {
  return "path" in content ? createReadStream(content.path) : Readable.from(content.pieces());
}

async function collect(stream: Readable): Promise<Uint8Array[]> {
  const parts: Uint8Array[] = [];
  for await (const part of stream) parts.push(part as Uint8Array);
  return parts;
}
