/**
 * From a JSON Schema to a grammar of the JSON that it accepts. The unit of work is a set of schemas that one value must
 * satisfy together, so that `allOf`, `$ref` with neighbours and what several schemas say of one property need no rules of
 * their own; each set becomes one rule, which is how references may go round.
 *
 * Where a schema leaves room, the narrower reading is written: an object with named properties and no word on others has
 * no others, a schema without type has the type that its keywords speak of, keys stand in the schema's order, and strings
 * that are held to something use no needless escapes. Everything written is accepted; not everything accepted is written.
 */
import { ConstraintError } from "../contract.js";
import {
  EMPTY,
  either,
  inJson,
  NEVER,
  oneChar,
  oneOf,
  optional,
  plainly,
  productiveRules,
  repeat,
  rule,
  runRules,
  sequence,
  text,
  type Expression,
  type Rules,
} from "../expression.js";
import { languageExpression } from "../language.js";
import { isEmpty } from "../regex/automaton.js";
import { complement, normalize } from "../regex/ranges.js";
import { Regexes, type Regex } from "../regex/nodes.js";
import { writeRules, type WrittenGrammar } from "../write.js";
import { Acceptance } from "./accepts.js";
import type { Demand, PartLowering, Wanted } from "./demands.js";
import {
  itemsOf,
  listOf,
  literalsOf,
  numberOf,
  SchemaDocument,
  TYPES,
  typesOf,
  type Schema,
  type SchemaObject,
  type TypeName,
} from "./document.js";
import { integerRange } from "./formats.js";
import { numberRegex } from "./numbers.js";
import { objectExpression } from "./objects.js";

/** Rules that one schema may become. */
const MOST_RULES = 20_000;
/** States of one pattern's automaton that are tried to find out whether anything fits. */
const MOST_STATES = 5000;

/** Demands without references and combinations, then the alternatives of which one each must hold. */
interface Expanded {
  readonly plain: readonly Demand[];
  readonly choices: readonly Choice[];
  /** No value satisfies them. */
  readonly never: boolean;
}

interface Choice {
  readonly key: "anyOf" | "oneOf";
  readonly options: readonly Schema[];
  readonly guest: boolean;
}

/** A grammar of JSON that the schema accepts. @throws ConstraintError, TooComplex */
export function schemaGrammar(schema: Schema): WrittenGrammar {
  const rules = schemaRules(schema);
  return writeRules(rules, "start", productiveRules(rules));
}

/** Rules of JSON that the schema and, if given, `also` accept; texts are of `start`. @throws ConstraintError, TooComplex */
export function schemaRules(schema: Schema, also: Schema = true): Rules {
  return new Lowering(schema).lower(also);
}

class Lowering implements PartLowering {
  readonly regexes = new Regexes();
  readonly rules: Rules = new Map();
  readonly document: SchemaDocument;
  private readonly acceptance: Acceptance;
  private readonly names = new Map<object, number>();
  private readonly languages = new Map<string, Expression>();
  /** Rules that must have no text: values that two alternatives of a `oneOf` would both take. */
  private readonly mustBeEmpty: { readonly name: string; readonly what: string }[] = [];

  constructor(private readonly root: Schema) {
    this.document = new SchemaDocument(root, this.regexes);
    this.acceptance = new Acceptance(this.document, this.regexes);
    // Between tokens nothing, a blank, or a new line with its indentation: what people write, and nothing endless.
    this.rules.set(
      "ws",
      optional(
        either([
          text(" "),
          sequence(text("\n"), repeat({ kind: "class", ranges: [[0x20, 0x20]] }, 0, 32)),
        ]),
      ),
    );
  }

  lower(also: Schema): Rules {
    const root = this.value([this.root, also].map((schema) => ({ schema, guest: false })));
    this.rules.set("start", root);
    const productive = productiveRules(this.rules);
    for (const { name, what } of this.mustBeEmpty)
      if (productive.has(name)) throw new ConstraintError(what);
    if (!productive.has("start"))
      throw new ConstraintError("schema: no value can be written that satisfies it");
    return this.rules;
  }

