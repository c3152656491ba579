/** `quantize --auto`: what is chosen for which limits, on made-up candidates and on a small model. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { openBackend } from "../../src/backend/open.js";
import { checkAutoFlags, chosenBy, parseTime } from "../../src/cli/commands/auto-flags.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { silentProgress } from "../../src/common/progress.js";
import { autoChoice, choose, choiceText } from "../../src/experiments/auto/choose.js";
import { LEARNED_SHARE, type Judged } from "../../src/experiments/auto/candidates.js";
import { Journal } from "../../src/quantize/run/journal.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { smallCalibration } from "../quantize/methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-auto-"));
const backend = openBackend({});
beforeAll(() => vi.stubEnv("XDG_CACHE_HOME", join(directory, "cache")));
afterAll(() => {
  vi.unstubAllEnvs();
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

function candidate(method: string, kl: number, mb: number, seconds: number): Judged {
  const scheme = parseScheme("w4a8kv8");
  const bytes = mb * 1e6;
  return {
    method,
    preset: "default",
    recipe: {},
    kl,
    bytes,
    seconds,
    decodeSeconds: bytes / 1e10,
    rounded: { scheme, rotates: false },
  };
}

const WAYS = [
  candidate("keep", 0.005, 96, 5),
  candidate("flatquant", 0.08, 88, 1200),
  candidate("rtn", 0.4, 88, 30),
  candidate("w8", 0.002, 160, 30),
];

describe("choosing", () => {
  it("weighs divergence against decoding speed", () => {
    expect(choose(WAYS, {}).chosen.method).toBe("keep");
    // Without the kept file learning is worth its time, and 8 bits are too slow.
    expect(choose(WAYS.slice(1), {}).chosen.method).toBe("flatquant");
  });

  it("stays within size, time and divergence", () => {
    expect(choose(WAYS, { budget: { size: 90e6 } }).chosen.method).toBe("flatquant");
    expect(choose(WAYS, { budget: { size: 90e6 }, seconds: 60 }).chosen.method).toBe("rtn");
    expect(choose(WAYS.slice(1), { budget: { kl: 0.01 } }).chosen.method).toBe("w8");
    const nearest = choose(WAYS.slice(1, 3), { budget: { kl: 0.01 } });
    expect(nearest.chosen.method).toBe("flatquant");
    expect(nearest.reason).toMatch(/nearest/);
  });

  it("refuses what nothing fits, with what would", () => {
    expect(() => choose(WAYS, { budget: { size: 50e6 } })).toThrow(
      /size=50.0 MB is less than the smallest way takes, 88.0 MB/,
    );
    expect(() => choose(WAYS.slice(1), { seconds: 2 })).toThrow(/quickest way takes, about 30 s/);
  });
});

it("looks at a model: sizes are an artifact's, learning is expected to help, the choice is marked", async () => {
  const model = join(directory, "model");
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), model, 1);
  using source = openCheckpoint(model);
  const calibration = smallCalibration(directory);
  const choice = await autoChoice({ backend, source, calibration, progress: silentProgress });
  const of = (method: string, scheme: string) =>
    choice.candidates.find((each) => each.method === method && each.scheme === scheme);
  const rounded = of("rtn", "w4g64a8g64kv8h8");
  const learned = of("flatquant", "w4g64a8g64kv8h8");
  if (!rounded || !learned) throw new Error("expected candidates are missing");
  expect(learned.kl).toBeLessThan(rounded.kl * LEARNED_SHARE * 1.5);
  expect(of("rtn", "w8a8g64kv8h8")?.kl).toBeLessThan(rounded.kl / 10);
  expect(of("rtn", "w8a8g64kv8h8")?.bytes).toBeGreaterThan(rounded.bytes);
  expect(choice.candidates).toContain(choice.chosen);
  expect(choice.candidates.some(({ method }) => method === "keep")).toBe(false);
  expect(choiceText(choice)).toMatch(/→/);
});

describe("flags", () => {
  it("read a time", () => {
    expect([parseTime("90s"), parseTime("15m"), parseTime("1.5H")]).toEqual([90, 900, 5400]);
    for (const text of ["", "15", "0m", "-1m", "m", "1d", "1e3s"])
      expect(() => parseTime(text), text).toThrow(/Give a time/);
  });

  it("that say what is to be found out are refused", () => {
    const check = (flags: object) => () => checkAutoFlags({ out: "x", given: {}, ...flags });
    expect(check({ auto: true, method: "rtn" })).toThrow(/--method was given/);
    expect(check({ auto: true, given: { seqLen: 3 } })).toThrow(/--seq-len was given/);
    expect(check({ time: 60 })).toThrow(/give --auto too/);
    expect(check({ auto: true, time: 60, budget: { size: 1e6 } })).not.toThrow();
  });

  it("resume what was chosen the first time, whatever would be chosen now", async () => {
    const out = join(directory, "begun");
    const settings = { method: "rtn", preset: "gptq", scheme: "w3a8kv8", recipe: { samples: 4 } };
    Journal.open(out, { ...settings, budget: { kl: 0.5, predictedKl: 0.4, uniformKl: 1 } }, {});
    const begun = await chosenBy({ out, auto: true, resume: true }, undefined as never);
    expect(begun).toEqual({ ...settings, budget: { kl: 0.5, size: undefined } });
  });
});
