/** Items of a task from the embedded files, or from an export of its data set in JSON lines or Parquet. */

import { existsSync } from "node:fs";
import { describeFsError, isJsonObject } from "../../checkpoint/file-reader.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { companionFile } from "../../common/companions.js";
import { MAX_TEXT_BYTES, readUserText } from "../../common/read-file.js";
import { TASKS, type TaskDefinition, type TaskItem } from "./definitions.js";
import { Row } from "./row.js";

/** A task, and the file its items come from. */
export interface TaskSource {
  readonly task: TaskDefinition;
  readonly path: string;
  /** Whether the file is the one that comes with the package. */
  readonly embedded: boolean;
}

export interface ReadItem extends TaskItem {
  /** Line of a JSONL file, row of a Parquet file; from 1. */
  readonly line: number;
  /** The record's `id`, where it has one. */
  readonly id?: string;
}

export interface TaskData extends TaskSource {
  readonly items: readonly ReadItem[];
  /** Items in the file; more than `items` when a limit cut them. */
  readonly available: number;
}

/** The task of a name. Throws UsageError when there is none. */
export function findTask(name: string): TaskDefinition {
  const task = TASKS.find((each) => each.name === name);
  if (!task)
    throw new UsageError(
      `task "${name}" is unknown; the tasks are ${TASKS.map((each) => each.name).join(", ")}, or all`,
    );
  return task;
}

/**
 * The tasks of a list such as `piqa,arc_easy=exports/arc.parquet` or `all`: `name=FILE` reads another file than the
 * embedded one. Throws UsageError for unknown and repeated names.
 */
export function parseTasks(list: string): TaskSource[] {
  const sources = list.split(",").flatMap((entry): TaskSource[] => {
    const text = entry.trim();
    if (text === "all") return TASKS.map(embeddedSource);
    const equals = text.indexOf("=");
    if (equals < 0) return [embeddedSource(findTask(text))];
    const path = text.slice(equals + 1);
    if (path === "")
      throw new UsageError(`"${text}" names no file; write ${text.slice(0, equals)}=FILE`);
    return [{ task: findTask(text.slice(0, equals)), path, embedded: false }];
  });
  const names = sources.map(({ task }) => task.name);
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined) throw new UsageError(`task ${repeated} is named twice; name it once`);
  return sources;
}

function embeddedSource(task: TaskDefinition): TaskSource {
  const path = companionFile("data", "zeroshot", `${task.name}.jsonl`);
  return { task, path, embedded: true };
}

/**
 * Reads a task's items, at most the first `limit`.
 * @throws PlanishError when the file cannot be read or is empty, naming the line of a record that does not fit.
 */
export async function readTask(
  source: TaskSource,
  options: { limit?: number } = {},
): Promise<TaskData> {
  const { task, path, embedded } = source;
  const { limit = Infinity } = options;
  if (embedded && !existsSync(path))
    throw new PlanishError(
      `the items of ${task.name} are not in this copy of Planish; give an export of the data set: ${task.name}=FILE`,
    );
  const parquet = path.toLowerCase().endsWith(".parquet");
  const records = parquet ? await parquetRecords(path) : jsonLines(path);
  if (records.length === 0)
    throw new PlanishError(`${path} holds no items; give a file with one record per item`);
  const items = records.slice(0, limit).map(({ line, fields }): ReadItem => {
    const where = `${path} ${parquet ? "row" : "line"} ${line}`;
    const row = new Row(where, fields());
    return { ...task.item(row), line, ...(row.has("id") ? { id: row.label("id") } : {}) };
  });
  return { ...source, items, available: records.length };
}

interface FileRecord {
  readonly line: number;
  readonly fields: () => Record<string, unknown>;
}

/** Lines are parsed when they are asked for: a limit spares the rest. */
function jsonLines(path: string): FileRecord[] {
  const text = readUserText(path, {
    what: "task file",
    most: MAX_TEXT_BYTES,
    hint: "give JSON lines, or a file ending in .parquet",
  });
  return text.split("\n").flatMap((content, i): FileRecord[] => {
    if (content.trim() === "") return [];
    const line = i + 1;
    return [{ line, fields: () => parseLine(content, `${path} line ${line}`) }];
  });
}

function parseLine(content: string, where: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    throw new PlanishError(`${where} is no JSON; give one JSON object a line`, { cause });
  }
  if (!isJsonObject(value)) throw new PlanishError(`${where} is no JSON object; give one a line`);
  return value;
}

async function parquetRecords(path: string): Promise<FileRecord[]> {
  let rows: Record<string, unknown>[];
  try {
    const { asyncBufferFromFile, parquetReadObjects } = await import("hyparquet");
    rows = await parquetReadObjects({ file: await asyncBufferFromFile(path) });
  } catch (cause) {
    const reason =
      (cause as NodeJS.ErrnoException).code === undefined
        ? (cause as Error).message.replace(/\s+/g, " ")
        : describeFsError(cause);
    throw new PlanishError(`cannot read task file ${path} as Parquet: ${reason}`, { cause });
  }
  return rows.map((row, i) => ({ line: i + 1, fields: () => row }));
}
