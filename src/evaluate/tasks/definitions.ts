/**
 * The zero-shot tasks, in the prompt forms of lm-evaluation-harness with no examples before the question. Adding a task is
 * adding a row to this table.
 */

import { stripSpace } from "../encode-pair.js";
import type { Row } from "./row.js";

export type MetricName = "acc" | "acc_norm" | "perplexity";

/** A text and one way to go on. */
export interface Continuation {
  readonly context: string;
  /** With the space that stands between. */
  readonly continuation: string;
}

export interface TaskItem {
  /** One per choice; of a cloze item the only one. */
  readonly options: readonly Continuation[];
  /** Index of the right option. */
  readonly gold: number;
  /** What acc_norm divides by: characters (code points) of each choice without its leading space. */
  readonly lengths: readonly number[];
}

export interface TaskDefinition {
  readonly name: string;
  /** "choice": the likeliest option wins; "cloze": every token of the continuation must be the model's first choice. */
  readonly kind: "choice" | "cloze";
  readonly metrics: readonly MetricName[];
  /** The metric that is usually quoted, and that enters the average over tasks. */
  readonly customary: "acc" | "acc_norm";
  /** Throws PlanishError on a record that does not make an item. */
  readonly item: (row: Row) => TaskItem;
}

/** Characters as Python counts them, which is what the harness divides by. */
function characters(text: string): number {
  return Array.from(text).length;
}

function choiceItem(context: string, choices: readonly string[], gold: number): TaskItem {
  return {
    options: choices.map((choice) => ({ context, continuation: ` ${choice}` })),
    gold,
    lengths: choices.map(characters),
  };
}

/** Choices as ARC and OpenBookQA keep them: texts and labels, and the label of the right one. */
function labelledChoices(row: Row, context: string): TaskItem {
  const record = row.record("choices");
  const texts = record.choices("text");
  const labels = record.labels("label");
  if (labels.length !== texts.length)
    row.fail(`choices has ${texts.length} texts and ${labels.length} labels; they must agree`);
  const answer = row.label("answerKey");
  const gold = labels.indexOf(answer);
  if (gold < 0)
    row.fail(
      `answerKey is ${JSON.stringify(answer)}, which is none of the labels ${labels.join(", ")}`,
    );
  return choiceItem(context, texts, gold);
}

function piqa(row: Row): TaskItem {
  const solutions = [row.text("sol1"), row.text("sol2")];
  return choiceItem(
    `Question: ${row.string("goal")}\nAnswer:`,
    solutions,
    row.index("label", 0, 2),
  );
}

function arc(row: Row): TaskItem {
  return labelledChoices(row, `Question: ${row.string("question")}\nAnswer:`);
}

function openbookqa(row: Row): TaskItem {
  return labelledChoices(row, row.string("question_stem"));
}

/** Partial evaluation: contexts differ by the option in them, and the rest of the sentence is what is scored. */
function winogrande(row: Row): TaskItem {
  const sentence = row.string("sentence");
  const blank = sentence.indexOf("_");
  if (blank < 0) row.fail(`sentence has no "_" to put the options in`);
  const contexts = ["option1", "option2"].map((key) => sentence.slice(0, blank) + row.text(key));
  const rest = stripSpace(sentence.slice(blank + 1));
  if (rest === "") row.fail(`sentence ends at its "_"; there is nothing to score after it`);
  return {
    options: contexts.map((context) => ({ context, continuation: ` ${rest}` })),
    gold: row.index("answer", 1, 2),
    lengths: contexts.map(characters),
  };
}

/** The harness's processed documents (`query`, `choices`, `gold`), or the rows of the data set itself. */
function hellaswag(row: Row): TaskItem {
  if (row.has("query")) {
    const choices = row.choices("choices");
    return choiceItem(row.string("query"), choices, row.index("gold", 0, choices.length));
  }
  const context = `${row.string("ctx_a")} ${capitalize(row.string("ctx_b"))}`;
  const endings = row.choices("endings").map(withoutTags);
  return choiceItem(
    withoutTags(`${row.string("activity_label")}: ${context}`),
    endings,
    row.index("label", 0, endings.length),
  );
}

/** Python's `str.capitalize`: the rest becomes lower-case. */
function capitalize(text: string): string {
  const [first = "", ...rest] = Array.from(text);
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** WikiHow's markup as the harness takes it out of HellaSwag: titles end a sentence, other tags vanish. */
function withoutTags(text: string): string {
  return stripSpace(text)
    .replaceAll(" [title]", ". ")
    .replace(/\[.*?\]/g, "")
    .replaceAll("  ", " ");
}

/** The last word after everything before it; words are what single spaces separate. */
function lambada(row: Row): TaskItem {
  const words = row.text("text").split(" ");
  const last = words.pop() ?? "";
  return {
    options: [{ context: words.join(" "), continuation: ` ${last}` }],
    gold: 0,
    lengths: [characters(last)],
  };
}

const CHOICE = { kind: "choice", metrics: ["acc", "acc_norm"] } as const;

export const TASKS: readonly TaskDefinition[] = [
  { name: "piqa", ...CHOICE, customary: "acc", item: piqa },
  {
    name: "lambada_openai",
    kind: "cloze",
    metrics: ["acc", "perplexity"],
    customary: "acc",
    item: lambada,
  },
  { name: "openbookqa", ...CHOICE, customary: "acc_norm", item: openbookqa },
  { name: "arc_easy", ...CHOICE, customary: "acc", item: arc },
  { name: "arc_challenge", ...CHOICE, customary: "acc_norm", item: arc },
  { name: "winogrande", kind: "choice", metrics: ["acc"], customary: "acc", item: winogrande },
  { name: "hellaswag", ...CHOICE, customary: "acc_norm", item: hellaswag },
];
