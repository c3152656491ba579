/**
 * Runs of `planish quantize` that are killed (SIGKILL) at random moments and resumed until they end: each must leave the
 * bytes of a run that nothing disturbed, and nothing that blocks the next. Used by test/cli/kills.test.ts with a few
 * kills, and by `npm run test:kills -- --count 60 [--seed N]` with many.
 */
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Random } from "../../src/common/random.js";
import { fileHashes, SMALL_RUN } from "../cli/artifacts.js";
import { planish, root } from "../cli/run-program.js";

export interface KillReport {
  /** Kills that met a running process. */
  readonly kills: number;
  /** Runs that were brought to their end, each after one kill or several. */
  readonly runs: number;
  /** Kills by what the journal held at that moment. */
  readonly moments: Readonly<Record<string, number>>;
}

/** A short run on one thread. */
const shortRun = (out: string): string[] => [
  "quantize",
  "models/tiny-llama",
  ...["--out", out, ...SMALL_RUN],
];

/** @throws Error when a resumed run fails, or ends in other bytes than an undisturbed one. */
export async function killAndResume(
  directory: string,
  count: number,
  seed: number,
  log: (line: string) => void = () => undefined,
): Promise<KillReport> {
  const whole = join(directory, "whole");
  const began = performance.now();
  const first = await planish(shortRun(whole));
  if (first.code !== 0) throw new Error(first.stderr);
  const length = performance.now() - began;
  const hashes = JSON.stringify(fileHashes(whole));
  const random = new Random(seed);
  const moments: Record<string, number> = {};
  let kills = 0;
  let runs = 0;
  while (kills < count) {
    const out = join(directory, `run-${runs}`);
    // A run may be killed several times; it goes on until it has not been.
    for (let begun = false; !existsSync(out) || existsSync(`${out}.run`); begun = true) {
      const more = begun && existsSync(`${out}.run`) ? ["--resume"] : [];
      const delay = kills < count ? random.uniform() * length : undefined;
      const { killed, code, stderr } = await runAndKill([...shortRun(out), ...more], delay);
      if (killed) {
        kills++;
        const moment = describe(out);
        moments[moment] = (moments[moment] ?? 0) + 1;
        log(`kill ${kills} after ${((delay ?? 0) / 1000).toFixed(2)} s: ${moment}`);
      } else if (code !== 0) throw new Error(`after ${kills} kills: ${stderr}`);
    }
    if (JSON.stringify(fileHashes(out)) !== hashes)
      throw new Error(`run ${runs}, after ${kills} kills, ended in other bytes (seed ${seed})`);
    // Neither journals nor temporary names stay.
    const left = readdirSync(directory).filter((name) => !/^(whole|run-\d+)$/.test(name));
    if (left.length > 0) throw new Error(`run ${runs} left ${left.join(", ")}`);
    runs++;
  }
  return { kills, runs, moments };
}

async function runAndKill(
  args: readonly string[],
  delay: number | undefined,
): Promise<{ killed: boolean; code: number | null; stderr: string }> {
  const child = spawn(process.execPath, [join(root, "dist", "cli", "main.js"), ...args], {
    cwd: root,
    env: { ...process.env, NODE_OPTIONS: "" },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve(code));
  });
  const over = new AbortController();
  if (delay !== undefined)
    void sleep(delay, undefined, { signal: over.signal }).then(
      () => child.kill("SIGKILL"),
      () => undefined,
    );
  const code = await ended;
  over.abort();
  return { killed: child.signalCode === "SIGKILL", code, stderr };
}

/** What a run has left on disk. */
function describe(out: string): string {
  if (existsSync(out)) return "artifact in place";
  if (!existsSync(`${out}.run`)) return "before the journal";
  const files = readdirSync(`${out}.run`);
  const count = (pattern: RegExp): number => files.filter((name) => pattern.test(name)).length;
  const packed = count(/^packed-\d+\.json$/);
  const blocks = count(/^block-\d+\.json$/);
  if (packed === 8) return "assembling";
  return packed > 0 ? "packing" : `calibrating, ${blocks} blocks kept`;
}
