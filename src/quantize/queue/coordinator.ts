/**
 * The process of a run whose blocks are learned by the workers of a queue. It computes the full-precision states from block to
 * block, keeps them with the weights in the store, adds a job for each block, and brings what comes back into the run's
 * journal, which stays the truth: jobs that the queue has lost are added again, bytes that the store has lost are made again, and
 * whoever starts the run again goes on from what is there.
 */
import { hostname } from "node:os";
import { rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Queue, QueueEvents } from "bullmq";
import type { Redis } from "ioredis";
import { InterruptedError, PlanishError } from "../../common/errors.js";
import { oneLine } from "../../common/bounds.js";
import { silentProgress, type ProgressTask } from "../../common/progress.js";
import { finiteJson } from "../../common/ratio.js";
import type { TokenWindows } from "../schema/windows.js";
import { blockLine } from "../run/block-unit.js";
import { readParameters } from "../run/journal.js";
import type { RemoteBlocks, RemoteJob } from "../run/remote.js";
import { BlobStore, DamagedBlobError } from "./blob-store.js";
import {
  blockRecordSchema,
  deviceClass,
  jobIdOf,
  opened,
  outcomeSchema,
  queueName,
  recordName,
  runIdOf,
  type Description,
} from "./documents.js";
import { loadQueuePackages } from "./packages.js";
import { presentWorkers } from "./presence.js";
import { Producer } from "./producer.js";
import { connectQueue, KEY_PREFIX, type QueueAddress } from "./redis.js";
import { Registry } from "./registry.js";

export interface QueueOptions {
  readonly queue: QueueAddress;
  /** A directory, or `s3://bucket/prefix`. */
  readonly store: string;
  /** Only workers with this label. */
  readonly label?: string;
  /** Take workers of every class of device; the artifact says which did what. */
  readonly mixed?: boolean;
  /** Keep the states of every n-th block (default: by the measured cost of keeping and of computing them). */
  readonly statesEvery?: number;
  /** Seconds that a store which is full or away is waited for (default 600). */
  readonly patience?: number;
}

/** Milliseconds between looks at all jobs, beside what the queue tells by itself. */
const LOOK_EVERY = 1000;
/** Times that one block's data or result may be found damaged. */
const MOST_DAMAGE = 6;
/** Attempts of a block that fails for a passing reason. */
const ATTEMPTS = 4;
/** Milliseconds without workers after which that is told. */
const LONELY_AFTER = 5000;

/** Blocks by the workers of a queue, for `quantize`'s `remote`. */
export function queueBlocks(options: QueueOptions): RemoteBlocks {
  return {
    async ready() {
      (await connectQueue(options.queue)).disconnect();
      const store = await BlobStore.open(options.store, { progress: silentProgress, patience: 0 });
      store.close();
    },
    async calibrate(job, windows) {
      const { config, journal } = job;
      const missing = Array.from({ length: config.numLayers }, (_, l) => l).filter(
        (l) => !journal.hasBlock(l),
      );
      if (missing.length === 0) return;
      const { bullmq } = await loadQueuePackages();
      const redis = await connectQueue(options.queue);
      const stopping = new AbortController();
      const signal = job.signal ? AbortSignal.any([job.signal, stopping.signal]) : stopping.signal;
      let queue: Queue | undefined;
      let events: QueueEvents | undefined;
      let store: BlobStore | undefined;
      try {
        const { progress } = job;
        store = await BlobStore.open(options.store, {
          progress,
          patience: options.patience ?? 600,
          signal,
        });
        const name = queueName(options.mixed ? "any" : machineOf(job), options.label);
        const shared = { connection: options.queue.options, prefix: KEY_PREFIX };
        queue = new bullmq.Queue(name, shared);
        events = new bullmq.QueueEvents(name, shared);
        // Connections that break are made again; what matters is looked up, not only heard of.
        queue.on("error", () => undefined);
        events.on("error", () => undefined);
        await events.waitUntilReady();
        await new Coordinator(options, job, redis, queue, events, store, signal).run(
          windows,
          missing,
        );
      } finally {
        stopping.abort();
        await Promise.allSettled([queue?.close(), events?.close()]);
        store?.close();
        redis.disconnect();
      }
    },
  };
}

function machineOf({ settings }: RemoteJob) {
  if (!settings.machine) throw new Error("a run without a machine");
  return settings.machine;
}