  /** What satisfies all of some schemas. */
  value(wanted: readonly Wanted[]): Expression {
    const expanded = this.expand(wanted);
    if (expanded.never) return NEVER;
    const key = this.keyOf(expanded);
    const name = `v${key}`;
    if (!this.rules.has(name)) {
      if (this.rules.size >= MOST_RULES)
        throw new ConstraintError(
          `schema: it needs more than ${MOST_RULES} rules; make it simpler`,
        );
      // Its place is taken first: it may ask for itself.
      this.rules.set(name, NEVER);
      this.rules.set(name, this.body(expanded, name));
    }
    return rule(name);
  }

  /** An expression for a language of characters, shared by all that ask for it. */
  language(regex: Regex, spelling: "json" | "plain"): Expression {
    const key = `${spelling}${regex.id}`;
    let found = this.languages.get(key);
    if (found === undefined) {
      const name = `t${this.languages.size}`;
      found = languageExpression(
        this.regexes,
        this.rules,
        name,
        regex,
        spelling === "json" ? inJson : plainly,
        // Ours, of numbers, are not ambiguous as they are.
        spelling === "plain",
      );
      this.rules.set(name, found);
      this.languages.set(key, (found = rule(name)));
    }
    return found;
  }

  private expand(wanted: readonly Wanted[]): Expanded {
    const plain = new Map<string, Demand>();
    const choices: Choice[] = [];
    const seen = new Set<string>();
    let never = false;
    const visit = ({ schema, guest }: Wanted): void => {
      if (schema === true) return;
      if (schema === false) {
        never = true;
        return;
      }
      const name = `${this.nameOf(schema)}${guest ? "g" : ""}`;
      if (seen.has(name)) return;
      seen.add(name);
      this.document.check(schema);
      const { $ref: reference } = schema;
      if (typeof reference === "string") visit({ schema: this.document.resolve(reference), guest });
      for (const each of listOf(schema, "allOf")) visit({ schema: each, guest });
      for (const key of ["anyOf", "oneOf"] as const)
        if (schema[key] !== undefined) choices.push({ key, options: listOf(schema, key), guest });
      if (Object.keys(schema).some((key) => !COMBINING.has(key)))
        plain.set(name, { schema, guest });
    };
    for (const each of wanted) visit(each);
    return { plain: [...plain.values()], choices, never };
  }

  private nameOf(schema: object): number {
    let found = this.names.get(schema);
    if (found === undefined) this.names.set(schema, (found = this.names.size));
    return found;
  }

  private keyOf({ plain, choices }: Expanded): string {
    const parts = [
      ...plain.map(({ schema, guest }) => `${this.nameOf(schema)}${guest ? "g" : ""}`),
      ...choices.map(
        ({ key, options, guest }) => `${key[0]}${this.nameOf(options)}${guest ? "g" : ""}`,
      ),
    ];
    return [...new Set(parts)].sort().join("_") || "any";
  }

  private body({ plain, choices }: Expanded, name: string): Expression {
    const [choice, ...others] = choices;
    if (choice === undefined) return this.plainValue(plain);
    const { options, guest } = choice;
    // The other demands as schemas, so that each option is taken together with them.
    const context: Wanted[] = [
      ...plain.map(({ schema, guest: own }) => ({
        schema: withoutCombinations(schema, this),
        guest: own,
      })),
      ...others.map((each) => ({ schema: this.choiceSchema(each), guest: each.guest })),
    ];
    if (choice.key === "oneOf" && !guest) this.tellApart(options, context, name);
    return either(options.map((schema) => this.value([...context, { schema, guest }])));
  }

  private readonly choiceSchemas = new Map<object, SchemaObject>();
  private readonly strippedSchemas = new Map<object, SchemaObject>();

  private choiceSchema({ key, options }: Choice): SchemaObject {
    let found = this.choiceSchemas.get(options);
    if (found === undefined) this.choiceSchemas.set(options, (found = { [key]: options }));
    return found;
  }

  /** A schema's own keywords only; always the same object for one schema. */
  stripped(schema: SchemaObject): SchemaObject {
    let found = this.strippedSchemas.get(schema);
    if (found === undefined) {
      const entries = Object.entries(schema).filter(([key]) => !COMBINING.has(key));
      found = entries.length === Object.keys(schema).length ? schema : Object.fromEntries(entries);
      this.strippedSchemas.set(schema, found);
    }
    return found;
  }

