/** Which executor opens a model, and how much memory its cache gets. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { silentProgress } from "../../src/common/progress.js";
import { openExecutor, pagesFor } from "../../src/engine/open-executor.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { fakeExecutor } from "./fake-executor.js";

const directory = mkdtempSync(join(tmpdir(), "planish-open-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("openExecutor", () => {
  it("auto runs an artifact with integers, on a GPU or without one, and says on what", async () => {
    using source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));
    const out = join(directory, "artifact");
    const backend = createCpuBackend();
    await quantize({ backend, source, out, method: "rtn", scheme: parseScheme("w4a4kv4") });
    const notes: string[] = [];
    const progress = { ...silentProgress, note: (text: string) => void notes.push(text) };
    using opened = openExecutor(out, { device: "auto", progress });
    expect(opened.arithmetic).toBe("integer");
    expect(opened.executor.description).toMatch(/w4a4kv4, integer$/);
    expect(notes.join()).toMatch(/^device: (cuda|cpu; no GPU: .+)$/);
  });
});

describe("pagesFor", () => {
  const executor = { ...fakeExecutor({ pageTokens: 4 }), freeBytes: () => 1600 };

  it("gives the cache three quarters of a GPU's free memory", () => {
    // 16 bytes a page.
    expect(pagesFor(executor, { maxRunning: 1000 })).toBe(75);
    expect(pagesFor(executor, { maxRunning: 1000, kvMemory: 320 })).toBe(20);
  });

  it("says what is free there when more is asked for", () => {
    expect(() => pagesFor(executor, { maxRunning: 1, kvMemory: 1601 })).toThrow(/--kv-memory/);
    expect(() => pagesFor({ ...executor, freeBytes: () => 8 }, { maxRunning: 1 })).toThrow(
      /holds no page/,
    );
  });
});
