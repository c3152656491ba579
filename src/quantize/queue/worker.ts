/**
 * A worker of a queue: takes blocks of runs whose class of device is its own (and of runs that take any), fetches what they
 * need, has them learned in a process beside it, and keeps the results in the store. Locks, retries and the taking over of
 * blocks whose worker fell silent are BullMQ's.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import type { Job, Worker } from "bullmq";
import type { Redis } from "ioredis";
import type { Device } from "../../backend/open.js";
import { InterruptedError, isInterruption, PlanishError } from "../../common/errors.js";
import { formatDuration } from "../../common/format.js";
import { VERSION } from "../../common/version.js";
import type { ProgressSink } from "../../common/progress.js";
import type { Machine } from "../artifact/quantization-info.js";
import { BlobCache } from "./blob-cache.js";
import { BlobStore, DamagedBlobError, type Traffic } from "./blob-store.js";
import {
  blockJobSchema,
  blockRecordSchema,
  descriptionSchema,
  deviceClass,
  opened,
  queueName,
  recordName,
  sealed,
  validated,
  type BlockJobData,
  type BlockRecord,
  type Description,
  type JobOutcome,
} from "./documents.js";
import { Learner, LearnerLostError } from "./learner.js";
import { parseJson } from "../../common/bounds.js";
import { loadQueuePackages } from "./packages.js";
import { connectQueue, KEY_PREFIX, type QueueAddress } from "./redis.js";
import { Registry } from "./registry.js";
import { Presence } from "./presence.js";

/** Milliseconds between looks at whether the run is still wanted. */
const LOOK_EVERY = 2000;
/** Times that a block may be lost with its worker before it counts as the cause. */
export const MOST_LOSSES = 5;

export interface ServeOptions {
  readonly queue: QueueAddress;
  /** A directory, or `s3://bucket/prefix`. */
  readonly store: string;
  readonly device?: Device;
  /** Which of several GPUs. */
  readonly unit?: number;
  readonly threads?: number;
  /** Only runs with this label. */
  readonly label?: string;
  /** End after one block. */
  readonly once?: boolean;
  /** End after so many seconds without work (default: never). */
  readonly idleSeconds?: number;
  /** Seconds of silence after which another worker takes over a block (default 30). */
  readonly takeoverSeconds?: number;
  /** Seconds that a store which is full or away is waited for (default 600). */
  readonly patience?: number;
  /** Where fetched files are kept while they are used (default: the system's temporary directory). */
  readonly scratch?: string;
  readonly progress: ProgressSink;
  /** What happens, for metrics. */
  readonly observe?: (event: WorkerEvent) => void;
  /** Stops the worker; its block goes back to the queue. */
  readonly signal: AbortSignal;
}

export type WorkerEvent =
  | { readonly type: "ready"; readonly machine: Machine }
  | { readonly type: "taken"; readonly run: string; readonly layer: number }
  | {
      readonly type: "done" | "failed" | "returned" | "damaged";
      readonly run: string;
      readonly layer: number;
      readonly seconds: number;
      readonly movingSeconds: number;
    }
  | { readonly type: "traffic"; readonly traffic: Readonly<Traffic> }
  | { readonly type: "connected"; readonly connected: boolean };

export interface ServeSummary {
  readonly machine: Machine;
  readonly blocks: number;
  readonly failed: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

/**
 * Serves blocks until the signal, `once` or `idleSeconds` end it. @throws PlanishError when queue, store or device cannot be
 * used.
 */
export async function serveBlocks(options: ServeOptions): Promise<ServeSummary> {
  const { progress, signal } = options;
  const redis = await connectQueue(options.queue);
  const scratch = mkdtempSync(join(options.scratch ?? tmpdir(), "planish-worker-"));
  const learner = new Learner(options);
  let store: BlobStore | undefined;
  try {
    store = await BlobStore.open(options.store, {
      progress,
      patience: options.patience ?? 600,
      signal,
    });
    const { machine, description } = await learner.open();
    progress.note(`worker ${workerName()}: ${description}`);
    const server = new Server(options, redis, store, learner, machine, scratch);
    return await server.run();
  } finally {
    learner.close();
    store?.close();
    redis.disconnect();
    rmSync(scratch, { recursive: true, force: true });
  }
}

const ID = `${process.pid}-${randomBytes(2).toString("hex")}`;

/** Host and process, as logs and `planish jobs` show it. */
function workerName(): string {
  return `${hostname()}-${ID}`;
}

class Server {
  private readonly registry: Registry;
  private readonly cache: BlobCache;
  private readonly presence: Presence;
  private readonly stop = new AbortController();
  private workers: Worker[] = [];
  /** One block at a time, whichever queue it came from. */
  private turn: Promise<unknown> = Promise.resolve();
  private blocks = 0;
  private failed = 0;
  private idleSince = performance.now();
  private busy = false;

