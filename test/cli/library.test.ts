/** The package as others import it, by its name and from its built files. */

import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { root, runScript } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

describe("the planish package", () => {
  it("quantizes, loads, continues and scores from a program of its own", async () => {
    const script = join(root, "test/cli/library-probe.mjs");
    const { code, stdout, stderr } = await runScript(script, [directory.file("artifact")]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const result = JSON.parse(stdout) as { scheme: string; text: string; perplexity: number };
    expect(result.scheme).toBe("w4a8kv8");
    expect(result.text.length).toBeGreaterThan(8);
    expect(result.perplexity).toBeGreaterThan(1);
    expect(result.perplexity).toBeLessThan(200);
  });
});
