/** The verdict that ends every run: what it says of a good and of a bad scheme, and which scheme it names. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { formatScheme, parseScheme } from "../../src/backend/contract/scheme.js";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { silentProgress } from "../../src/common/progress.js";
import { giveVerdict, nextScheme, WORRYING_KL } from "../../src/experiments/verdict.js";
import { blockPrograms } from "../../src/models/architectures/index.js";
import { parseSource } from "../../src/models/source.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { writeFirstBlocks } from "../models/first-blocks.js";

const directory = mkdtempSync(join(tmpdir(), "planish-verdict-"));
const model = join(directory, "model");
const backend = openBackend({ device: "cpu" });

beforeAll(async () => {
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), model, 2);
});

afterAll(() => {
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

describe("the verdict on a run", () => {
  it("is calm about 8 bits and warns of 2, naming the next scheme", async () => {
    using source = openCheckpoint(model);
    const judge = async (scheme: string) => {
      const out = join(directory, scheme);
      await quantize({ backend, source, out, method: "rtn", scheme });
      return giveVerdict({ backend, source, artifact: out, progress: silentProgress });
    };
    const good = await judge("w8a8kv8h8");
    expect(good.kl).toBeLessThan(0.02);
    expect(good.warning).toBeUndefined();
    expect(good.windows).toBe(10);
    expect(good.originalAnswer.length).toBeGreaterThan(0);
    const bad = await judge("w2a16kv16");
    expect(bad.kl).toBeGreaterThan(WORRYING_KL);
    expect(bad.warning).toEqual({ nextScheme: "w2g64a16kv16" });
    expect(bad.originalPerplexity).toBeCloseTo(good.originalPerplexity, 6);
    expect(bad.originalAnswer).toBe(good.originalAnswer);
  });

  it("climbs from any scheme to one without a next, never to the same one twice", () => {
    using source = openCheckpoint(model);
    const programs = blockPrograms(parseSource(source).config);
    for (const start of ["w2a2kv2h4", "w4a4kv4", "w4g32oa4g32okv4h6", "w3g64a16"]) {
      const seen = new Set<string>();
      for (let scheme = parseScheme(start), next; ; scheme = next) {
        expect(seen.has(formatScheme(scheme))).toBe(false);
        seen.add(formatScheme(scheme));
        // What it names can be asked for.
        expect(parseScheme(formatScheme(scheme))).toEqual(scheme);
        next = nextScheme(scheme, programs);
        if (!next) break;
      }
      expect(seen.size).toBeGreaterThan(1);
    }
  });
});