class Coordinator {
  private readonly id: string;
  private readonly registry: Registry;
  private readonly pending = new Set<number>();
  /** Blocks whose jobs have to be added, their states and weights first. */
  private readonly wanted = new Set<number>();
  /** Blocks whose jobs are in the queue. */
  private readonly queued = new Set<number>();
  private readonly damage = new Map<number, number>();
  private readonly steps = new Map<number, number>();
  private readonly task: ProgressTask;
  private wake: () => void = () => undefined;
  private producer: Producer | undefined;
  private description = "";
  private workers = 1;
  private lonelySince: number | undefined;
  private toldLonely = false;

  constructor(
    private readonly options: QueueOptions,
    private readonly job: RemoteJob,
    private readonly redis: Redis,
    private readonly queue: Queue,
    private readonly events: QueueEvents,
    private readonly store: BlobStore,
    private readonly signal: AbortSignal,
  ) {
    this.id = runIdOf(job.settings, options.mixed ?? false);
    this.registry = new Registry(redis);
    this.task = job.progress.task("calibrating", job.config.numLayers * job.stepsPerBlock);
  }

  async run(windows: TokenWindows, missing: readonly number[]): Promise<void> {
    const { job, queue } = this;
    for (const layer of missing) this.pending.add(layer);
    this.task.advance((job.config.numLayers - missing.length) * job.stepsPerBlock);
    await this.register();
    job.progress.note(
      `run ${this.id}: ${missing.length} of ${job.config.numLayers} blocks for ${this.options.mixed ? "any device" : deviceClass(machineOf(job))}, queue ${this.options.queue.shown}, store ${this.store.name}`,
    );
    this.description = finiteJson(this.describe(windows));
    const producer = (this.producer = new Producer({
      job,
      windows,
      store: this.store,
      run: this.id,
      description: await this.store.keepText(this.id, this.description),
      statesEvery: this.options.statesEvery,
      signal: this.signal,
      room: () => this.room(),
      enqueue: async (layer, data) => {
        await queue.add(recordName(layer), data, {
          jobId: jobIdOf(this.id, layer),
          attempts: ATTEMPTS,
          backoff: { type: "exponential", delay: 1000 },
        });
        this.queued.add(layer);
        this.wanted.delete(layer);
      },
    }));
    this.listen();
    try {
      await this.takeUp(missing);
      await this.follow(producer);
      await this.clearAway(producer);
    } catch (error) {
      // Nobody shall begin with what this run will not take; whoever is at it ends, and is found by the next start.
      const stopped = error instanceof InterruptedError;
      if (!stopped) await this.withdraw().catch(() => undefined);
      const cancelled = await this.registry.isCancelled(this.id).catch(() => false);
      if (!cancelled)
        await this.registry
          .update(this.id, {
            state: stopped ? "stopped" : "failed",
            error: stopped ? undefined : oneLine((error as Error).message, 400),
          })
          .catch(() => undefined);
      throw error;
    } finally {
      this.task.done();
      await producer.stop();
    }
  }

  private describe({ samples, time }: TokenWindows): Description {
    const { settings, source, scheme } = this.job;
    return {
      planishVersion: settings.planishVersion,
      model: settings.source.name.slice(0, 200),
      method: settings.method,
      scheme: settings.scheme,
      queryBits: scheme.queryBits ?? 16,
      recipe: settings.recipe,
      seed: settings.seed,
      config: source.config,
      samples,
      time,
      machine: machineOf(this.job),
      mixed: this.options.mixed ?? false,
    };
  }

  private async register(): Promise<void> {
    const { settings, config } = this.job;
    await this.redis.hdel(`${KEY_PREFIX}:run:${this.id}`, "error");
    await this.registry.update(this.id, {
      model: settings.source.name.slice(0, 200),
      method: settings.method,
      scheme: settings.scheme,
      blocks: config.numLayers,
      done: config.numLayers - this.pending.size,
      queue: this.queue.name,
      machine: this.options.mixed ? "any" : deviceClass(machineOf(this.job)),
      store: this.store.name,
      host: `${hostname()}-${process.pid}`,
      state: "running",
      began: Date.now(),
    });
  }

  private listen(): void {
    const layerOf = (jobId: string): number | undefined => {
      if (!jobId.startsWith(`${this.id}-`)) return undefined;
      return Number(jobId.slice(this.id.length + 1));
    };
    const look = ({ jobId }: { jobId: string }): void => {
      if (layerOf(jobId) !== undefined) this.wake();
    };
    this.events.on("completed", look);
    this.events.on("failed", look);
    this.events.on("progress", ({ jobId, data }) => {
      const layer = layerOf(jobId);
      if (layer === undefined || typeof data !== "number") return;
      this.advance(layer, data);
    });
  }

