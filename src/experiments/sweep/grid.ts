/** The grid of a sweep: recipe fields with the values to try. */
import { UsageError } from "../../common/errors.js";

export type GridValue = number | string | boolean;

export interface GridField {
  /** A recipe's field; of a nested one, with dots: `gptq.damping`. */
  readonly field: string;
  readonly values: readonly GridValue[];
}

/** One point: a value for each field of the grid, in the grid's order. */
export interface GridPoint {
  /** `alpha=0.5 gamma=0.02`. */
  readonly name: string;
  readonly values: Readonly<Record<string, GridValue>>;
  /** As a recipe takes it, nested fields nested. */
  readonly recipe: Readonly<Record<string, unknown>>;
}

/** Reads `alpha=0.4,0.5`. @throws UsageError saying what is accepted. */
export function parseGridField(text: string): GridField {
  const match = /^([A-Za-z][\w.]*)=(.+)$/.exec(text.trim());
  if (!match)
    throw new UsageError(
      `"${text}" is no line of a grid; give a recipe field and its values, such as alpha=0.4,0.5,0.6`,
    );
  const values = match[2].split(",").map((value) => parseValue(value.trim()));
  if (values.includes("") || new Set(values).size !== values.length)
    throw new UsageError(
      `grid field "${match[1]}" has empty or repeated values in "${match[2]}"; give distinct ones`,
    );
  return { field: match[1], values };
}

function parseValue(text: string): GridValue {
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** All combinations, the last field changing fastest. @throws UsageError for a field named twice. */
export function gridPoints(fields: readonly GridField[]): GridPoint[] {
  const names = fields.map(({ field }) => field);
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined) throw new UsageError(`grid field "${repeated}" is given twice`);
  let points: Record<string, GridValue>[] = [{}];
  for (const { field, values } of fields)
    points = points.flatMap((point) => values.map((value) => ({ ...point, [field]: value })));
  return points.map((values) => ({
    name: Object.entries(values)
      .map(([field, value]) => `${field}=${value}`)
      .join(" "),
    values,
    recipe: nested(values),
  }));
}

function nested(values: Readonly<Record<string, GridValue>>): Record<string, unknown> {
  const recipe: Record<string, unknown> = {};
  for (const [field, value] of Object.entries(values)) {
    const path = field.split(".");
    let at = recipe;
    for (const key of path.slice(0, -1)) at = (at[key] ??= {}) as Record<string, unknown>;
    at[path[path.length - 1]] = value;
  }
  return recipe;
}
