/**
 * Blocks trained side by side: each block is trained on full-precision inputs, so they need not wait for one another
 * (docs/methods.md, flatquant). The run's own process computes those inputs and hands each range of blocks to a
 * worker process through the journal; a worker that dies leaves its finished blocks there, for `--resume`.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { InterruptedError } from "../../common/errors.js";
import type { ProgressSink } from "../../common/progress.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { freeBlock, readBlock, uploadBlock } from "../../models/weights.js";
import { Prefix } from "../calibration/prefix.js";
import type { TokenWindows } from "../schema/windows.js";
import { blockLine } from "./block-unit.js";
import type { Journal } from "./journal.js";

/** Blocks `from` … `to − 1`. */
export interface BlockRange {
  readonly from: number;
  readonly to: number;
}

export interface Workers {
  readonly count: number;
  /** Threads of each; absent: those of a process by itself. */
  readonly threads?: number;
  /**
   * Calibrates a range of blocks in another process and resolves when they are in the journal; `index` counts workers
   * from 0. @throws PlanishError when the process fails; stops it on the signal.
   */
  readonly launch: (range: BlockRange, index: number, signal: AbortSignal) => Promise<void>;
}

export interface WorkerJob {
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly journal: Journal;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
  /** Progress units of one block. */
  readonly stepsPerBlock: number;
}

/**
 * Consecutive blocks of `missing` in at most `count` ranges of nearly equal length. Ranges may span blocks that are
 * finished; those are skipped by whoever works on the range.
 */
export function splitRanges(missing: readonly number[], count: number): BlockRange[] {
  const parts = Math.min(count, missing.length);
  return Array.from({ length: parts }, (_, i) => {
    const first = missing[Math.floor((i * missing.length) / parts)];
    const last = missing[Math.floor(((i + 1) * missing.length) / parts) - 1];
    return { from: first, to: last + 1 };
  });
}

/** Calibrates every block that the journal lacks. The first failure stops the other workers. */
export async function calibrateSideBySide(
  job: WorkerJob,
  windows: TokenWindows,
  workers: Workers,
): Promise<void> {
  const { backend, source, architecture, config, journal } = job;
  const missing = Array.from({ length: config.numLayers }, (_, l) => l).filter(
    (l) => !journal.hasBlock(l),
  );
  if (missing.length === 0) return;
  const ranges = splitRanges(missing, workers.count);
  const failure = new AbortController();
  const signal = job.signal ? AbortSignal.any([job.signal, failure.signal]) : failure.signal;
  const running: Promise<void>[] = [];
  const launch = (range: BlockRange) =>
    running.push(
      workers.launch(range, running.length, signal).catch((error: unknown) => {
        failure.abort(error);
        throw error;
      }),
    );
  const watching = new AbortController();
  const watch = watchJournal(job, missing, watching.signal);
  try {
    const prefix = new Prefix(job, windows);
    const lastStart = ranges[ranges.length - 1].from;
    for (let layer = 0; layer <= lastStart; layer++) {
      const range = ranges.find(({ from }) => from === layer);
      if (range) {
        journal.keepStates(layer, prefix.inputs);
        launch(range);
      }
      if (layer === lastStart) break;
      const weights = uploadBlock(backend, readBlock(source, architecture, config, layer));
      prefix.advance(await prefix.outputs(weights, layer, signal));
      freeBlock(backend, weights);
    }
    await Promise.all(running);
  } catch (error) {
    failure.abort(error);
    // Every worker has ended before anything else happens: none may outlive the run, or write after it.
    await Promise.allSettled(running);
    if (job.signal?.aborted) throw new InterruptedError("stopped while calibrating");
    throw failure.signal.reason;
  } finally {
    watching.abort();
    await watch;
  }
}

const POLL_MILLISECONDS = 500;

/** Reports blocks as they appear in the journal. */
async function watchJournal(
  { journal, progress, config, stepsPerBlock }: WorkerJob,
  missing: readonly number[],
  signal: AbortSignal,
): Promise<void> {
  const task = progress.task("calibrating", config.numLayers * stepsPerBlock);
  task.advance((config.numLayers - missing.length) * stepsPerBlock);
  const waiting = new Set(missing);
  const look = (): void => {
    for (const layer of waiting) {
      if (!journal.hasBlock(layer)) continue;
      waiting.delete(layer);
      task.advance(stepsPerBlock);
      progress.note(blockLine(layer, journal.readBlock(layer).report));
    }
  };
  while (!signal.aborted) {
    look();
    await sleep(POLL_MILLISECONDS, undefined, { signal }).catch(() => undefined);
  }
  look();
  task.done();
}
