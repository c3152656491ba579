/**
 * Makes what blocks need: full-precision states on their way from block to block, of which every k-th are kept in the store, and
 * the weights. Goes on only as far as there is room: what waits for workers takes room in the store.
 */
import { rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { InterruptedError } from "../../common/errors.js";
import { fileRecordSchema, type FileRecord } from "../../checkpoint/file-record.js";
import { freeBlock, readBlock, uploadBlock, type HostBlock } from "../../models/weights.js";
import { stateWidth } from "../../models/config.js";
import { Prefix } from "../calibration/prefix.js";
import type { RemoteJob } from "../run/remote.js";
import type { Activations, TokenWindows } from "../schema/windows.js";
import type { BlobStore } from "./blob-store.js";
import { writeBlock } from "./block-files.js";
import { opened, sealed, type BlockJobData } from "./documents.js";

/** Blocks whose states are computed again at most: beyond that a lost worker costs too much. */
const LARGEST_STRIDE = 8;

export interface ProducerOptions {
  readonly job: RemoteJob;
  readonly windows: TokenWindows;
  readonly store: BlobStore;
  readonly run: string;
  readonly description: FileRecord;
  /** Absent: chosen from what keeping and computing states cost. */
  readonly statesEvery?: number;
  readonly signal: AbortSignal;
  /** Blocks that may still be added. */
  readonly room: () => number;
  readonly enqueue: (layer: number, data: BlockJobData) => Promise<void>;
}

/**
 * Every how many blocks states are kept. Keeping costs the run's process `keep` seconds for each that is kept, so keep/k a block;
 * with k, a worker runs (k − 1)/2 blocks more on average, each `compute` seconds with the fetching of its weights. The sum
 * is least at k = √(2·keep/compute).
 */
export function stride(keepSeconds: number, computeSeconds: number): number {
  const best = Math.round(Math.sqrt((2 * keepSeconds) / Math.max(computeSeconds, 1e-6)));
  return Math.min(Math.max(best, 1), LARGEST_STRIDE);
}

export class Producer {
  private running: Promise<void> | undefined;
  private resume: () => void = () => undefined;
  private readonly weights = new Map<number, FileRecord>();
  private readonly states = new Map<number, FileRecord>();
  /** Blocks that begin with the states of one. */
  private readonly users = new Map<number, number[]>();
  private every: number | undefined;
  private readonly stopping = new AbortController();
  private readonly signal: AbortSignal;

  constructor(private readonly options: ProducerOptions) {
    this.every = options.statesEvery;
    this.signal = AbortSignal.any([options.signal, this.stopping.signal]);
  }

  /** Begins, unless it is at work, to add jobs for the blocks that are in `wanted`, now or by the time it passes them. */
  start(wanted: ReadonlySet<number>, onError: (error: unknown) => void): void {
    this.running ??= this.produce(wanted)
      .catch(onError)
      .finally(() => (this.running = undefined));
  }

  /** There may be room now. */
  go(): void {
    this.resume();
  }

  /** Ends the work at the next step. */
  async stop(): Promise<void> {
    this.stopping.abort();
    await this.settled();
  }

  async settled(): Promise<void> {
    this.resume();
    await this.running;
  }

  /** States that no pending block begins with go, but for the last: a run that is started again goes on from those. */
  async finished(pending: ReadonlySet<number>): Promise<void> {
    const { store, run } = this.options;
    const last = Math.max(...this.states.keys());
    for (const [from, record] of [...this.states]) {
      const users = this.users.get(from) ?? [];
      if (from === last || users.length === 0 || users.some((each) => pending.has(each))) continue;
      this.states.delete(from);
      this.users.delete(from);
      await store.removeRecord(run, statesName(from));
      if ([...this.states.values()].every(({ sha256 }) => sha256 !== record.sha256))
        await store.release(run, record.sha256);
    }
  }

  /** Hashes of all that was kept. */
  blobs(): string[] {
    const records = [...this.weights.values(), ...this.states.values(), this.options.description];
    return records.map(({ sha256 }) => sha256);
  }

  private async produce(wanted: ReadonlySet<number>): Promise<void> {
    const { signal } = this;
    const { job, windows } = this.options;
    const { backend, source, architecture, config } = job;
    const first = Math.min(...wanted);
    const start = await this.keptStates(first);
    const prefix = new Prefix(job, windows, start?.states);
    let from: number | undefined;
    for (let layer = start?.layer ?? 0; layer < config.numLayers; layer++) {
      const ahead = [...wanted].some((each) => each >= layer);
      if (!ahead) return;
      const host = readBlock(source, architecture, config, layer);
      if (from === undefined || layer - from >= (this.every ?? 1)) from = undefined;
      const near = layer + (this.every ?? 1);
      if (from === undefined && [...wanted].some((each) => each >= layer && each < near)) {
        await this.waitForRoom();
        from = layer;
        const began = performance.now();
        await this.keepStates(layer, prefix.inputs);
        this.keepSeconds ??= (performance.now() - began) / 1000;
      }
      const began = performance.now();
      if (from !== undefined) await this.keepWeights(layer, host);
      const moved = (performance.now() - began) / 1000;
      if (from !== undefined && wanted.has(layer)) await this.add(layer, from);
      if (![...wanted].some((each) => each > layer)) return;
      const computing = performance.now();
      const weights = uploadBlock(backend, host);
      prefix.advance(await prefix.outputs(weights, layer, signal));
      freeBlock(backend, weights);
      if (this.every === undefined && this.keepSeconds !== undefined)
        this.chooseStride(moved + (performance.now() - computing) / 1000);
    }
  }
  private keepSeconds: number | undefined;

  private chooseStride(computeSeconds: number): void {
    this.every = stride(this.keepSeconds ?? 0, computeSeconds);
    if (this.every > 1)
      this.options.job.progress.note(
        `states of every ${this.every}th block are kept: keeping takes ${this.keepSeconds?.toFixed(1)} s, running a block again ${computeSeconds.toFixed(1)} s`,
      );
  }

  private async waitForRoom(): Promise<void> {
    const { signal } = this;
    const { room } = this.options;
    while (room() <= 0) {
      if (signal.aborted) throw new InterruptedError("stopped while waiting for workers");
      const woken = new Promise<void>((resolve) => (this.resume = resolve));
      await Promise.race([woken, sleep(1000, undefined, { signal }).catch(() => undefined)]);
    }
    if (signal.aborted) throw new InterruptedError("stopped while waiting for workers");
  }

  private async keepStates(layer: number, { data }: Activations): Promise<void> {
    const { store, run } = this.options;
    const record = await store.keepValues(run, data);
    this.states.set(layer, record);
    await store.keepRecord(run, statesName(layer), sealed(record));
  }

  private async keepWeights(layer: number, host: HostBlock): Promise<void> {
    const { store, run, job } = this.options;
    const file = job.journal.passingFile(layer, "weights");
    try {
      await writeBlock(file, host);
      this.weights.set(layer, await store.keepFile(run, file));
    } finally {
      rmSync(file, { force: true });
    }
  }

  private async add(layer: number, from: number): Promise<void> {
    const { run, description, enqueue } = this.options;
    this.users.set(from, [...(this.users.get(from) ?? []), layer]);
    const weights = Array.from({ length: layer - from + 1 }, (_, i) => this.weights.get(from + i)!);
    await enqueue(layer, {
      run,
      layer,
      description,
      states: this.states.get(from)!,
      from,
      weights,
    });
  }

  /** The last states up to a block that an earlier process of this run has kept. */
  private async keptStates(
    layer: number,
  ): Promise<{ readonly layer: number; readonly states: Activations } | undefined> {
    const { store, run, job, windows } = this.options;
    const shape = { samples: windows.samples, time: windows.time, hidden: stateWidth(job.config) };
    for (let at = layer; at > 0; at--) {
      const text = await store.readRecord(run, statesName(at));
      if (text === undefined) continue;
      try {
        const record = opened(fileRecordSchema, text, `the states of block ${at}`);
        const data = new Float32Array(shape.samples * shape.time * shape.hidden);
        if (record.bytes !== data.byteLength) continue;
        await store.fetchValues(record, data);
        return { layer: at, states: { ...shape, data } };
      } catch (error) {
        if (error instanceof InterruptedError) throw error;
        job.progress.warn(`states of block ${at}: ${(error as Error).message}`);
      }
    }
    return undefined;
  }
}

function statesName(layer: number): string {
  return `states-${String(layer).padStart(3, "0")}`;
}
