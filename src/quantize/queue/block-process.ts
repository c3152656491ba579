/**
 * The process in which a worker learns: kernels may run for minutes without returning to the event loop, and the worker has
 * locks to renew meanwhile. Started by `learner.ts`, which it speaks with over the channel that Node.js opens; it ends when
 * that process does.
 */
import { openBackend, type Device } from "../../backend/open.js";
import { PlanishError } from "../../common/errors.js";
import type { ProgressTask } from "../../common/progress.js";
import type { Machine } from "../artifact/quantization-info.js";
import type { BlockReport } from "../schema/method.js";
import { calibrateFromFiles, type BlockFiles } from "./block-work.js";

export type ToLearner =
  | { readonly type: "open"; readonly device?: Device; readonly threads?: number }
  | {
      readonly type: "block";
      readonly files: BlockFiles;
      readonly from: number;
      readonly layer: number;
    }
  | { readonly type: "stop" };

export type FromLearner =
  | { readonly type: "ready"; readonly machine: Machine; readonly description: string }
  | { readonly type: "progress"; readonly steps: number }
  | { readonly type: "warning"; readonly message: string }
  | { readonly type: "done"; readonly report: BlockReport }
  /** `known`: an error that says what is wrong in one line. */
  | { readonly type: "failed"; readonly message: string; readonly known: boolean };

/** Milliseconds between reports of steps. */
const REPORT_EVERY = 500;

let backend: ReturnType<typeof openBackend> | undefined;
let stopping = new AbortController();

function tell(message: FromLearner): void {
  process.send?.(message);
}

function open({ device, threads }: Extract<ToLearner, { type: "open" }>): void {
  backend = openBackend({
    device,
    threads,
    progress: {
      task: () => stepCounter(),
      note: () => undefined,
      warn: (message) => tell({ type: "warning", message }),
    },
  });
  const { name, arithmetic, description } = backend;
  const machine = { device: name, level: arithmetic?.level, threads: arithmetic?.threads };
  tell({ type: "ready", machine, description });
}

function stepCounter(): ProgressTask {
  let steps = 0;
  let told = 0;
  return {
    advance(by = 1) {
      steps += by;
      if (performance.now() - told < REPORT_EVERY) return;
      told = performance.now();
      tell({ type: "progress", steps });
    },
    done: () => undefined,
  };
}

async function work({ files, ...range }: Extract<ToLearner, { type: "block" }>): Promise<void> {
  if (!backend) throw new Error("no device is open");
  stopping = new AbortController();
  const report = await calibrateFromFiles(backend, files, range, stepCounter(), stopping.signal);
  tell({ type: "done", report });
}

async function handle(message: ToLearner): Promise<void> {
  try {
    if (message.type === "open") open(message);
    else if (message.type === "block") await work(message);
    else stopping.abort();
  } catch (error) {
    const known = error instanceof PlanishError;
    tell({
      type: "failed",
      message: error instanceof Error ? error.message : String(error),
      known,
    });
  }
}

process.on("message", (message) => void handle(message as ToLearner));
process.on("disconnect", () => process.exit(0));
// Signals reach the whole group of a terminal; the worker says when to stop.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => undefined);
