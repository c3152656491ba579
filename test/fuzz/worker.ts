/**
 * One process of the fuzz lane. It writes the number of the case it is at into a file, where the lane finds it when the
 * case hangs or kills this process, and reports what came of the cases.
 */
import { openSync, writeSync } from "node:fs";
import { caseOf, targetsOf } from "./cases.js";
import { judge } from "./target.js";

/** What a worker is told. */
export interface Task {
  readonly format?: string;
  readonly skip?: string;
  readonly seed: number;
  readonly from: number;
  readonly stride: number;
  /** Cases from here on are not done. */
  readonly end: number;
  readonly statusFile: string;
  readonly maxMemory: number;
}

export interface Counts {
  readonly tried: number;
  readonly refused: number;
}

/** What a worker says: cases done since the last report, up to but without `next`; or a failure. */
export type Report =
  | {
      readonly kind: "progress";
      readonly next: number;
      readonly counts: Readonly<Record<string, Counts>>;
    }
  | { readonly kind: "failed"; readonly number: number; readonly reason: string };

/** Cases between two reports; every report also lets messages and signals have their turn. */
const BATCH = 500;

async function work(task: Task): Promise<void> {
  const targets = targetsOf(task.format, task.skip);
  const status = openSync(task.statusFile, "w");
  const mark = new Float64Array(1);
  const bytes = new Uint8Array(mark.buffer);
  let number = task.from;
  while (number < task.end) {
    const counts: Record<string, Counts> = {};
    for (let i = 0; i < BATCH && number < task.end; i++, number += task.stride) {
      mark[0] = number;
      writeSync(status, bytes, 0, 8, 0);
      const { target, input } = caseOf(targets, task.seed, number);
      const outcome = judge(target, input());
      const { tried, refused } = counts[target.name] ?? { tried: 0, refused: 0 };
      counts[target.name] = {
        tried: tried + 1,
        refused: refused + (outcome.kind === "refused" ? 1 : 0),
      };
      if (outcome.kind === "failed") await send({ kind: "failed", number, reason: outcome.reason });
      const peak = process.resourceUsage().maxRSS * 1024;
      if (peak <= task.maxMemory) continue;
      await send({ kind: "failed", number, reason: `memory reached ${Math.round(peak / 1e6)} MB` });
      // The peak does not go down again: another process takes over.
      await send({ kind: "progress", next: number + task.stride, counts });
      process.exit(0);
    }
    await send({ kind: "progress", next: number, counts });
  }
  process.disconnect();
}

function send(report: Report): Promise<void> {
  return new Promise((resolve, reject) => {
    process.send?.(report, (error: Error | null) => {
      if (error) reject(error);
      else resolve();
    });
  });
}

// Libraries that write what they think of an input must not fill the lane's output.
Object.assign(console, { warn: () => undefined, error: () => undefined });
await work(JSON.parse(process.argv[2]) as Task);
