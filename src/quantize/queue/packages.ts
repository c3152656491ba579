/**
 * The clients of queues and object stores, which planish does not install by itself (docs/decisions.md): they are loaded
 * when a command needs them, and whoever lacks them is told what to install.
 */
import type * as S3 from "@aws-sdk/client-s3";
import type * as S3Storage from "@aws-sdk/lib-storage";
import type * as BullMq from "bullmq";
import type { Redis } from "ioredis";
import { PlanishError } from "../../common/errors.js";

/** Redis and jobs. @throws PlanishError saying what to install. */
export async function loadQueuePackages(): Promise<{
  readonly bullmq: typeof BullMq;
  readonly Redis: typeof Redis;
}> {
  return wanted("--queue", "bullmq@6 ioredis@6", async () => ({
    bullmq: await import("bullmq"),
    Redis: (await import("ioredis")).Redis,
  }));
}

/** S3. @throws PlanishError saying what to install. */
export async function loadS3Packages(): Promise<{
  readonly s3: typeof S3;
  readonly storage: typeof S3Storage;
}> {
  return wanted("--store s3://…", "@aws-sdk/client-s3@3 @aws-sdk/lib-storage@3", async () => ({
    s3: await import("@aws-sdk/client-s3"),
    storage: await import("@aws-sdk/lib-storage"),
  }));
}

async function wanted<T>(flag: string, packages: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "ERR_MODULE_NOT_FOUND") throw cause;
    throw new PlanishError(
      `${flag} needs packages that planish does not install by itself; run: npm install ${packages}`,
      { cause },
    );
  }
}
