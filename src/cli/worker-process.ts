/** Starts this program again for a range of blocks of the run at hand (`planish quantize --workers`). */

import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { PlanishError } from "../common/errors.js";
import type { BlockRange, Workers } from "../quantize/run/workers.js";
import { oneLine } from "./action.js";

/** Flags of the run that its workers must not see: they belong to the run's own process. */
const OWN_FLAGS = ["--workers", "--threads"];
const OWN_SWITCHES = ["--resume", "--json", "--quiet", "--verbose", "-q", "-v"];

/**
 * Workers with the arguments of this process. They share the processor's threads; `index` is in their environment
 * as PLANISH_WORKER, by which a device with several units chooses one.
 */
export function workerProcesses(count: number, threads: number | undefined): Workers {
  const share = Math.max(1, Math.floor((threads ?? availableParallelism()) / count));
  return {
    count,
    threads: share,
    launch: (range, index, signal) =>
      run(workerArguments(process.argv.slice(2), range, share), index, range, signal),
  };
}

/** The command line of a worker, from that of the run. */
export function workerArguments(
  args: readonly string[],
  { from, to }: BlockRange,
  threads: number,
): string[] {
  const kept: string[] = [];
  for (let i = 0; i < args.length; i++) {
    if (OWN_FLAGS.includes(args[i])) i++;
    else if (!OWN_SWITCHES.includes(args[i]) && !OWN_FLAGS.some((f) => args[i].startsWith(`${f}=`)))
      kept.push(args[i]);
  }
  return [...kept, "--blocks", `${from}-${to - 1}`, "--threads", String(threads), "--quiet"];
}

function run(
  args: readonly string[],
  index: number,
  range: BlockRange,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...process.execArgv, process.argv[1], ...args], {
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, PLANISH_WORKER: String(index) },
    });
    const stop = (): void => {
      child.kill("SIGTERM");
    };
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    child.on("error", reject);
    child.on("close", (code, killedBy) => {
      signal.removeEventListener("abort", stop);
      if (code === 0) {
        resolve();
        return;
      }
      const how = killedBy === null ? `ended with code ${code}` : `was ended by ${killedBy}`;
      const blocks = `blocks ${range.from} to ${range.to - 1}`;
      const said = oneLine(errors).replace(/^planish: /, "");
      reject(
        new PlanishError(`the worker for ${blocks} ${how}${said ? ` (${said})` : ""}`, {
          resumable: true,
        }),
      );
    });
  });
}
