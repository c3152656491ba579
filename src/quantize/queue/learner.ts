/** The worker's side of its learning process (`block-process.ts`): started again when it dies. */
import { fork, type ChildProcess } from "node:child_process";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import type { Device } from "../../backend/open.js";
import { InterruptedError, PlanishError } from "../../common/errors.js";
import type { ProgressSink } from "../../common/progress.js";
import type { Machine } from "../artifact/quantization-info.js";
import type { BlockReport } from "../schema/method.js";
import type { FromLearner, ToLearner } from "./block-process.js";
import type { BlockFiles } from "./block-work.js";

/** The process died under its work (memory, a signal): another attempt may succeed. */
export class LearnerLostError extends PlanishError {
  override readonly name = "LearnerLostError";
}

export interface LearnerOptions {
  readonly device?: Device;
  /** Which of several GPUs. */
  readonly unit?: number;
  readonly threads?: number;
  readonly progress: ProgressSink;
}

export class Learner {
  private child: ChildProcess | undefined;
  private opened: Extract<FromLearner, { type: "ready" }> | undefined;

  constructor(private readonly options: LearnerOptions) {}

  /** What it computes on. @throws PlanishError when the device cannot be opened. */
  async open(): Promise<{ readonly machine: Machine; readonly description: string }> {
    if (this.child && this.opened) return this.opened;
    const { device, threads, unit } = this.options;
    const here = fileURLToPath(import.meta.url);
    this.child = fork(here.replace(/learner(\.[jt]s)$/, "block-process$1"), [], {
      // Sources run under a loader, which the arguments of this process name.
      execArgv: extname(here) === ".ts" ? process.execArgv : [],
      env: { ...process.env, ...(unit !== undefined && { PLANISH_WORKER: String(unit) }) },
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    const answer = await this.ask({ type: "open", device, threads });
    if (answer.type !== "ready") throw new Error(`the learning process answers ${answer.type}`);
    return (this.opened = answer);
  }

  /** @throws PlanishError when the block cannot be done, LearnerLostError when the process dies, InterruptedError. */
  async calibrate(
    files: BlockFiles,
    range: { readonly from: number; readonly layer: number },
    onSteps: (steps: number) => void,
    signal: AbortSignal,
  ): Promise<BlockReport> {
    await this.open();
    const stop = (): void => void this.child?.send({ type: "stop" } satisfies ToLearner);
    signal.addEventListener("abort", stop, { once: true });
    try {
      if (signal.aborted) throw new InterruptedError("stopped before the block");
      const answer = await this.ask({ type: "block", files, ...range }, onSteps);
      if (answer.type !== "done") throw new Error(`the learning process answers ${answer.type}`);
      return answer.report;
    } catch (error) {
      if (signal.aborted) throw new InterruptedError("stopped in the block", { cause: error });
      throw error;
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  /** Sends a message and waits for what answers it. */
  private ask(message: ToLearner, onSteps?: (steps: number) => void): Promise<FromLearner> {
    const { child } = this;
    if (!child) throw new Error("the learning process is not started");
    return new Promise((resolve, reject) => {
      const settle = (end: () => void): void => {
        child.off("message", onMessage);
        child.off("exit", onExit);
        end();
      };
      const onMessage = (raw: unknown): void => {
        const answer = raw as FromLearner;
        if (answer.type === "progress") onSteps?.(answer.steps);
        else if (answer.type === "warning") this.options.progress.warn(answer.message);
        else if (answer.type === "failed")
          settle(() =>
            reject(answer.known ? new PlanishError(answer.message) : new Error(answer.message)),
          );
        else settle(() => resolve(answer));
      };
      const onExit = (code: number | null, killedBy: NodeJS.Signals | null): void => {
        this.child = undefined;
        this.opened = undefined;
        const how = killedBy ? `was ended by ${killedBy}` : `ended with code ${code}`;
        settle(() => reject(new LearnerLostError(`the learning process ${how}`)));
      };
      child.on("message", onMessage);
      child.on("exit", onExit);
      child.send(message, (error) => {
        if (error) settle(() => reject(new LearnerLostError("the learning process is gone")));
      });
    });
  }

  close(): void {
    this.child?.disconnect();
    this.child = undefined;
    this.opened = undefined;
  }
}
