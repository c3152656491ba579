/** The examples run as they are printed, against the built package; `npm run check` looks at their types. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { root, runScript } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());
const artifact = directory.file("artifact");

/** `tsx`, as Node starts it by itself. */
async function run(name: string, args: readonly string[]): Promise<string> {
  const script = join(root, "examples", name);
  const { code, stdout, stderr } = await runScript("--import", ["tsx", script, ...args]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}

describe("the examples", () => {
  it("quantize and evaluate", async () => {
    const made = await run("quantize.ts", ["tiny-llama", artifact]);
    expect(made).toMatch(/w4a4kv4 by flatquant, \d+ of \d+ bytes/);
    expect(made.match(/^block \d: \d+% of the error of rounding$/gm)).toHaveLength(8);
    expect(existsSync(join(artifact, "quantization.json"))).toBe(true);
    const scored = await run("evaluate.ts", [artifact, "tiny-llama", "3"]);
    expect(scored).toMatch(/^perplexity \d+\.\d\d, was \d+\.\d\d$/m);
    expect(scored).toMatch(/^KL divergence 0\.\d{4} ± 0\.\d{4} nats a token$/m);
    expect(scored).toMatch(/^zero-shot \d+\.\d ± \d+\.\d%$/m);
  });

  it("embed the engine", async () => {
    const text = await run("engine.ts", ["tiny-llama"]);
    expect(text).toMatch(/^The ship.{10,}$/m);
    expect(text).toMatch(/^The city was.{10,}$/m);
    expect(text).toMatch(/\d+ tokens read, 16 written$/m);
  });
});