  constructor(
    private readonly options: ServeOptions,
    redis: Redis,
    private readonly store: BlobStore,
    private readonly learner: Learner,
    private readonly machine: Machine,
    scratch: string,
  ) {
    this.registry = new Registry(redis);
    this.cache = new BlobCache(store, scratch);
    this.presence = new Presence(redis, workerName(), {
      machine: deviceClass(machine),
      label: options.label ?? "",
      version: VERSION,
    });
  }

  async run(): Promise<ServeSummary> {
    const { signal, label, progress, observe } = this.options;
    const { bullmq } = await loadQueuePackages();
    const takeover = 1000 * (this.options.takeoverSeconds ?? 30);
    const queues = [queueName(this.machine, label), queueName("any", label)];
    await this.presence.tell({});
    const heartbeat = setInterval(() => void this.presence.tell({}).catch(() => undefined), 10_000);
    for (const name of queues) {
      const worker: Worker<unknown, JobOutcome> = new bullmq.Worker(
        name,
        (job: Job<unknown, JobOutcome>) => this.inTurn(worker, () => this.process(job)),
        {
          connection: this.options.queue.options,
          prefix: KEY_PREFIX,
          name: workerName(),
          lockDuration: takeover,
          stalledInterval: takeover,
          maxStalledCount: MOST_LOSSES,
        },
      );
      worker.on("error", (error) => this.lost(error));
      worker.on("ready", () => observe?.({ type: "connected", connected: true }));
      this.workers.push(worker);
    }
    observe?.({ type: "ready", machine: this.machine });
    progress.note(
      `serving blocks for ${deviceClass(this.machine)}${label === undefined ? "" : `, label ${label}`}, from ${this.options.queue.shown}, with ${this.store.name}`,
    );
    const stopped = AbortSignal.any([signal, this.stop.signal]);
    const idle = setInterval(() => this.lookIdle(), 250);
    await new Promise<void>((resolve) => {
      if (stopped.aborted) resolve();
      else stopped.addEventListener("abort", () => resolve(), { once: true });
    });
    clearInterval(idle);
    await Promise.all(this.workers.map((worker) => worker.close()));
    clearInterval(heartbeat);
    await this.presence.leave().catch(() => undefined);
    const { read, written } = this.store.traffic;
    return {
      machine: this.machine,
      blocks: this.blocks,
      failed: this.failed,
      bytesRead: read,
      bytesWritten: written,
    };
  }

  private lookIdle(): void {
    const { idleSeconds } = this.options;
    if (idleSeconds === undefined || this.busy) return;
    if (performance.now() - this.idleSince > 1000 * idleSeconds) this.stop.abort();
  }

  private told = "";

  /** Says once that the queue is away; BullMQ connects again by itself. */
  private lost(error: Error): void {
    this.options.observe?.({ type: "connected", connected: false });
    const reason = error.message || error.name;
    if (reason === this.told || this.stop.signal.aborted || this.options.signal.aborted) return;
    this.told = reason;
    this.options.progress.warn(`queue ${this.options.queue.shown}: ${reason}`);
  }

  private inTurn<T>(worker: Worker, work: () => Promise<T>): Promise<T> {
    // The other queue's blocks are left to others meanwhile.
    const others = this.workers.filter((each) => each !== worker);
    const next = this.turn.then(async () => {
      for (const other of others) await other.pause(true);
      this.busy = true;
      try {
        return await work();
      } finally {
        this.busy = false;
        this.idleSince = performance.now();
        for (const other of others) void other.resume();
        if (this.options.once) this.stop.abort();
      }
    });
    this.turn = next.catch(() => undefined);
    return next;
  }

