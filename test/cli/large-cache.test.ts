/** A server whose KV cache is larger than the largest ArrayBuffer of Node 20 (4 GiB). */
import { spawn } from "node:child_process";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { freemem } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { root } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

// Pages that nobody uses cost nothing, and a budget beyond the free memory is refused: hence the free memory.
it.skipIf(freemem() < 6e9)("serves a long model with --kv-memory 5GB", async () => {
  const model = directory.file("long-llama");
  cpSync(join(root, "models", "tiny-llama"), model, { recursive: true });
  const file = join(model, "config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as object;
  writeFileSync(file, JSON.stringify({ ...config, max_position_embeddings: 131072 }));
  const args = ["serve", model, "--port", "0", "--log-level", "warn", "--kv-memory", "5GB"];
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...args], { cwd: root });
  try {
    const url = await new Promise<string>((resolve, reject) => {
      let text = "";
      child.stderr.on("data", (data) => {
        text += String(data);
        const found = /listening on (\S+)/.exec(text)?.[1];
        if (found !== undefined) resolve(found);
      });
      child.on("exit", (code) => reject(new Error(`the server ended (${code}): ${text}`)));
    });
    const response = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "long-llama", prompt: "The ship", max_tokens: 4 }),
    });
    expect(await response.json()).toMatchObject({ usage: { completion_tokens: 4 } });
  } finally {
    child.kill("SIGKILL");
  }
});
