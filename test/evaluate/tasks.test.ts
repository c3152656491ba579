import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { UsageError } from "../../src/common/errors.js";
import {
  findTask,
  parseTasks,
  readTask,
  TASKS,
  type TaskData,
} from "../../src/evaluate/tasks/index.js";
import { fixture } from "./support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-tasks-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let files = 0;
function write(content: string | Uint8Array, extension = "jsonl"): string {
  const path = join(directory, `${(files += 1)}.${extension}`);
  writeFileSync(path, content);
  return path;
}

/** The items that records make, read through a file. */
async function read(task: string, ...records: object[]): Promise<TaskData> {
  const path = write(records.map((record) => JSON.stringify(record)).join("\n"));
  return readTask({ task: findTask(task), path, embedded: false });
}

const options = (data: TaskData, i = 0) =>
  data.items[i].options.map(({ context, continuation }) => [context, continuation]);

describe("prompt forms of lm-evaluation-harness", () => {
  it("piqa", async () => {
    const record = { goal: "Keep warm", sol1: "a coat ", sol2: "ice", label: 0 };
    const data = await read("piqa", record, { ...record, label: "1" });
    expect(options(data)).toEqual([
      ["Question: Keep warm\nAnswer:", " a coat "],
      ["Question: Keep warm\nAnswer:", " ice"],
    ]);
    expect(data.items.map(({ gold }) => gold)).toEqual([0, 1]);
    expect(data.items[0].lengths).toEqual([7, 3]);
  });

  it("arc_easy, arc_challenge: letters or digits as labels", async () => {
    for (const task of ["arc_easy", "arc_challenge"]) {
      const question = { id: "q", question: "Why?", answerKey: "B" };
      const data = await read(
        task,
        { ...question, choices: { text: ["x", "y", "zé"], label: ["A", "B", "C"] } },
        { ...question, choices: { text: ["x", "y"], label: [1, 2] }, answerKey: 1 },
      );
      expect(options(data)).toEqual(
        ["x", "y", "zé"].map((c) => ["Question: Why?\nAnswer:", ` ${c}`]),
      );
      expect(data.items.map(({ gold }) => gold)).toEqual([1, 0]);
      expect(data.items[0].id).toBe("q");
    }
  });

  it("openbookqa: the stem alone", async () => {
    const choices = { text: ["a", "b", "c", "d"], label: ["A", "B", "C", "D"] };
    const data = await read("openbookqa", { question_stem: "Fog is", choices, answerKey: "D" });
    expect(options(data)[3]).toEqual(["Fog is", " d"]);
    expect(data.items[0].gold).toBe(3);
  });

  it("winogrande: the option goes into the context, the rest is scored", async () => {
    const record = { sentence: "Ann thanked Bea as _  was kind .", option1: "Ann", option2: "Bea" };
    const data = await read("winogrande", { ...record, answer: "2" }, { ...record, answer: 1 });
    expect(options(data)).toEqual([
      ["Ann thanked Bea as Ann", " was kind ."],
      ["Ann thanked Bea as Bea", " was kind ."],
    ]);
    expect(data.items.map(({ gold }) => gold)).toEqual([1, 0]);
  });

  it("hellaswag: processed documents", async () => {
    const record = { query: "Clean: A man", choices: ["a", "b", "c", "d"], gold: 3 };
    const data = await read("hellaswag", record, { ...record, gold: "0" });
    expect(options(data)[1]).toEqual(["Clean: A man", " b"]);
    expect(data.items.map(({ gold }) => gold)).toEqual([3, 0]);
  });

  it("hellaswag: rows of the data set, processed as the harness does", async () => {
    const data = await read("hellaswag", {
      activity_label: "Baking",
      ctx_a: "[header] How to bake [title] Mix flour.",
      ctx_b: "then A Person",
      endings: ["[substeps] stirs.", "waits [step] and sleeps."],
      label: "1",
    });
    expect(options(data)).toEqual([
      ["Baking: How to bake. Mix flour. Then a person", "  stirs."],
      ["Baking: How to bake. Mix flour. Then a person", " waits and sleeps."],
    ]);
    expect(data.items[0].gold).toBe(1);
  });

  it("lambada_openai: the last word after everything before it", async () => {
    const data = await read("lambada_openai", { text: "He said\n\nto the king" }, { text: "One" });
    expect(options(data)).toEqual([["He said\n\nto the", " king"]]);
    expect(options(data, 1)).toEqual([["", " One"]]);
  });

  it("counts lengths in code points", async () => {
    const record = { goal: "g", sol1: "a😀é", sol2: "ab", label: 0 };
    expect((await read("piqa", record)).items[0].lengths).toEqual([3, 2]);
  });
});

