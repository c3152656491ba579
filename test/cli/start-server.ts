/** `planish serve` as a process of its own, on a free port. */

import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import OpenAI from "openai";
import { root } from "./run-program.js";

export interface Server {
  readonly child: ChildProcess;
  readonly url: string;
  readonly client: OpenAI;
  readonly stdout: () => string;
  readonly stderr: () => string;
  readonly exit: Promise<number | null>;
}

/** Resolves once it listens. `key` is what its client sends. */
export async function startServer(
  model: string,
  flags: readonly string[] = [],
  key = "any",
): Promise<Server> {
  const args = ["serve", model, "--port", "0", "--log-level", "warn", ...flags];
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...args], { cwd: root });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data) => (stdout += String(data)));
  const exit = new Promise<number | null>((resolve) => child.on("exit", resolve));
  const url = await new Promise<string>((resolve, reject) => {
    child.stderr.on("data", (data) => {
      stderr += String(data);
      const found = /listening on (\S+)/.exec(stderr)?.[1];
      if (found !== undefined) resolve(found);
    });
    void exit.then(() => reject(new Error(`the server ended: ${stderr}`)));
  });
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
  return { child, url, client, stdout: () => stdout, stderr: () => stderr, exit };
}
