import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SHORT_TEXT, SMALL_RUN, temporaryDirectory } from "./artifacts.js";
import { planish } from "./run-program.js";

const MODEL = "models/tiny-llama";
const directory = temporaryDirectory();
const learned = directory.file("learned");
const rounded = directory.file("rounded");
beforeAll(async () => {
  const runs = [
    ["--out", learned, "--keep-parameters", "--scheme", "w8a8kv8", ...SMALL_RUN],
    ["--out", rounded, "--method", "rtn", "--scheme", "w8a8kv8"],
  ];
  for (const args of runs) {
    const { code, stderr } = await planish(["quantize", MODEL, "--no-verdict", ...args]);
    if (code !== 0) throw new Error(stderr);
  }
});
afterAll(() => directory[Symbol.dispose]());

interface Score {
  readonly scheme: string;
  readonly method?: string;
  readonly perplexity: number;
  readonly simulated?: Score;
  readonly simulatedRatio?: number;
  readonly divergence?: { readonly topAgreement: { readonly value: number } };
}

const few = ["--ppl", SHORT_TEXT, "--limit", "2", "--seq-len", "128"];
const score = async (...args: string[]): Promise<Score> => {
  const { code, stdout, stderr } = await planish(["eval", ...args, ...few, "--json"]);
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Score;
};

describe("planish eval --simulated", () => {
  it("scores an artifact beside the model it was packed from", async () => {
    expect(existsSync(`${learned}/parameters.safetensors`)).toBe(true);
    const artifact = await score(learned, "--simulated", "--source", MODEL);
    expect(artifact).toMatchObject({ scheme: "w8a8kv8", method: "flatquant" });
    expect(artifact.simulated).toMatchObject({ scheme: "w8a8kv8", method: "flatquant" });
    expect(artifact.simulatedRatio).toBe(
      artifact.perplexity / (artifact.simulated?.perplexity ?? NaN),
    );
    // Packing keeps matrices, norms and clips in 16 bits, so a few values near ties fall to another integer. At 4 bits
    // that can stray by percents on two windows; all 8-bit grids together stay within 2% (eval.test.ts).
    expect(Math.abs(Math.log(artifact.simulatedRatio ?? NaN))).toBeLessThan(0.02);
    // The parameters are in it: without them it would be the plain model rounded to nearest.
    const plain = await score(MODEL, "--simulated", "--scheme", "w8a8kv8");
    expect(artifact.simulated?.perplexity).not.toBe(plain.perplexity);
  });

  it("prints both and their ratio", async () => {
    const args = ["eval", learned, "--simulated", "--source", MODEL, ...few];
    const { code, stdout } = await planish(args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/learned \(simulated\) +w8a8kv8 +flatquant +\d+\.\d\d /);
    expect(stdout).toMatch(/learned +w8a8kv8 +flatquant +\d+\.\d\d /);
    expect(stdout).toMatch(/^perplexity, artifact over simulated: [01]\.\d{5}$/m);
  });

  it("rounds a plain model to nearest as the rtn artifact holds it", async () => {
    const plain = await score(MODEL, "--simulated", "--scheme", "w8a8kv8");
    expect(plain).toMatchObject({ scheme: "w8a8kv8", method: "rtn" });
    const artifact = await score(rounded, "--simulated", "--source", MODEL);
    expect(artifact.simulated?.perplexity).toBe(plain.perplexity);
    // Not equal: weights stored in bfloat16 lie midway between two grid points where w = (j + ½)·max/127 holds exactly,
    // and float64 (packing) and float32 (simulation) send those different ways. All 8-bit grids together cost this
    // model 0.2% of perplexity (golden/tiny-llama-reference.json), and stay within 2% on two windows.
    expect(Math.abs(Math.log(artifact.simulatedRatio ?? NaN))).toBeLessThan(0.02);
  });

  it.each([
    [[learned, "--simulated"], /needs the weights it was made from; give --source MODEL/],
    [[learned, "--simulated", "--scheme", "w4a4"], /has its scheme already; give --source/],
    [[MODEL, "--simulated"], /no artifact; say what to round it to, such as --scheme/],
    [[MODEL, "--simulated", "--source", MODEL], /no artifact, so it has no --source/],
    [[MODEL, "--scheme", "w4a4"], /--scheme is for simulated models; give --simulated/],
    [[learned, "--source", MODEL], /--source is for simulated models; give --simulated/],
    [[MODEL, "--simulated", "--scheme", "w5a4"], /5-bit weights; legal widths/],
  ])("refuses %j as bad usage", async (args, message) => {
    const { code, stdout, stderr } = await planish(["eval", ...args, ...few]);
    expect(stderr).toMatch(message);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  });

  it("refuses a source that the artifact was not made from, and an artifact without parameters", async () => {
    const other = await planish(["eval", learned, "--simulated", "--source", "models/tiny-opt"]);
    expect(other.code).toBe(1);
    expect(other.stderr).toMatch(/tiny-opt is not what .*learned was made from \(tiny-llama,/);
    const bare = directory.file("bare");
    cpSync(learned, bare, { recursive: true });
    rmSync(join(bare, "parameters.safetensors"));
    const damaged = await planish(["eval", bare, "--simulated", "--source", MODEL]);
    expect(damaged.code).toBe(1);
    expect(damaged.stderr).toMatch(/parameters\.safetensors is missing; the artifact is damaged/);
    // As quantized without --keep-parameters: nothing says that there were any.
    const description = join(bare, "quantization.json");
    const info = JSON.parse(readFileSync(description, "utf8")) as {
      files: Record<string, unknown>;
    };
    delete info.files["parameters.safetensors"];
    writeFileSync(description, JSON.stringify(info));
    const { code, stderr } = await planish(["eval", bare, "--simulated", "--source", MODEL]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/holds no parameters\.safetensors; quantize with --keep-parameters/);
  });
});
