/** A comparison's rows equal what the methods give alone; it goes on where it stopped; unfit methods say why. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { silentProgress } from "../../src/common/progress.js";
import { evaluateDivergence } from "../../src/evaluate/divergence.js";
import { parseTasks, readTask } from "../../src/evaluate/tasks/index.js";
import { evaluateTasks } from "../../src/evaluate/zero-shot.js";
import { readDocuments, tokenizeCorpus } from "../../src/quantize/calibration/text.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { compare, type CompareOptions } from "../../src/experiments/compare/compare.js";
import { readComparison } from "../../src/experiments/compare/directory.js";
import { measureSpeed } from "../../src/experiments/compare/speed.js";
import { comparisonMarkdown } from "../../src/experiments/compare/table.js";
import { parseWays } from "../../src/experiments/compare/ways.js";
import { temporaryDirectory } from "../checkpoint/files.js";

const directory = temporaryDirectory();
const model = join(packageRoot, "models", "tiny-llama");
const backend = openBackend({ device: "cpu" });
const text = join(directory, "text.txt");
const calibration = join(directory, "calibration.txt");
writeFileSync(text, readDocuments("wikitext2").join("\n").slice(0, 4000));
writeFileSync(calibration, readDocuments("wikipedia").join("\n").slice(0, 40_000));
const [piqa] = parseTasks("piqa");
const tasks = [await readTask(piqa, { limit: 4 })];
const METHODS = ["fp16", "rtn", "smoothquant", "gptq", "quarot", "awq"];
const settings = {
  backend,
  model,
  methods: METHODS,
  text,
  calibration,
  samples: 3,
  seqLen: 48,
  windows: 3,
  windowTokens: 64,
  tasks,
  limit: 4,
} satisfies Partial<CompareOptions>;

afterAll(() => backend[Symbol.dispose]());

const digest = (path: string): string =>
  createHash("sha256")
    .update(readFileSync(join(path, "model.safetensors")))
    .digest("hex");

describe("a comparison", () => {
  const out = join(directory, "all");

  it("makes the artifacts that the methods make alone, and scores them the same", async () => {
    const { methods } = await compare({ ...settings, out });
    expect(methods.map(({ name }) => name)).toEqual(METHODS);
    using source = openCheckpoint(model);
    const tokenizer = loadTokenizer(source);
    const tokens = tokenizeCorpus(tokenizer, readDocuments(text));
    using original = loadModel(backend, model);
    for (const { name, artifact, ...row } of methods) {
      if (row.refused !== undefined) continue;
      using loaded = loadModel(backend, artifact === undefined ? model : join(out, artifact));
      const alone = await evaluateDivergence(loaded.model, original.model, tokens, {
        seqLen: 64,
        limit: 3,
      });
      // The kept reference runs window by window, both models here all windows at once: f32 sums in another order.
      expect(row.perplexity).toBeCloseTo(alone.model.perplexity, 2);
      if (artifact === undefined) continue;
      expect(row.kl?.value).toBeCloseTo(alone.kl.value, 4);
      expect(row.topAgreement).toEqual(alone.topAgreement);
      for (const [layer, error] of (row.blockErrors ?? []).entries())
        expect(error).toBeCloseTo(alone.blockErrors?.[layer] ?? NaN, 4);
      const zeroShot = await evaluateTasks(loaded.model, tokenizer, tasks);
      expect(row.average).toEqual(zeroShot.average);
      const single = join(directory, name);
      await quantize({
        backend,
        source,
        sourceName: "tiny-llama",
        out: single,
        method: name === "gptq" ? "rtn" : name,
        recipe: {
          ...(name === "rtn" ? {} : { samples: 3, seqLen: 48 }),
          ...(name === "gptq" ? { rounding: "gptq" } : {}),
        },
        calibration,
      });
      expect(digest(join(out, artifact))).toBe(digest(single));
    }
  });

  it("says why a method is left out", () => {
    const awq = readComparison(out).methods.find(({ name }) => name === "awq");
    expect(awq?.refused).toMatch(/not rounded/);
    expect(awq?.artifact).toBeUndefined();
    expect(readFileSync(join(out, "comparison.md"), "utf8")).toMatch(
      /awq is left out: .*scheme w4a4kv4/,
    );
  });

  it("has numbers in its table, and never a speed that was not measured", () => {
    const document = readComparison(out);
    const table = comparisonMarkdown(document);
    const rtn = document.methods.find(({ name }) => name === "rtn");
    expect(table).toContain(`| rtn | ${rtn?.perplexity?.toFixed(2) ?? ""} |`);
    expect(table).toMatch(/first 4 items of each task only: piqa 4 of \d+/);
    expect(table).not.toMatch(/\| decode/);
  });

  it("is not begun anew over finished work, and takes further methods with resume", async () => {
    await expect(compare({ ...settings, out })).rejects.toThrow(/add --resume/);
    const before = readComparison(out);
    const more = await compare({
      ...settings,
      out,
      methods: [...METHODS, "rtn+gptq"],
      resume: true,
    });
    expect(more.methods.slice(0, -1)).toEqual(before.methods);
    // The same as "gptq", under another name.
    const last = more.methods[more.methods.length - 1];
    expect(last.kl).toEqual(before.methods.find(({ name }) => name === "gptq")?.kl);
  });

  it("refuses to go on under other settings", async () => {
    await expect(compare({ ...settings, out, resume: true, seed: 7 })).rejects.toThrow(
      /begun with another seed: 0, not 7/,
    );
  });

  it("refuses to go on with a result that is damaged", async () => {
    const file = join(out, "results", "rtn.json");
    const written = readFileSync(file, "utf8");
    writeFileSync(
      file,
      written.replace(
        /("perplexity": )(\d)/,
        (_, key: string, digit: string) => `${key}${9 - Number(digit)}`,
      ),
    );
    await expect(compare({ ...settings, out, resume: true })).rejects.toThrow(
      /rtn\.json is damaged: .*remove it to have it made again/,
    );
    writeFileSync(file, written);
  });

  it("goes on where it was interrupted, and ends the same", async () => {
    const stopped = join(directory, "stopped");
    const abort = new AbortController();
    const methods = ["smoothquant", "quarot"];
    // In the middle of the second method's blocks.
    const progress = {
      ...silentProgress,
      note: (line: string) => {
        if (line.startsWith("block 3") && existsSync(join(stopped, "artifacts/smoothquant")))
          abort.abort();
      },
    };
    await expect(
      compare({ ...settings, methods, out: stopped, progress, signal: abort.signal }),
    ).rejects.toThrow(/stopped/);
    expect(existsSync(join(stopped, "artifacts/quarot"))).toBe(false);
    const resumed = await compare({ ...settings, methods, out: stopped, resume: true });
    const whole = readComparison(out).methods;
    for (const { name, kl, tasks: scored } of resumed.methods) {
      const same = whole.find((each) => each.name === name);
      expect(kl).toEqual(same?.kl);
      expect(scored?.map(({ metrics }) => metrics)).toEqual(
        same?.tasks?.map(({ metrics }) => metrics),
      );
    }
    expect(digest(join(stopped, "artifacts/quarot"))).toBe(digest(join(out, "artifacts/quarot")));
  });
});

describe("what --methods may name", () => {
  it("reads presets and roundings", () => {
    const [fp, gptq, paper, both] = parseWays(
      ["fp16", "gptq", "flatquant:paper", "quarot+gptq"],
      "fast",
    );
    expect(fp.quantize).toBeUndefined();
    expect(gptq.quantize).toMatchObject({ method: { name: "rtn" }, recipe: { rounding: "gptq" } });
    expect(paper.quantize?.preset).toBe("paper");
    // "fast" is FlatQuant's; quarot keeps its default.
    expect(both.quantize).toMatchObject({ preset: undefined, recipe: { rounding: "gptq" } });
  });

  it.each([
    [["nonsense"], /method "nonsense" is unknown; accepted: fp16, gptq, /],
    [["rtn", "rtn"], /named twice/],
    [["rtn:paper"], /no preset "paper"; accepted: default.* for rtn/],
    [["fp16+gptq"], /write it without/],
    [["a b"], /is no method/],
    [[], /no methods/],
  ])("refuses %j", (names, message) => {
    expect(() => parseWays(names)).toThrow(message);
  });

  it("refuses a preset that no method has", () => {
    expect(() => parseWays(["rtn"], "paper")).toThrow(/none of the methods has a preset "paper"/);
  });
});

describe("speed", () => {
  const tokens = Int32Array.from({ length: 40 }, (_, i) => 5 + i);
  const few = { promptTokens: 16, decodedTokens: 2, rounds: 3 };

  it("is that of both models in turns; the model as it is is as fast as itself", async () => {
    const artifact = join(directory, "all", "artifacts", "rtn");
    const { prefill, decode, prefillRatio } = await measureSpeed(artifact, model, tokens, few);
    for (const { median, min, max } of [prefill, decode]) {
      expect(min).toBeGreaterThan(0);
      expect(median).toBeGreaterThanOrEqual(min);
      expect(max).toBeGreaterThanOrEqual(median);
    }
    expect(prefillRatio).toBeGreaterThan(0);
    expect(await measureSpeed(model, model, tokens, few)).toMatchObject({
      prefillRatio: 1,
      decodeRatio: 1,
    });
  });

  it("needs enough text", async () => {
    await expect(measureSpeed(model, model, tokens)).rejects.toThrow(
      /text has 40 tokens; .* takes 288/,
    );
  });
});