  private async process(job: Job<unknown, JobOutcome>): Promise<JobOutcome> {
    const { bullmq } = await loadQueuePackages();
    const { progress, observe, signal } = this.options;
    const began = performance.now();
    const seconds = (): number => (performance.now() - began) / 1000;
    let data: BlockJobData;
    try {
      data = validated(blockJobSchema, job.data, `job ${String(job.id).slice(0, 40)}`);
    } catch (error) {
      progress.warn(`refused: ${(error as Error).message}`);
      throw new bullmq.UnrecoverableError((error as Error).message);
    }
    const { run, layer } = data;
    const name = `run ${run}, block ${layer}`;
    const moved = this.store.traffic.seconds;
    const end = (type: Extract<WorkerEvent, { seconds: number }>["type"]): void =>
      observe?.({
        type,
        run,
        layer,
        seconds: seconds(),
        movingSeconds: this.store.traffic.seconds - moved,
      });
    observe?.({ type: "taken", run, layer });
    await this.presence.tell({ run, block: String(layer) }).catch(() => undefined);
    try {
      const record = await this.done(data);
      if (record) {
        progress.note(`${name}: was done already by ${record.worker}`);
        end("done");
        return { outcome: "done", seconds: record.seconds };
      }
      progress.note(
        `${name}: begun${job.attemptsStarted > 1 ? `, attempt ${job.attemptsStarted}` : ""}`,
      );
      await this.calibrate(job, data, began);
      this.blocks++;
      progress.note(`${name}: done in ${formatDuration(seconds())}`);
      end("done");
      return { outcome: "done", seconds: seconds() };
    } catch (error) {
      if (error instanceof DamagedBlobError) {
        progress.warn(`${name}: ${error.message}`);
        end("damaged");
        return { outcome: "damaged", sha256: error.sha256 };
      }
      if (signal.aborted && isInterruption(error)) {
        await job.moveToWait(job.token);
        progress.note(`${name}: given back to the queue`);
        end("returned");
        throw new bullmq.WaitingError();
      }
      this.failed++;
      const message = error instanceof Error ? error.message : String(error);
      progress.warn(`${name}: ${message}`);
      end("failed");
      // What is wrong with the run itself is wrong on every worker; a lost process, or a store that is away, is not.
      const passing =
        !(error instanceof PlanishError) || error instanceof LearnerLostError || error.resumable;
      if (passing) throw error;
      throw new bullmq.UnrecoverableError(message);
    } finally {
      observe?.({ type: "traffic", traffic: this.store.traffic });
      await this.presence.tell({ run: "", block: "" }).catch(() => undefined);
    }
  }

  /** The block's record, if another worker has finished it and all of it is there. */
  private async done({ run, layer }: BlockJobData): Promise<BlockRecord | undefined> {
    const text = await this.store.readRecord(run, recordName(layer));
    if (text === undefined) return undefined;
    try {
      const record = opened(blockRecordSchema, text, `the record of block ${layer}`);
      return (await this.store.holds(record.parameters)) ? record : undefined;
    } catch (error) {
      if (error instanceof PlanishError) return undefined;
      throw error;
    }
  }

  private async describe(data: BlockJobData): Promise<Description> {
    const text = await this.store.fetchText(data.description);
    const run = `run ${data.run}`;
    const description = validated(descriptionSchema, parseJson(text, run), run);
    if (description.planishVersion !== VERSION)
      throw new PlanishError(
        `${run} is of Planish ${description.planishVersion}, and this worker is ${VERSION}; use one version for both`,
      );
    const [wanted, have] = [deviceClass(description.machine), deviceClass(this.machine)];
    if (!description.mixed && wanted !== have)
      throw new PlanishError(
        `${run} is computed on ${wanted}, and this worker has ${have}; --mix lets a run take both`,
      );
    return description;
  }

  private async calibrate(
    job: Job<unknown, JobOutcome>,
    data: BlockJobData,
    began: number,
  ): Promise<void> {
    const { run, layer, from } = data;
    const moved = this.store.traffic.seconds;
    await this.describe(data);
    await this.cache.keepOnly([data.description, data.states, ...data.weights]);
    const files = {
      description: await this.cache.file(data.description),
      states: await this.cache.file(data.states),
      weights: await Promise.all(data.weights.map((record) => this.cache.file(record))),
      parameters: this.cache.path("parameters.safetensors"),
    };
    const cancelled = new AbortController();
    const watch = setInterval(() => {
      void this.registry.isCancelled(run).then(
        (is) => is && cancelled.abort(),
        () => undefined,
      );
    }, LOOK_EVERY);
    try {
      const report = await this.learner.calibrate(
        files,
        { from, layer },
        (steps) => void job.updateProgress(steps).catch(() => undefined),
        AbortSignal.any([this.options.signal, cancelled.signal]),
      );
      const parameters = await this.store.keepFile(run, files.parameters);
      const record: BlockRecord = {
        parameters,
        report,
        machine: this.machine,
        worker: workerName(),
        seconds: (performance.now() - began) / 1000,
        movingSeconds: this.store.traffic.seconds - moved,
      };
      await this.store.keepRecord(run, recordName(layer), sealed(record));
    } catch (error) {
      if (cancelled.signal.aborted && isInterruption(error))
        throw new PlanishError("the run was cancelled");
      throw error instanceof InterruptedError ? error : (error as Error);
    } finally {
      clearInterval(watch);
      rmSync(files.parameters, { force: true });
    }
  }
}