  /** What is written for one alternative of a `oneOf` must not satisfy another one. */
  private tellApart(options: readonly Schema[], context: readonly Wanted[], name: string): void {
    options.forEach((schema, i) =>
      options.forEach((other, j) => {
        if (i === j) return;
        const both = this.value([
          ...context,
          { schema, guest: false },
          { schema: other, guest: true },
        ]);
        const check = `${name}_apart_${i}_${j}`;
        this.rules.set(check, both);
        this.mustBeEmpty.push({
          name: check,
          what: `schema: alternatives ${Math.min(i, j)} and ${Math.max(i, j)} of a oneOf can both accept a value; tell them apart, or use anyOf`,
        });
      }),
    );
  }

  private plainValue(demands: readonly Demand[]): Expression {
    const literals = demands.map(({ schema }) => literalsOf(schema)).find((list) => list);
    if (literals) {
      const fitting = literals.filter((value) =>
        demands.every(({ schema }) => this.acceptance.accepts(this.stripped(schema), value)),
      );
      return either(fitting.map((value) => text(JSON.stringify(value))));
    }
    return either(this.typesOf(demands).map((type) => this.ofType(type, demands)));
  }

  /** Types that all demands allow; where none names any, those that their keywords speak of. */
  private typesOf(demands: readonly Demand[]): readonly TypeName[] {
    let types: readonly TypeName[] = TYPES;
    let named = false;
    for (const { schema } of demands) {
      const own = typesOf(schema);
      if (!own) continue;
      named = true;
      types = types.filter(
        (type) => own.includes(type) || (type === "integer" && own.includes("number")),
      );
    }
    // Integers are numbers: one of the two is enough, unless only integers are meant.
    if (types.includes("number")) types = types.filter((type) => type !== "integer");
    if (named) return types;
    const spoken = types.filter((type) =>
      demands.some(({ schema, guest }) => !guest && SPEAKS_OF[type].some((key) => key in schema)),
    );
    return spoken.length > 0 ? spoken : types;
  }

  private ofType(type: TypeName, demands: readonly Demand[]): Expression {
    switch (type) {
      case "null":
        return text("null");
      case "boolean":
        return either([text("true"), text("false")]);
      case "integer":
      case "number":
        return this.number(type === "integer", demands);
      case "string":
        return this.string(demands);
      case "array":
        return this.array(demands);
      case "object":
        return objectExpression(this, demands);
    }
  }

  private number(integer: boolean, demands: readonly Demand[]): Expression {
    const values = (key: string): number[] =>
      demands.flatMap(({ schema }) => numberOf(schema, key) ?? []);
    const formats = demands.flatMap(({ schema }) => {
      const range = integerRange(schema["format"]);
      return range ? [range] : [];
    });
    const [min, aboveMin] = tightest(
      [...values("minimum"), ...formats.map(([low]) => low)],
      values("exclusiveMinimum"),
      Math.max,
      -Infinity,
    );
    const [max, belowMax] = tightest(
      [...values("maximum"), ...formats.map(([, high]) => high)],
      values("exclusiveMaximum"),
      Math.min,
      Infinity,
    );
    if (min > max || (min === max && (aboveMin || belowMax))) return NEVER;
    const divisors = values("multipleOf").filter((divisor) => !(integer && divisor === 1));
    const isInteger = integer || formats.length > 0;
    const bounds = { integer: isInteger, min, max, aboveMin, belowMax, divisors };
    return this.language(numberRegex(this.regexes, bounds), "plain");
  }

  /** The texts that strings may have; undefined: any. */
  strings(demands: readonly Demand[]): Regex | undefined {
    const { regexes } = this;
    const patterns = demands.flatMap(({ schema: { pattern } }) =>
      typeof pattern === "string" ? [this.document.pattern(pattern)] : [],
    );
    const formats = demands.flatMap(({ schema: { format } }) =>
      typeof format === "string" ? (this.document.format(format) ?? []) : [],
    );
    const least = Math.max(0, ...demands.map(({ schema }) => numberOf(schema, "minLength") ?? 0));
    const most = Math.min(
      ...demands.map(({ schema }) => numberOf(schema, "maxLength") ?? Infinity),
      Infinity,
    );
    if (patterns.length === 0 && formats.length === 0 && least === 0 && most === Infinity)
      return undefined;
    if (least > most) return regexes.none;
    const length = regexes.repeat(regexes.anyChar, least, most);
    const narrow = regexes.both([...patterns, ...formats, length]);
    // A format is an annotation: where the pattern beside it means something else, the pattern decides.
    if (patterns.length > 0 && formats.length > 0 && isEmpty(regexes, narrow, MOST_STATES))
      return regexes.both([...patterns, length]);
    return narrow;
  }

