/** The runs that a queue knows of, for `planish jobs`: a hash for each in Redis. The journal and the store are the truth. */
import type { Redis } from "ioredis";
import { z } from "zod";
import { KEY_PREFIX } from "./redis.js";

/** Seconds that a run stays listed after it was last heard of. */
const KEPT_SECONDS = 30 * 24 * 3600;

const text = z.string().max(500);
export const runEntrySchema = z.object({
  model: text,
  method: text,
  scheme: text,
  blocks: z.coerce.number().int().min(0).max(1e5),
  /** Blocks that are in the run's journal. */
  done: z.coerce.number().int().min(0).max(1e5),
  /** Where its jobs are. */
  queue: text,
  machine: text,
  store: text,
  host: text,
  state: z.enum(["running", "stopped", "failed", "cancelled", "finished"]),
  error: text.optional(),
  /** Milliseconds since 1970. */
  began: z.coerce.number(),
  updated: z.coerce.number(),
});
export type RunEntry = z.infer<typeof runEntrySchema>;

const RUNS = `${KEY_PREFIX}:runs`;

function runKey(run: string): string {
  return `${KEY_PREFIX}:run:${run}`;
}

export class Registry {
  constructor(private readonly redis: Redis) {}

  async update(run: string, entry: Partial<RunEntry>): Promise<void> {
    const values = { ...entry, updated: Date.now() };
    const fields = Object.entries(values).flatMap(([key, value]) =>
      value === undefined ? [] : [key, String(value)],
    );
    await this.redis
      .multi()
      .sadd(RUNS, run)
      .hset(runKey(run), ...fields)
      .expire(runKey(run), KEPT_SECONDS)
      .exec();
  }

  /** Undefined when there is no such run, or what is kept of it is nothing of ours. */
  async read(run: string): Promise<RunEntry | undefined> {
    const result = runEntrySchema.safeParse(await this.redis.hgetall(runKey(run)));
    return result.success ? result.data : undefined;
  }

  async isCancelled(run: string): Promise<boolean> {
    return (await this.redis.hget(runKey(run), "state")) === "cancelled";
  }

  /** By id, latest first; what has expired is forgotten. */
  async all(): Promise<(RunEntry & { readonly run: string })[]> {
    const found: (RunEntry & { readonly run: string })[] = [];
    for (const run of await this.redis.smembers(RUNS)) {
      const entry = await this.read(run);
      if (entry) found.push({ run, ...entry });
      else await this.redis.srem(RUNS, run);
    }
    return found.sort((a, b) => b.began - a.began);
  }
}
