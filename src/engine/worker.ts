/** The engine's thread: loads the model, then serves requests until it is told to close. Started by `Engine.load`. */
import { parentPort, workerData, type MessagePort } from "node:worker_threads";
import { PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { ConstraintPool } from "./constraint/pool.js";
import { EngineHost, type HostOptions } from "./host.js";
import {
  openExecutor,
  pagesFor,
  type CacheOptions,
  type OpenExecutorOptions,
} from "./open-executor.js";
import { PromptPool } from "./prompt-pool.js";
import type { FromHost } from "./protocol.js";

/** What `Engine.load` hands over. */
export interface WorkerInput
  extends Omit<OpenExecutorOptions, "progress">, CacheOptions, Omit<HostOptions, "pages"> {
  readonly path: string;
  /** Seconds that writing down one prompt may take. */
  readonly promptSeconds: number;
}

async function main(port: MessagePort, input: WorkerInput): Promise<void> {
  const send = (message: FromHost): void => port.postMessage(message);
  const progress: ProgressSink = {
    ...silentProgress,
    note: (text) => send({ type: "note", text }),
    warn: (text) => send({ type: "warn", text }),
  };
  // The program decides how its warnings look; a thread's own would print as Node.js has them.
  process.removeAllListeners("warning");
  process.on("warning", ({ name, message }) => send({ type: "warning", name, message }));
  try {
    using opened = openExecutor(input.path, { ...input, progress });
    const pages = pagesFor(opened.executor, input);
    const { path, chatTemplate, promptSeconds: seconds } = input;
    using prompts = new PromptPool({ path, chatTemplate, seconds });
    using constraints = new ConstraintPool({ tokens: { path } });
    const host = new EngineHost(port, { ...opened, prompts, constraints }, { ...input, pages });
    await host.done;
  } catch (error) {
    // An error in our own logic is for the engine's other half to report as a crash.
    if (!(error instanceof PlanishError)) throw error;
    send({ type: "unloadable", message: error.message, exitCode: error.exitCode });
    port.close();
  }
}

// Deno's port of a thread cannot be closed: there a thread closes itself.
if (parentPort && !Reflect.has(parentPort, "close"))
  Object.assign(parentPort, { close: () => (globalThis as unknown as { close(): void }).close() });
if (parentPort) await main(parentPort, workerData as WorkerInput);
