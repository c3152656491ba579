import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SHORT_TEXT, temporaryDirectory } from "./artifacts.js";
import { planish, root } from "./run-program.js";

const directory = temporaryDirectory();
const artifact = directory.file("rtn-w8");
const piqa = "test/fixtures/evaluate/piqa.jsonl";
beforeAll(async () => {
  const args = ["--out", artifact, "--method", "rtn", "--scheme", "w8a8kv8"];
  const { code, stderr } = await planish([
    "quantize",
    "models/tiny-llama",
    "--no-verdict",
    ...args,
  ]);
  if (code !== 0) throw new Error(stderr);
});
afterAll(() => directory[Symbol.dispose]());

interface Measure {
  readonly value: number;
  readonly stderr?: number;
}

interface Score {
  readonly perplexity?: number;
  readonly limit?: number;
  readonly zeroShot: {
    readonly tasks: {
      readonly task: string;
      readonly items: number;
      readonly available: number;
      readonly metrics: Record<string, Measure>;
    }[];
    readonly average: Measure;
  };
  readonly against?: Score;
  readonly divergence?: { kl: Measure; topAgreement: Measure; blockErrors: number[] };
}

describe("planish eval --tasks", () => {
  it("scores a task, and writes its items", async () => {
    const items = directory.file("items.jsonl");
    const args = ["eval", "--tasks", `piqa=${piqa}`, "--limit", "3", "models/tiny-llama", "--json"];
    const { code, stdout } = await planish([...args, "--items", items]);
    expect(code).toBe(0);
    const score = JSON.parse(stdout) as Score;
    expect(score.perplexity).toBeUndefined();
    expect(score.limit).toBe(3);
    expect(score.zeroShot.tasks).toHaveLength(1);
    const [task] = score.zeroShot.tasks;
    expect(task).toMatchObject({ task: "piqa", items: 3, available: 4, customary: "acc" });
    expect(score.zeroShot.average.value).toBe(task.metrics.acc.value);
    const lines = readFileSync(items, "utf8").trimEnd().split("\n");
    const records = lines.map((line) => JSON.parse(line) as { line: number; correct: boolean });
    expect(records.map(({ line }) => line)).toEqual([1, 2, 4]);
    const right = records.filter(({ correct }) => correct).length;
    expect(task.metrics.acc.value).toBeCloseTo(right / 3, 12);
  });

  it.skipIf(!existsSync(join(root, "data/zeroshot/piqa.jsonl")))(
    "reads the embedded half of a data set",
    async () => {
      const args = ["eval", "--tasks", "piqa", "--limit", "5", "models/tiny-llama", "--json"];
      const { code, stdout } = await planish(args);
      expect(code).toBe(0);
      const { zeroShot } = JSON.parse(stdout) as Score;
      expect(zeroShot.tasks[0]).toMatchObject({ items: 5, available: 919 });
    },
  );

  it("prints a table that says what was left out", async () => {
    const tasks = `piqa=${piqa},arc_challenge=test/fixtures/evaluate/arc.parquet`;
    const { code, stdout } = await planish([
      "eval",
      "tiny-llama",
      "--tasks",
      tasks,
      "--limit",
      "2",
    ]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^task +items +acc \(%\) +acc_norm \(%\) +perplexity +time$/m);
    expect(stdout).toMatch(/^piqa +2 of 4 +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ± \d+\.\d\d +- +\d/m);
    expect(stdout).toMatch(/^average\* /m);
    expect(stdout).toMatch(/acc_norm for arc_challenge, acc for the rest/);
    expect(stdout).toMatch(/^Limited to the first 2 items of each task/m);
    expect(stdout).not.toMatch(/windows/);
  });

  it("compares with --against: tasks of both, and the divergence on a text", async () => {
    const few = ["--ppl", SHORT_TEXT, "--limit", "2", "--seq-len", "64"];
    const args = ["eval", artifact, "--tasks", `piqa=${piqa}`, "--against", "models/tiny-llama"];
    const { code, stdout } = await planish([...args, ...few, "--json"]);
    expect(code).toBe(0);
    const { zeroShot, against, divergence, perplexity } = JSON.parse(stdout) as Score;
    expect(zeroShot.tasks[0].items).toBe(2);
    expect(against?.zeroShot.tasks[0].items).toBe(2);
    expect(perplexity).not.toBe(against?.perplexity);
    expect(divergence?.kl.value).toBeGreaterThan(0);
    expect(divergence?.topAgreement.value).toBeGreaterThan(0.5);
    expect(divergence?.blockErrors).toHaveLength(8);
    const printed = await planish([...args, ...few]);
    expect(printed.stdout).toMatch(
      /^KL divergence of next-token distributions: \d\.\d+ ± \d\.\d+ nats$/m,
    );
    expect(printed.stdout).toMatch(/^same likeliest token: \d+\.\d\d ± \d+\.\d\d %$/m);
    expect(printed.stdout).toMatch(/rtn-w8 +average\*/);
  });

  it("refuses unknown tasks, broken files and items without tasks in one line", async () => {
    const broken = directory.file("broken.jsonl");
    writeFileSync(broken, '{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n{"goal": "g"}\n');
    const cases: [string[], number, RegExp][] = [
      [["--tasks", "piqa,boolq"], 2, /task "boolq" is unknown; the tasks are piqa, /],
      [
        ["--tasks", `piqa=${broken}`],
        1,
        /broken\.jsonl line 2: field "sol1" is missing; found goal/,
      ],
      [["--tasks", "piqa=no/such.parquet"], 1, /no\/such\.parquet/],
      [["--items", "x.jsonl"], 2, /give --tasks as well/],
      [
        ["--tasks", `piqa=${piqa}`, "--items", "no/such/dir/x"],
        1,
        /--items "no\/such\/dir\/x" cannot be made: there is no directory .*no\/such\/dir/,
      ],
    ];
    for (const [args, code, message] of cases) {
      const result = await planish(["eval", "tiny-llama", ...args]);
      expect(result.code).toBe(code);
      expect(result.stderr).toMatch(message);
      expect(result.stderr).toMatch(/^planish: [^\n]*\n$/);
    }
  });
});