  private string(demands: readonly Demand[]): Expression {
    const regex = this.strings(demands);
    return regex === undefined ? this.anyString() : this.quoted(regex);
  }

  quoted(regex: Regex): Expression {
    return sequence(text('"'), this.language(regex, "json"), text('"'));
  }

  anyString(): Expression {
    if (!this.rules.has("string")) {
      const hex = oneChar([
        [0x30, 0x39],
        [0x41, 0x46],
        [0x61, 0x66],
      ]);
      // Not the halves of surrogate pairs (d800 to dfff).
      const first = oneChar([
        [0x30, 0x39],
        [0x41, 0x43],
        [0x45, 0x46],
        [0x61, 0x63],
        [0x65, 0x66],
      ]);
      const high = either([sequence(first, hex), sequence(oneOf("Dd"), oneOf("01234567"))]);
      const unicode = sequence(text("u"), high, hex, hex);
      const direct = complement(
        normalize([
          [0, 0x1f],
          [0x22, 0x22],
          [0x5c, 0x5c],
        ]),
      );
      const escaped = sequence(text("\\"), either([oneOf('"/\\bfnrt'), unicode]));
      const run = runRules(this.rules, "chars", { direct, escaped: [escaped] }, 0);
      this.rules.set("string", sequence(text('"'), run, text('"')));
    }
    return rule("string");
  }

  private array(demands: readonly Demand[]): Expression {
    const items = demands.map(({ schema, guest }) => ({ ...itemsOf(schema), guest }));
    const itemAt = (i: number): Expression =>
      this.value(items.map(({ prefix, rest, guest }) => ({ schema: prefix[i] ?? rest, guest })));
    const least = Math.max(0, ...demands.map(({ schema }) => numberOf(schema, "minItems") ?? 0));
    const most = Math.min(
      ...demands.map(({ schema }) => numberOf(schema, "maxItems") ?? Infinity),
      Infinity,
    );
    if (least > most) return NEVER;
    const ws = rule("ws");
    const next = (item: Expression): Expression => sequence(text(","), ws, item);
    const prefix = Math.max(0, ...items.map((each) => each.prefix.length));
    // From the back: what may follow once so many items stand.
    let tail: Expression = EMPTY;
    for (let i = Math.max(prefix, 1); i >= 1; i--) {
      if (i === Math.max(prefix, 1)) {
        const more = next(itemAt(i));
        tail = i >= most ? EMPTY : repeat(more, Math.max(0, least - i), most - i);
      } else {
        const more = i >= most ? NEVER : sequence(next(itemAt(i)), tail);
        tail = i >= least ? optional(more) : more;
      }
    }
    const some = most > 0 ? [sequence(itemAt(0), tail, ws)] : [];
    return sequence(text("["), ws, either(least === 0 ? [...some, EMPTY] : some), text("]"));
  }
}

const COMBINING: ReadonlySet<string> = new Set(["$ref", "allOf", "anyOf", "oneOf"]);

const SPEAKS_OF: Readonly<Record<TypeName, readonly string[]>> = {
  null: [],
  boolean: [],
  integer: [],
  number: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
  string: ["minLength", "maxLength", "pattern", "format"],
  array: ["items", "prefixItems", "additionalItems", "minItems", "maxItems"],
  object: [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
  ],
};

function withoutCombinations(schema: SchemaObject, lowering: Lowering): SchemaObject {
  return lowering.stripped(schema);
}

/** The bound that leaves least, and whether it is itself left out. */
function tightest(
  inclusive: readonly number[],
  exclusive: readonly number[],
  pick: (...values: number[]) => number,
  open: number,
): [value: number, isOut: boolean] {
  const value = pick(open, ...inclusive, ...exclusive);
  return [value, exclusive.includes(value)];
}
