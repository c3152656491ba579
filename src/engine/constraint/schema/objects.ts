/** Objects of a set of schemas: named properties in their order, then others, with their number kept between bounds. */
import { ConstraintError } from "../contract.js";
import {
  EMPTY,
  either,
  NEVER,
  repeat,
  rule,
  sequence,
  text,
  type Expression,
} from "../expression.js";
import type { Regex } from "../regex/nodes.js";
import { propertySchemas } from "./accepts.js";
import { literalsOf, mapOf, numberOf, requiredOf, type Schema } from "./document.js";
import type { Demand, PartLowering, Wanted } from "./demands.js";

interface Property {
  readonly required: boolean;
  /** `"name": value`, without comma. */
  readonly pair: Expression;
}

/** Patterns of names that one object may have: each subset of them is a kind of name of its own. */
const MOST_PATTERNS = 5;
/** Rules that counting an object's properties may take. */
const MOST_COUNTED = 2000;

export function objectExpression(lowering: PartLowering, demands: readonly Demand[]): Expression {
  const { document, regexes } = lowering;
  const hosts = demands.filter(({ guest }) => !guest);
  const required = new Set(demands.flatMap(({ schema }) => requiredOf(schema)));
  const names = new Set(hosts.flatMap(({ schema }) => Object.keys(mapOf(schema, "properties"))));
  // An object that names some properties and says nothing of others has no others.
  const isClosed = hosts.some(
    ({ schema }) =>
      schema["additionalProperties"] === undefined &&
      schema["patternProperties"] === undefined &&
      Object.keys(mapOf(schema, "properties")).length > 0,
  );
  for (const name of required) {
    const isHosts = hosts.some(({ schema }) => requiredOf(schema).includes(name));
    if (names.has(name)) continue;
    // Another alternative asks for what this one does not write.
    if (isClosed && !isHosts) return NEVER;
    names.add(name);
  }
  const nameDemands = demands.flatMap(({ schema, guest }): Wanted[] =>
    schema["propertyNames"] === undefined
      ? []
      : [{ schema: schema["propertyNames"] as Schema, guest }],
  );
  const allowed = nameLanguage(lowering, nameDemands);
  const properties = [...names].map((name): Property => {
    const wanted = demands.flatMap(({ schema, guest }) =>
      propertySchemas(document, regexes, schema, name).map((each) => ({ schema: each, guest })),
    );
    const fits = allowed === undefined || isIn(lowering, allowed, name);
    const value = fits ? lowering.value(wanted) : NEVER;
    return { required: required.has(name), pair: pair(text(JSON.stringify(name)), value) };
  });
  const others = isClosed ? NEVER : otherProperties(lowering, demands, names, allowed);
  return braces(lowering, properties, others, {
    least: Math.max(0, ...demands.map(({ schema }) => numberOf(schema, "minProperties") ?? 0)),
    most: Math.min(
      Infinity,
      ...demands.map(({ schema }) => numberOf(schema, "maxProperties") ?? Infinity),
    ),
  });
}

const pair = (name: Expression, value: Expression): Expression =>
  sequence(name, text(":"), rule("ws"), value);

/** Names that `propertyNames` allow; undefined: any. */
function nameLanguage(lowering: PartLowering, wanted: readonly Wanted[]): Regex | undefined {
  if (wanted.length === 0) return undefined;
  const { regexes, document } = lowering;
  const parts = wanted.map(({ schema, guest }) => {
    if (typeof schema === "boolean") return schema ? regexes.any : regexes.none;
    document.check(schema);
    const unknown = Object.keys(schema).find((key) => !NAME_KEYWORDS.has(key));
    if (unknown !== undefined)
      throw new ConstraintError(
        `schema: "${unknown}" is not supported inside propertyNames; use pattern, minLength, maxLength, enum or const`,
      );
    const literals = literalsOf(schema);
    const listed =
      literals === undefined
        ? regexes.any
        : regexes.either(
            literals.flatMap((each) => (typeof each === "string" ? [regexes.text(each)] : [])),
          );
    return regexes.both([listed, lowering.strings([{ schema, guest }]) ?? regexes.any]);
  });
  return regexes.both(parts);
}

const NAME_KEYWORDS: ReadonlySet<string> = new Set([
  "type",
  "pattern",
  "minLength",
  "maxLength",
  "format",
  "enum",
  "const",
  "description",
  "title",
]);