describe("readTask", () => {
  it("reads JSON lines with line numbers, blank lines left out, and stops at the limit", async () => {
    const source = parseTasks(`piqa=${fixture("piqa.jsonl")}`)[0];
    const all = await readTask(source);
    expect(all.items.map(({ line }) => line)).toEqual([1, 2, 4, 5]);
    const some = await readTask(source, { limit: 2 });
    expect(some.items.map(({ line }) => line)).toEqual([1, 2]);
    expect(some.available).toBe(4);
  });

  it("reads Parquet as Hugging Face exports it", async () => {
    const [arc, piqa] = await Promise.all(
      parseTasks(`arc_easy=${fixture("arc.parquet")},piqa=${fixture("piqa.parquet")}`).map((s) =>
        readTask(s),
      ),
    );
    expect(arc.items.map(({ id, gold }) => [id, gold])).toEqual([
      ["q1", 1],
      ["q2", 0],
      ["q3", 0],
    ]);
    expect(options(arc, 1)).toEqual([
      ["Question: Which season is the coldest?\nAnswer:", " winter"],
      ["Question: Which season is the coldest?\nAnswer:", " summer"],
    ]);
    expect(piqa.items[0].gold).toBe(0);
  });

  const good = JSON.stringify({ goal: "g", sol1: "a", sol2: "b", label: 0 });
  it.each([
    ["no JSON", `${good}\n{"goal"\n`, /line 2 is no JSON; give one JSON object a line$/],
    ["no object", `${good}\n\n[1]\n`, /line 3 is no JSON object/],
    [
      "a missing field",
      `{"goal":"g","sol1":"a"}`,
      /line 1: field "sol2" is missing; found goal, sol1$/,
    ],
    ["another type", good.replace('"g"', "7"), /field "goal" must be a string, found 7$/],
    ["an empty choice", good.replace('"b"', '""'), /field "sol2" must be a string with content/],
    [
      "a label out of range",
      good.replace(":0", ":2"),
      /field "label" is "2", and must be a label from 0 to 1$/,
    ],
    ["a hidden label", good.replace(":0", ":-1"), /"-1".*test split come without answers/],
    ["an empty file", "\n", /holds no items/],
    ["bytes that are no text", Uint8Array.of(0xff, 0xfe, 0x00), /is no UTF-8 text/],
  ])("refuses %s in one line", async (_, content, message) => {
    const path = write(content);
    const reading = readTask({ task: findTask("piqa"), path, embedded: false });
    await expect(reading).rejects.toThrow(message);
    await expect(reading).rejects.toThrow(/^[^\n]*$/);
    await expect(reading).rejects.toThrow(path);
  });

  it.each([
    [
      "arc_easy",
      { question: "q", choices: { text: ["a", "b"], label: ["A"] }, answerKey: "A" },
      /2 texts and 1 labels/,
    ],
    [
      "arc_easy",
      { question: "q", choices: { text: ["a", "b"], label: ["A", "B"] }, answerKey: "C" },
      /none of the labels A, B/,
    ],
    [
      "arc_easy",
      { question: "q", choices: ["a", "b"], answerKey: "A" },
      /field "choices" must be an object/,
    ],
    [
      "arc_easy",
      { question: "q", choices: { text: ["a"], label: ["A"] }, answerKey: "A" },
      /choices: field "text" must be a list of at least two/,
    ],
    ["winogrande", { sentence: "No blank", option1: "a", option2: "b", answer: "1" }, /has no "_"/],
    [
      "winogrande",
      { sentence: "Ends _ ", option1: "a", option2: "b", answer: "1" },
      /nothing to score/,
    ],
    [
      "winogrande",
      { sentence: "A _ b", option1: "a", option2: "b", answer: "" },
      /without answers/,
    ],
    ["hellaswag", { query: "q", choices: ["a", "b"], gold: 2 }, /label from 0 to 1/],
    ["lambada_openai", { text: "" }, /field "text" must be a string with content/],
  ])("refuses a record of %s that makes no item", async (task, record, message) => {
    await expect(read(task, record)).rejects.toThrow(message);
    await expect(read(task, record)).rejects.toThrow(/ line 1: /);
  });

  it("says why a file cannot be read", async () => {
    const [json] = parseTasks(`piqa=${join(directory, "none.jsonl")}`);
    await expect(readTask(json)).rejects.toThrow(
      /^cannot read task file [^\n]*none\.jsonl: [^\n]+$/,
    );
    const [missing] = parseTasks(`piqa=${join(directory, "none.parquet")}`);
    await expect(readTask(missing)).rejects.toThrow(/none\.parquet as Parquet: [^\n]+$/);
    const [broken] = parseTasks(`piqa=${write("PAR1 and nothing more", "parquet")}`);
    await expect(readTask(broken)).rejects.toThrow(
      /^cannot read task file [^\n]* as Parquet: [^\n]+$/,
    );
    const absent = { task: findTask("piqa"), path: join(directory, "x"), embedded: true };
    await expect(readTask(absent)).rejects.toThrow(/piqa are not in this copy[^\n]*piqa=FILE$/);
  });
});

describe("parseTasks", () => {
  it("takes names, files, and all", () => {
    expect(parseTasks("all").map(({ task }) => task.name)).toEqual(TASKS.map(({ name }) => name));
    const [first, second] = parseTasks("hellaswag, piqa=a=b.jsonl");
    expect([first.task.name, first.embedded]).toEqual(["hellaswag", true]);
    expect(second).toMatchObject({ path: "a=b.jsonl", embedded: false });
  });

  it("refuses unknown and repeated names", () => {
    expect(() => parseTasks("piqa,boolq")).toThrow(UsageError);
    expect(() => parseTasks("piqa,boolq")).toThrow(
      /"boolq" is unknown; the tasks are piqa, .*, or all$/,
    );
    expect(() => parseTasks("piqa,,")).toThrow(/task "" is unknown/);
    expect(() => parseTasks("all,piqa")).toThrow(/piqa is named twice/);
    expect(() => parseTasks("piqa=")).toThrow(/names no file/);
  });
});