  /** Progress of a block in steps; a block that is begun again does not go backwards. */
  private advance(layer: number, steps: number): void {
    const before = this.steps.get(layer) ?? 0;
    const now = Math.min(Math.max(before, steps), this.job.stepsPerBlock);
    this.steps.set(layer, now);
    if (now > before) this.task.advance(now - before);
  }

  /** What an earlier process of this run has left in store and queue. */
  private async takeUp(missing: readonly number[]): Promise<void> {
    for (const layer of missing) {
      const id = jobIdOf(this.id, layer);
      if (await this.collect(layer)) continue;
      const state = await this.queue.getJobState(id);
      if (state === "failed" || state === "completed") await this.queue.remove(id);
      if (["waiting", "active", "delayed", "prioritized"].includes(state)) this.queued.add(layer);
      else this.wanted.add(layer);
    }
  }

  /** How many more blocks may wait for workers: enough for all to have one and the next, so that the store stays small. */
  private room(): number {
    const waiting = [...this.queued].filter((layer) => this.pending.has(layer)).length;
    return 2 * this.workers + 2 - waiting;
  }

  private async follow(producer: Producer): Promise<void> {
    let failure: unknown;
    let looked = 0;
    while (this.pending.size > 0) {
      if (this.job.signal?.aborted) throw new InterruptedError("stopped while calibrating");
      if (failure !== undefined) throw failure as Error;
      if (this.wanted.size > 0)
        producer.start(this.wanted, (error: unknown) => {
          failure = error;
          this.wake();
        });
      const woken = new Promise<void>((resolve) => (this.wake = resolve));
      await this.look();
      producer.go();
      if (performance.now() - looked > LONELY_AFTER / 2) {
        looked = performance.now();
        await this.lookAround();
      }
      if (this.pending.size === 0) break;
      const waiting = new AbortController();
      await Promise.race([
        woken,
        sleep(LOOK_EVERY, undefined, {
          signal: AbortSignal.any([waiting.signal, this.signal]),
        }).catch(() => undefined),
      ]);
      waiting.abort();
    }
  }

  /** Looks at the jobs that are out. */
  private async look(): Promise<void> {
    for (const layer of [...this.queued]) {
      if (!this.pending.has(layer)) continue;
      const id = jobIdOf(this.id, layer);
      const state = await this.queue.getJobState(id);
      if (state === "completed") await this.completed(layer, id);
      else if (state === "failed") await this.failed(layer, id);
      else if (state === "unknown" && !(await this.collect(layer))) {
        this.job.progress.warn(`block ${layer}: the queue has lost its job; it is added again`);
        this.queued.delete(layer);
        this.wanted.add(layer);
      }
    }
  }

  private async completed(layer: number, id: string): Promise<void> {
    const found: unknown = (await this.queue.getJob(id))?.returnvalue;
    const result = outcomeSchema.safeParse(found);
    if (result.success && result.data.outcome === "damaged")
      await this.repair(layer, result.data.sha256, `its data were damaged`);
    else if (!(await this.collect(layer)))
      await this.repair(layer, undefined, "its result is gone");
  }

  private async failed(layer: number, id: string): Promise<void> {
    const job = await this.queue.getJob(id);
    const reason = oneLine(job?.failedReason ?? "no reason is known", 300);
    const who = job?.processedBy === undefined ? "" : ` on ${oneLine(job.processedBy, 80)}`;
    const lost = /stalled/.test(reason)
      ? `block ${layer} was lost with its worker again and again (last${who}): see that workers have memory enough`
      : `block ${layer} failed${who}: ${reason}`;
    throw new PlanishError(`run ${this.id}: ${lost}`, { resumable: true });
  }

  /** Has a block done again, after bytes that it needs or has left were found damaged. */
  private async repair(layer: number, sha256: string | undefined, what: string): Promise<void> {
    const times = (this.damage.get(layer) ?? 0) + 1;
    this.damage.set(layer, times);
    if (times > MOST_DAMAGE)
      throw new PlanishError(
        `run ${this.id}, block ${layer}: ${what}, ${times} times; see that all workers use the store ${this.store.name}, and look at the disks and the network behind it`,
        { resumable: true },
      );
    this.job.progress.warn(`block ${layer}: ${what}; they are made again`);
    if (sha256 !== undefined) await this.store.discard(sha256);
    // The producer makes states and weights again, and not this.
    await this.store.keepText(this.id, this.description);
    await this.queue.remove(jobIdOf(this.id, layer));
    this.queued.delete(layer);
    this.wanted.add(layer);
  }

