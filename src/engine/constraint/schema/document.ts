/**
 * One JSON Schema (2020-12, or draft 7): its keywords checked, its references resolved, its patterns read once. What is
 * not supported is refused by name, since a text that only seems to be held to a schema is worse than an error.
 */
import { isIntegerIn, oneLine } from "../../../common/bounds.js";
import { ConstraintError } from "../contract.js";
import type { Regex, Regexes } from "../regex/nodes.js";
import { parsePattern } from "../regex/parse.js";
import { FORMATS, integerRange, SILENT_FORMATS } from "./formats.js";

export type Schema = boolean | SchemaObject;
export type SchemaObject = Readonly<Record<string, unknown>>;

export const TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"] as const;
export type TypeName = (typeof TYPES)[number];

/** Say nothing about values. */
const ANNOTATIONS: ReadonlySet<string> = new Set(
  "$schema $id $comment $anchor $defs definitions title description default examples example deprecated readOnly writeOnly contentEncoding contentMediaType".split(
    " ",
  ),
);

type Check = (value: unknown) => boolean;

const isCount: Check = (value) => isIntegerIn(value, { min: 0 });
const isNumber: Check = (value) => typeof value === "number" && Number.isFinite(value);
const isSchema: Check = (value) =>
  typeof value === "boolean" ||
  (typeof value === "object" && value !== null && !Array.isArray(value));
const isSchemaList: Check = (value) =>
  Array.isArray(value) && value.length > 0 && value.every(isSchema);
const isSchemaMap: Check = (value) =>
  isSchema(value) && typeof value === "object" && Object.values(value as object).every(isSchema);
const isType: Check = (value) => TYPES.includes(value as TypeName);

const KEYWORDS: Readonly<Record<string, Check>> = {
  type: (value) =>
    isType(value) || (Array.isArray(value) && value.length > 0 && value.every(isType)),
  enum: (value) => Array.isArray(value) && value.length > 0,
  const: () => true,
  $ref: (value) => typeof value === "string",
  allOf: isSchemaList,
  anyOf: isSchemaList,
  oneOf: isSchemaList,
  properties: isSchemaMap,
  required: (value) => Array.isArray(value) && value.every((name) => typeof name === "string"),
  additionalProperties: isSchema,
  patternProperties: isSchemaMap,
  propertyNames: isSchema,
  minProperties: isCount,
  maxProperties: isCount,
  items: (value) => isSchema(value) || isSchemaList(value),
  prefixItems: isSchemaList,
  additionalItems: isSchema,
  minItems: isCount,
  maxItems: isCount,
  // False says nothing.
  uniqueItems: (value) => typeof value === "boolean",
  minLength: isCount,
  maxLength: isCount,
  pattern: (value) => typeof value === "string",
  format: (value) => typeof value === "string",
  minimum: isNumber,
  maximum: isNumber,
  // Draft 4 wrote booleans here, which would be read the wrong way round.
  exclusiveMinimum: isNumber,
  exclusiveMaximum: isNumber,
  multipleOf: (value) => isNumber(value) && (value as number) > 0,
};

/** Languages that a schema's strings may be in, by pattern. */
export class SchemaDocument {
  private readonly checked = new Set<SchemaObject>();
  private readonly patterns = new Map<string, Regex>();

  constructor(
    readonly root: Schema,
    private readonly regexes: Regexes,
  ) {}

  /** A schema without keywords that are not supported, or ill-formed. @throws ConstraintError naming the first one. */
  check(schema: SchemaObject): SchemaObject {
    if (this.checked.has(schema)) return schema;
    for (const [key, value] of Object.entries(schema)) {
      if (ANNOTATIONS.has(key) || key.startsWith("x-")) continue;
      if (!Object.hasOwn(KEYWORDS, key) || (key === "uniqueItems" && value === true))
        throw new ConstraintError(
          `schema: the keyword "${oneLine(key, 60)}" is not supported; leave it out, or say it with others`,
        );
      if (!KEYWORDS[key](value))
        throw new ConstraintError(
          `schema: "${key}" cannot be ${oneLine(JSON.stringify(value) ?? "undefined", 60)}`,
        );
    }
    this.checked.add(schema);
    return schema;
  }

  /** @throws ConstraintError when there is nothing at that place, or it is not in this document. */
  resolve(reference: string): Schema {
    if (!reference.startsWith("#"))
      throw new ConstraintError(
        `schema: $ref "${oneLine(reference, 80)}" leads out of the schema; put what it names under $defs`,
      );
    let place: unknown = this.root;
    for (const part of fragment(reference).split("/").slice(1)) {
      const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
      place =
        typeof place === "object" && place !== null && Object.hasOwn(place, key)
          ? (place as Record<string, unknown>)[key]
          : undefined;
    }
    if (!isSchema(place))
      throw new ConstraintError(`schema: $ref "${oneLine(reference, 80)}" names no schema`);
    return place as Schema;
  }

  pattern(source: string): Regex {
    let found = this.patterns.get(source);
    if (found === undefined)
      this.patterns.set(source, (found = parsePattern(this.regexes, source, "search")));
    return found;
  }

  /** The texts of a format; undefined for one that says nothing about texts. @throws ConstraintError for another one. */
  format(name: string): Regex | undefined {
    if (SILENT_FORMATS.has(name) || integerRange(name)) return undefined;
    if (!Object.hasOwn(FORMATS, name))
      throw new ConstraintError(
        `schema: the format "${oneLine(name, 60)}" is not supported; known are ${Object.keys(FORMATS).join(", ")}`,
      );
    return parsePattern(this.regexes, FORMATS[name], "whole");
  }
}

/** A JSON pointer of a reference. @throws ConstraintError where it is none. */
function fragment(reference: string): string {
  const pointer = reference.slice(1);
  try {
    if (pointer === "" || pointer.startsWith("/")) return decodeURIComponent(pointer);
  } catch {
    // Told below.
  }
  throw new ConstraintError(
    `schema: $ref "${oneLine(reference, 80)}" is no place in the schema; write it as "#/$defs/NAME"`,
  );
}

/** Typed views of keywords that `check` has let through. */
export const typesOf = ({ type }: SchemaObject): readonly TypeName[] | undefined =>
  type === undefined ? undefined : Array.isArray(type) ? (type as TypeName[]) : [type as TypeName];
export const listOf = (schema: SchemaObject, key: string): readonly Schema[] =>
  (schema[key] as Schema[] | undefined) ?? [];
export const mapOf = (schema: SchemaObject, key: string): Readonly<Record<string, Schema>> =>
  (schema[key] as Record<string, Schema> | undefined) ?? {};
export const requiredOf = (schema: SchemaObject): readonly string[] =>
  (schema["required"] as string[] | undefined) ?? [];
export const numberOf = (schema: SchemaObject, key: string): number | undefined =>
  schema[key] as number | undefined;
/** Literal values, where only some are allowed. */
export function literalsOf(schema: SchemaObject): readonly unknown[] | undefined {
  if (Object.hasOwn(schema, "const")) return [schema["const"]];
  return schema["enum"] as unknown[] | undefined;
}

/** Schemas of an array's first items, and of the rest, by either draft's keywords. */
export function itemsOf(schema: SchemaObject): { prefix: readonly Schema[]; rest: Schema } {
  const { items, prefixItems, additionalItems } = schema as Record<string, Schema | Schema[]>;
  if (Array.isArray(items))
    return { prefix: items, rest: (additionalItems as Schema | undefined) ?? true };
  return { prefix: (prefixItems as Schema[] | undefined) ?? [], rest: items ?? true };
}
