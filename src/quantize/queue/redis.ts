/**
 * Where the queue is: an address, and passwords from the environment only, since everybody on a machine sees the arguments
 * of its processes.
 */
import { isIP } from "node:net";
import type { RedisOptions } from "bullmq";
import type { Redis } from "ioredis";
import { oneLine, quoted } from "../../common/bounds.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { loadQueuePackages } from "./packages.js";

export interface QueueAddress {
  /** For messages: without password. */
  readonly shown: string;
  /** For BullMQ and ioredis alike. */
  readonly options: RedisOptions;
}

/** BullMQ's keys, and ours. */
export const KEY_PREFIX = "planish";

/** BullMQ needs what 6.2 brought. */
const OLDEST = [6, 2] as const;

/**
 * Reads `redis://host:6379/0`, or `rediss://…` for TLS. Without an address PLANISH_QUEUE has it, and that may hold user and
 * password; else these are in PLANISH_QUEUE_USER and PLANISH_QUEUE_PASSWORD.
 * @throws UsageError saying what is wrong with it.
 */
export function queueAddress(
  given: string | undefined,
  env: NodeJS.ProcessEnv = process.env,
): QueueAddress {
  const text = given ?? env.PLANISH_QUEUE;
  if (!text)
    throw new UsageError(
      "no queue is given; write --queue redis://host:6379, or set the environment variable PLANISH_QUEUE",
    );
  const form = "write one like redis://host:6379, or rediss://host:6379 for TLS";
  const what = given === undefined ? "PLANISH_QUEUE" : `--queue ${quoted(withoutPassword(text))}`;
  if (!URL.canParse(text)) throw new UsageError(`${what} is no address of a queue; ${form}`);
  const url = new URL(text);
  const database = /^\/?(\d{0,4})\/?$/.exec(url.pathname)?.[1];
  if (!["redis:", "rediss:"].includes(url.protocol) || !url.hostname || database === undefined)
    throw new UsageError(`${what} is no address of a queue; ${form}`);
  if (given !== undefined && url.password)
    throw new UsageError(
      `${what}: a password among the arguments is seen by everybody on this machine; give it in the environment variable PLANISH_QUEUE_PASSWORD, or the whole address in PLANISH_QUEUE`,
    );
  const username = decodeURIComponent(url.username) || env.PLANISH_QUEUE_USER;
  const password = decodeURIComponent(url.password) || env.PLANISH_QUEUE_PASSWORD;
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? 6379 : Number(url.port);
  return {
    shown: `${url.protocol}//${url.hostname}:${port}${database ? `/${database}` : ""}`,
    options: {
      host,
      port,
      db: Number(database || 0),
      ...(username && { username }),
      ...(password && { password }),
      // Certificates of an authority of one's own: NODE_EXTRA_CA_CERTS.
      ...(url.protocol === "rediss:" && { tls: isIP(host) ? {} : { servername: host } }),
      connectTimeout: 5000,
      // Commands wait while the server is away.
      maxRetriesPerRequest: null,
      retryStrategy: (times: number) => Math.min(100 * times, 3000),
    },
  };
}

function withoutPassword(text: string): string {
  return text.replace(/(:\/\/[^:@/]*):[^@]*@/, "$1:***@");
}

/** A connection that was tried. @throws PlanishError when nobody answers, or not what is needed. */
export async function connectQueue({ shown, options }: QueueAddress): Promise<Redis> {
  const { Redis } = await loadQueuePackages();
  let first: Error | undefined;
  const probe = new Redis({ ...options, lazyConnect: true, retryStrategy: () => null });
  probe.on("error", (error: Error) => (first ??= error));
  try {
    await probe.connect();
    const version = /redis_version:(\d+)\.(\d+)/.exec(await probe.info("server"));
    if (version && (Number(version[1]) - OLDEST[0] || Number(version[2]) - OLDEST[1]) < 0)
      throw new Error(
        `it is version ${version[1]}.${version[2]}, and ${OLDEST.join(".")} or later is needed`,
      );
  } catch (error) {
    const reason = first ?? (error as Error);
    const code = (reason as NodeJS.ErrnoException).code;
    const said = code === "ECONNREFUSED" ? "nobody answers there" : oneLine(reason.message, 200);
    const advice = /WRONGPASS|NOAUTH/.test(said)
      ? "give its user and password in PLANISH_QUEUE_USER and PLANISH_QUEUE_PASSWORD"
      : /certificate/.test(said)
        ? "give its authority's certificate in NODE_EXTRA_CA_CERTS"
        : "start Redis or Valkey there, or give another --queue";
    throw new PlanishError(`the queue at ${shown} cannot be used: ${said}; ${advice}`, {
      cause: error,
      resumable: true,
    });
  } finally {
    probe.disconnect();
  }
  return new Redis({ ...options });
}
