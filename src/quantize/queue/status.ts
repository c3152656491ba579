/** What a queue knows of runs and workers, for people. */
import type { Queue } from "bullmq";
import { oneLine, quoted } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { jobIdOf } from "./documents.js";
import { loadQueuePackages } from "./packages.js";
import { presentWorkers, type WorkerPresence } from "./presence.js";
import { connectQueue, KEY_PREFIX, type QueueAddress } from "./redis.js";
import { Registry, type RunEntry } from "./registry.js";

export interface RunSummary extends RunEntry {
  readonly run: string;
}

export interface BlockState {
  readonly layer: number;
  /** "not in the queue": not added yet, or done and cleared away. */
  readonly state: "waiting" | "active" | "delayed" | "done" | "failed" | "not in the queue";
  readonly worker?: string;
  readonly attempts: number;
  readonly seconds?: number;
  readonly error?: string;
}

export interface QueueState {
  readonly runs: readonly RunSummary[];
  readonly workers: readonly WorkerPresence[];
}

/** All runs that the queue remembers, latest first, and the workers that are there. */
export async function queueState(address: QueueAddress): Promise<QueueState> {
  const redis = await connectQueue(address);
  try {
    return { runs: await new Registry(redis).all(), workers: await presentWorkers(redis) };
  } finally {
    redis.disconnect();
  }
}

/**
 * One run's blocks; `cancel` takes those back that nobody has begun and stops the others. @throws PlanishError when there is no
 * such run.
 */
export async function runState(
  address: QueueAddress,
  run: string,
  { cancel = false }: { readonly cancel?: boolean } = {},
): Promise<RunSummary & { readonly layers: readonly BlockState[] }> {
  const redis = await connectQueue(address);
  let queue: Queue | undefined;
  try {
    const registry = new Registry(redis);
    const known = await registry.all();
    const found = known.filter((each) => each.run.startsWith(run));
    if (run === "" || found.length !== 1) {
      const ids = known.slice(0, 10).map((each) => each.run);
      throw new PlanishError(
        `${found.length > 1 ? `several runs begin with ${quoted(run)}` : `there is no run ${quoted(run)} on ${address.shown}`}; ${ids.length === 0 ? "the queue knows of none" : `known: ${ids.join(", ")}`}`,
      );
    }
    const entry = found[0];
    const { bullmq } = await loadQueuePackages();
    queue = new bullmq.Queue(entry.queue, { connection: address.options, prefix: KEY_PREFIX });
    queue.on("error", () => undefined);
    if (cancel && entry.state !== "finished") {
      await registry.update(entry.run, { state: "cancelled" });
      await withdraw(queue, entry);
    }
    const layers: BlockState[] = [];
    for (let layer = 0; layer < entry.blocks; layer++)
      layers.push(await blockState(queue, entry.run, layer));
    const now = (await registry.read(entry.run)) ?? entry;
    return { ...now, run: entry.run, layers };
  } finally {
    await queue?.close();
    redis.disconnect();
  }
}

async function withdraw(queue: Queue, { run, blocks }: RunSummary): Promise<void> {
  for (let layer = 0; layer < blocks; layer++) {
    const id = jobIdOf(run, layer);
    const state = await queue.getJobState(id);
    // What is active has a lock; its worker looks at the run now and then.
    if (state !== "active" && state !== "unknown") await queue.remove(id);
  }
}

async function blockState(queue: Queue, run: string, layer: number): Promise<BlockState> {
  const job = await queue.getJob(jobIdOf(run, layer));
  if (!job) return { layer, state: "not in the queue", attempts: 0 };
  const state = await queue.getJobState(String(job.id));
  const { processedOn, finishedOn, processedBy, failedReason } = job;
  return {
    layer,
    state:
      state === "completed"
        ? "done"
        : state === "active" || state === "delayed" || state === "failed"
          ? state
          : "waiting",
    worker: processedBy === undefined ? undefined : oneLine(processedBy, 80),
    attempts: job.attemptsStarted,
    seconds: processedOn && ((finishedOn ?? Date.now()) - processedOn) / 1000,
    error: failedReason ? oneLine(failedReason, 200) : undefined,
  };
}