  /** Brings a block that is finished into the journal; false when it is not there, or damaged. */
  private async collect(layer: number): Promise<boolean> {
    const { job, store } = this;
    const text = await store.readRecord(this.id, recordName(layer));
    if (text === undefined) return false;
    const file = job.journal.passingFile(layer, "fetched");
    let parametersHash: string | undefined;
    try {
      const record = opened(blockRecordSchema, text, `the record of block ${layer}`);
      parametersHash = record.parameters.sha256;
      if (!this.options.mixed && deviceClass(record.machine) !== deviceClass(machineOf(job)))
        throw new PlanishError(`block ${layer} was done on ${deviceClass(record.machine)}`);
      await store.fetchFile(record.parameters, file);
      const parameters = readParameters(file);
      const machine = this.options.mixed ? { machine: record.machine } : {};
      await job.journal.keepBlock(layer, parameters, { ...record.report, ...machine });
      job.progress.note(blockLine(layer, record.report));
    } catch (error) {
      if (!(error instanceof PlanishError) || error.resumable || error instanceof InterruptedError)
        throw error;
      job.progress.warn(`block ${layer}: ${error.message}; it is done again`);
      await store.removeRecord(this.id, recordName(layer));
      if (parametersHash !== undefined && error instanceof DamagedBlobError)
        await store.discard(parametersHash);
      return false;
    } finally {
      rmSync(file, { force: true });
    }
    this.results.push(parametersHash);
    this.pending.delete(layer);
    this.queued.delete(layer);
    this.wanted.delete(layer);
    this.advance(layer, job.stepsPerBlock);
    await this.producer?.finished(this.pending);
    await this.registry
      .update(this.id, { done: job.config.numLayers - this.pending.size })
      .catch(() => undefined);
    return true;
  }
  private readonly results: string[] = [];

  /** Workers, and whether the run is still wanted. */
  private async lookAround(): Promise<void> {
    if (await this.registry.isCancelled(this.id))
      throw new PlanishError(`run ${this.id} was cancelled (planish jobs --cancel)`, {
        resumable: true,
      });
    this.workers = Math.max(1, await this.queue.getWorkersCount());
    const none = (await this.queue.getWorkersCount()) === 0;
    if (!none) {
      this.lonelySince = undefined;
      this.toldLonely = false;
      return;
    }
    this.lonelySince ??= performance.now();
    if (this.toldLonely || performance.now() - this.lonelySince < LONELY_AFTER) return;
    this.toldLonely = true;
    this.job.progress.warn(await this.lonely());
  }

  private async lonely(): Promise<string> {
    const { label, queue, mixed } = this.options;
    const { device, threads } = machineOf(this.job);
    const flags = [
      `--device ${device}`,
      ...(threads === undefined ? [] : [`--threads ${threads}`]),
      ...(label === undefined ? [] : [`--label ${label}`]),
    ];
    const others = [
      ...new Set(
        (await presentWorkers(this.redis)).map(
          (each) => each.machine + (each.label ? ` (label ${each.label})` : ""),
        ),
      ),
    ];
    const there =
      others.length === 0 ? "" : `; those that are there have ${others.slice(0, 5).join(" and ")}`;
    return (
      `no worker serves this run, which is for ${mixed ? "any device" : deviceClass(machineOf(this.job))}${there}; start one with: ` +
      `planish worker --queue ${queue.shown} --store ${this.store.name} ${flags.join(" ")}`
    );
  }

  /** Takes back the jobs that nobody has begun. */
  private async withdraw(): Promise<void> {
    for (const layer of this.queued) {
      const id = jobIdOf(this.id, layer);
      if ((await this.queue.getJobState(id)) === "active") continue;
      await this.queue.remove(id).catch(() => undefined);
    }
  }

  /** Removes what the run has in queue and store: the journal has all of it. */
  private async clearAway(producer: Producer): Promise<void> {
    await producer.settled();
    for (let layer = 0; layer < this.job.config.numLayers; layer++)
      await this.queue.remove(jobIdOf(this.id, layer)).catch(() => undefined);
    await this.store.releaseRun(this.id, [...producer.blobs(), ...this.results]);
    await this.registry.update(this.id, { state: "finished" });
    const { written, read, seconds } = this.store.traffic;
    this.job.progress.note(
      `run ${this.id}: ${written} bytes written to the store and ${read} read by this process, in ${seconds.toFixed(1)} s`,
    );
  }
}