function isIn({ regexes }: PartLowering, regex: Regex, name: string): boolean {
  let node = regex;
  for (const char of name) node = regexes.derive(node, char.codePointAt(0) ?? 0);
  return node.nullable;
}

/** One property that is not among `names`: names are told apart by the patterns that they match. */
function otherProperties(
  lowering: PartLowering,
  demands: readonly Demand[],
  names: ReadonlySet<string>,
  allowed: Regex | undefined,
): Expression {
  const { document, regexes } = lowering;
  const patterns = [
    ...new Set(demands.flatMap(({ schema }) => Object.keys(mapOf(schema, "patternProperties")))),
  ];
  if (patterns.length > MOST_PATTERNS)
    throw new ConstraintError(
      `schema: an object has ${patterns.length} patternProperties; at most ${MOST_PATTERNS} are supported`,
    );
  const unnamed = regexes.both([
    ...[...names].map((name) => regexes.not(regexes.text(name))),
    allowed ?? regexes.any,
  ]);
  const kinds: Expression[] = [];
  for (let subset = 0; subset < 1 << patterns.length; subset++) {
    const matched = patterns.filter((_, i) => (subset >> i) & 1);
    const wanted = demands.flatMap(({ schema, guest }): Wanted[] => {
      const own = mapOf(schema, "patternProperties");
      const found = matched.filter((pattern) => Object.hasOwn(own, pattern));
      if (found.length > 0) return found.map((pattern) => ({ schema: own[pattern], guest }));
      return [{ schema: (schema["additionalProperties"] as Schema | undefined) ?? true, guest }];
    });
    if (wanted.some(({ schema }) => schema === false)) continue;
    const name = regexes.both([
      unnamed,
      ...patterns.map((pattern, i) => {
        const language = document.pattern(pattern);
        return (subset >> i) & 1 ? language : regexes.not(language);
      }),
    ]);
    const key = name === regexes.any ? lowering.anyString() : lowering.quoted(name);
    kinds.push(pair(key, lowering.value(wanted)));
  }
  return either(kinds);
}

interface Bounds {
  readonly least: number;
  readonly most: number;
}

function braces(
  lowering: PartLowering,
  properties: readonly Property[],
  others: Expression,
  { least, most }: Bounds,
): Expression {
  const ws = rule("ws");
  const { rules } = lowering;
  const prefix = `o${rules.size}`;
  const needed = properties.filter(({ required }) => required).length;
  if (most < needed) return NEVER;
  // Where the required ones are enough and nothing is too many, nothing is counted.
  const counts = least > needed || most < Infinity;
  // So many are counted: from there on nothing that is asked for changes.
  const ceiling = Math.max(1, counts ? (most < Infinity ? most : least) : 1);
  if (counts && Math.min(ceiling, properties.length + 1) * properties.length > MOST_COUNTED)
    throw new ConstraintError(
      "schema: an object has too many properties for minProperties or maxProperties; leave these out",
    );
  const capped = (count: number): number => Math.min(count, ceiling);

  /** What may stand from property `i` on, when `count` stand already. */
  const from = (i: number, count: number): Expression => {
    const name = `${prefix}_${i}_${count}`;
    if (!rules.has(name)) {
      rules.set(name, NEVER);
      rules.set(name, i < properties.length ? property(i, count) : end(count));
    }
    return rule(name);
  };
  const comma = (count: number): Expression => (count > 0 ? sequence(text(","), ws) : EMPTY);
  const property = (i: number, count: number): Expression => {
    const { required, pair: written } = properties[i];
    const taken =
      counts && count >= most
        ? NEVER
        : sequence(comma(count), written, from(i + 1, capped(count + 1)));
    return required ? taken : either([taken, from(i + 1, count)]);
  };
  const end = (count: number): Expression => {
    const missing = counts ? Math.max(0, least - count) : 0;
    // Names beside the named ones may be equal to each other: of several, only one is certain to count.
    const room = counts ? most - count : Infinity;
    if (missing > 1 || missing > room) return NEVER;
    const more = (most: number): Expression => repeat(sequence(text(","), ws, others), 0, most);
    const some = room < 1 ? NEVER : sequence(comma(count), others, more(room - 1));
    return missing === 1 ? some : either([some, EMPTY]);
  };
  return sequence(text("{"), ws, from(0, 0), ws, text("}"));
}
