/** Which workers are there: a key for each in Redis that expires when its worker falls silent. */
import type { Redis } from "ioredis";
import { z } from "zod";
import { KEY_PREFIX } from "./redis.js";

/** Seconds without a sign of life after which a worker is not listed any more. */
const EXPIRES_SECONDS = 45;
const text = z.string().max(200);

export const presenceSchema = z.object({
  name: text,
  machine: text,
  label: text,
  version: text,
  /** What it works on; empty when it waits. */
  run: text.default(""),
  block: text.default(""),
  /** Milliseconds since 1970. */
  since: z.coerce.number(),
});
export type WorkerPresence = z.infer<typeof presenceSchema>;

const PATTERN = `${KEY_PREFIX}:worker:`;

export class Presence {
  private readonly key: string;

  constructor(
    private readonly redis: Redis,
    private readonly name: string,
    private readonly fixed: Readonly<Record<"machine" | "label" | "version", string>>,
  ) {
    this.key = PATTERN + name;
  }

  async tell(now: { readonly run?: string; readonly block?: string }): Promise<void> {
    const since = now.run === undefined ? {} : { since: String(Date.now()) };
    await this.redis
      .multi()
      .hsetnx(this.key, "since", String(Date.now()))
      .hset(this.key, { name: this.name, ...this.fixed, ...now, ...since })
      .expire(this.key, EXPIRES_SECONDS)
      .exec();
  }

  async leave(): Promise<void> {
    await this.redis.del(this.key);
  }
}

/** Workers that are there, by name. */
export async function presentWorkers(redis: Redis): Promise<WorkerPresence[]> {
  const found: WorkerPresence[] = [];
  for await (const keys of redis.scanStream({ match: `${PATTERN}*`, count: 100 }))
    for (const key of keys as string[]) {
      const result = presenceSchema.safeParse(await redis.hgetall(key));
      if (result.success) found.push(result.data);
    }
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}
