/** Starts a real program in a child process and collects what it leaves. */

import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));
const main = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const probe = fileURLToPath(new URL("./probe.mjs", import.meta.url));

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface RunOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Called with the child and everything on stderr so far, each time more arrives there. */
  readonly onStderr?: (child: ChildProcess, text: string) => void;
}

/** `planish …args`. */
export function planish(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  return start([main, ...args], options);
}

/** The same frame around commands that misbehave on purpose; see probe.mjs. */
export function runProbe(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  return start([probe, ...args], options);
}

/** Any script, under this Node. */
export function runScript(
  script: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Outcome> {
  return start([script, ...args], options);
}

function start(args: readonly string[], options: RunOptions): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, {
      cwd: options.cwd ?? root,
      env: { ...process.env, NODE_OPTIONS: "", ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      options.onStderr?.(child, stderr);
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}
