/** Whether a schema takes a value: for the values that an `enum` lists beside other keywords. */
import { isDeepStrictEqual } from "node:util";
import { ConstraintError } from "../contract.js";
import { matches } from "../regex/automaton.js";
import type { Regexes } from "../regex/nodes.js";
import {
  itemsOf,
  listOf,
  literalsOf,
  mapOf,
  numberOf,
  requiredOf,
  typesOf,
  type Schema,
  type SchemaDocument,
  type SchemaObject,
  type TypeName,
} from "./document.js";
import { integerRange } from "./formats.js";

/** References that may follow one another without a value getting smaller: more are a circle. */
const MOST_DEPTH = 100;

export class Acceptance {
  constructor(
    private readonly document: SchemaDocument,
    private readonly regexes: Regexes,
  ) {}

  accepts(schema: Schema, value: unknown, depth = 0): boolean {
    if (typeof schema === "boolean") return schema;
    if (depth > MOST_DEPTH)
      throw new ConstraintError("schema: its references go round in a circle");
    this.document.check(schema);
    const next = (each: Schema): boolean => this.accepts(each, value, depth + 1);
    const { $ref: reference } = schema;
    if (typeof reference === "string" && !next(this.document.resolve(reference))) return false;
    if (!listOf(schema, "allOf").every(next)) return false;
    if (schema["anyOf"] !== undefined && !listOf(schema, "anyOf").some(next)) return false;
    if (schema["oneOf"] !== undefined && listOf(schema, "oneOf").filter(next).length !== 1)
      return false;
    if (typesOf(schema)?.some((type) => isOfType(value, type)) === false) return false;
    const literals = literalsOf(schema);
    if (literals && !literals.some((literal) => isDeepStrictEqual(literal, value))) return false;
    if (typeof value === "number") return this.acceptsNumber(schema, value);
    if (typeof value === "string") return this.acceptsString(schema, value);
    if (Array.isArray(value)) return this.acceptsArray(schema, value, depth);
    if (typeof value === "object" && value !== null)
      return this.acceptsObject(schema, value as Record<string, unknown>, depth);
    return true;
  }

  private acceptsNumber(schema: SchemaObject, value: number): boolean {
    const range = integerRange(schema["format"]);
    if (range && !(value >= range[0] && value <= range[1])) return false;
    return (
      value >= (numberOf(schema, "minimum") ?? -Infinity) &&
      value <= (numberOf(schema, "maximum") ?? Infinity) &&
      value > (numberOf(schema, "exclusiveMinimum") ?? -Infinity) &&
      value < (numberOf(schema, "exclusiveMaximum") ?? Infinity) &&
      Number.isInteger(value / (numberOf(schema, "multipleOf") ?? value))
    );
  }

  private acceptsString(schema: SchemaObject, value: string): boolean {
    const length = Array.from(value).length;
    const { pattern, format } = schema;
    const fits = (regex: ReturnType<SchemaDocument["format"]>): boolean =>
      regex === undefined || matches(this.regexes, regex, value);
    return (
      length >= (numberOf(schema, "minLength") ?? 0) &&
      length <= (numberOf(schema, "maxLength") ?? Infinity) &&
      (typeof pattern !== "string" || fits(this.document.pattern(pattern))) &&
      (typeof format !== "string" || fits(this.document.format(format)))
    );
  }

  private acceptsArray(schema: SchemaObject, value: readonly unknown[], depth: number): boolean {
    const { prefix, rest } = itemsOf(schema);
    return (
      value.length >= (numberOf(schema, "minItems") ?? 0) &&
      value.length <= (numberOf(schema, "maxItems") ?? Infinity) &&
      value.every((item, i) => this.accepts(prefix[i] ?? rest, item, depth + 1))
    );
  }

  private acceptsObject(
    schema: SchemaObject,
    value: Readonly<Record<string, unknown>>,
    depth: number,
  ): boolean {
    const names = Object.keys(value);
    return (
      names.length >= (numberOf(schema, "minProperties") ?? 0) &&
      names.length <= (numberOf(schema, "maxProperties") ?? Infinity) &&
      requiredOf(schema).every((name) => Object.hasOwn(value, name)) &&
      names.every(
        (name) =>
          this.accepts((schema["propertyNames"] as Schema | undefined) ?? true, name, depth + 1) &&
          propertySchemas(this.document, this.regexes, schema, name).every((each) =>
            this.accepts(each, value[name], depth + 1),
          ),
      )
    );
  }
}

/** What one schema says of the property of a name: its own entry and every pattern's, else what it says of others. */
export function propertySchemas(
  document: SchemaDocument,
  regexes: Regexes,
  schema: SchemaObject,
  name: string,
): readonly Schema[] {
  const own = mapOf(schema, "properties");
  const found = Object.hasOwn(own, name) ? [own[name]] : [];
  for (const [pattern, each] of Object.entries(mapOf(schema, "patternProperties")))
    if (matches(regexes, document.pattern(pattern), name)) found.push(each);
  if (found.length > 0) return found;
  return [(schema["additionalProperties"] as Schema | undefined) ?? true];
}

export function isOfType(value: unknown, type: TypeName): boolean {
  switch (type) {
    case "null":
      return value === null;
    case "array":
      return Array.isArray(value);
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
    case "integer":
      return Number.isInteger(value);
    default:
      return typeof value === type;
  }
}
