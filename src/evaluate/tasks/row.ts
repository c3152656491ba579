/** One record of a task's file, read field by field with errors that name file, line and field. */

import { PlanishError } from "../../common/errors.js";

export class Row {
  /** `where` names the record in errors: `piqa.jsonl line 3`. */
  constructor(
    readonly where: string,
    private readonly fields: Readonly<Record<string, unknown>>,
  ) {}

  has(key: string): boolean {
    return this.fields[key] !== undefined && this.fields[key] !== null;
  }

  /** Throws the PlanishError of this record. */
  fail(message: string): never {
    throw new PlanishError(`${this.where}: ${message}`);
  }

  string(key: string): string {
    const value = this.fields[key];
    return typeof value === "string" ? value : this.wrong(key, "a string");
  }

  /** A string that is not empty. */
  text(key: string): string {
    return this.string(key) || this.wrong(key, "a string with content");
  }

  /** At least two strings, none of them empty: what a choice is between. */
  choices(key: string): string[] {
    const value = this.fields[key];
    const list: unknown[] = Array.isArray(value) ? value : [];
    const texts = list.filter((text): text is string => typeof text === "string" && text !== "");
    return texts.length >= 2 && texts.length === list.length
      ? texts
      : this.wrong(key, "a list of at least two strings with content");
  }

  /** A field that holds fields. */
  record(key: string): Row {
    const value = this.fields[key];
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? new Row(`${this.where}: ${key}`, value as Record<string, unknown>)
      : this.wrong(key, "an object");
  }

  /** A label as it may be written: a string, or a whole number. */
  label(key: string): string {
    const value = this.fields[key];
    if (typeof value === "string") return value.trim();
    if (typeof value === "bigint" || Number.isInteger(value)) return String(value);
    return this.wrong(key, "a label (a string or a whole number)");
  }

  /** A label that counts from `first`, as an index below `count`. */
  index(key: string, first: number, count: number): number {
    const label = this.label(key);
    const index = /^\d+$/.test(label) ? Number(label) - first : -1;
    if (index >= 0 && index < count) return index;
    return this.fail(
      `field "${key}" is ${JSON.stringify(label)}, and must be a label from ${first} to ${first + count - 1}` +
        (label === "-1" || label === "" ? " (rows of a test split come without answers)" : ""),
    );
  }

  /** Labels of choices, as strings. */
  labels(key: string): string[] {
    const value = this.fields[key];
    if (!Array.isArray(value)) return this.wrong(key, "a list of labels");
    return value.map((_, i) => new Row(this.where, { [key]: value[i] as unknown }).label(key));
  }

  private wrong(key: string, wanted: string): never {
    if (!this.has(key)) {
      const found = Object.keys(this.fields);
      return this.fail(
        `field "${key}" is missing; found ${found.length > 0 ? found.join(", ") : "no fields"}`,
      );
    }
    return this.fail(`field "${key}" must be ${wanted}, found ${shown(this.fields[key])}`);
  }
}

function shown(value: unknown): string {
  const json = typeof value === "bigint" ? String(value) : JSON.stringify(value);
  return json.length > 60 ? `${json.slice(0, 60)}…` : json;
}
