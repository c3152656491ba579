/**
 * Python's values as templates see them: text, truth, equality, order, iteration and JSON. Strings, booleans, null
 * (None) and whole numbers are JavaScript's own, lists are arrays, dicts are maps.
 */

/** A template that cannot be read, or that fails while it is rendered. */
export class TemplateError extends Error {}

export const BEYOND_INTEGERS = "integers beyond 2^53 are not implemented";

export type Value =
  | string
  | number
  | boolean
  | null
  | Float
  | Undefined
  | Tuple
  | View
  | Generator
  | Namespace
  | Callable
  | Value[]
  | Dict;

export type Dict = Map<Key, Value>;
export type Key = string | number | null;

/** A floating-point number; a JavaScript number is an int. */
export class Float {
  constructor(readonly value: number) {}
}

/** What a name or attribute that is not there gives: empty as text, and an error when anything is asked of it. */
export class Undefined {
  constructor(readonly what: string) {}
  fail(): never {
    throw new TemplateError(`${this.what} is undefined`);
  }
}

export class Tuple {
  constructor(readonly items: readonly Value[]) {}
}

/** What a dict's methods and `range` give: gone through as often as wanted, and written as what made it. */
export class View {
  constructor(
    readonly type: "dict_keys" | "dict_values" | "dict_items" | "range",
    readonly items: readonly Value[],
    /** What the text shows in brackets. */
    readonly shown: () => string = () => repr([...items]),
  ) {}
}

/** What filters such as `map` give: gone through once, always true, and without a length. */
export class Generator {
  #items: readonly Value[];
  constructor(items: readonly Value[]) {
    this.#items = items;
  }
  take(): readonly Value[] {
    const items = this.#items;
    this.#items = [];
    return items;
  }
  /** The next item alone. */
  next(): Value | undefined {
    const [first, ...rest] = this.#items;
    this.#items = rest;
    return first;
  }
}

/** An object whose attributes templates read, and in a `namespace` also write. */
export class Namespace {
  constructor(
    readonly attributes: Map<string, Value>,
    readonly writable = true,
  ) {}
}

/** Arguments by name. */
export type Named = ReadonlyMap<string, Value>;

export class Callable {
  constructor(
    readonly name: string,
    readonly call: (args: readonly Value[], named: Named) => Value,
    /** Attributes, as `loop` has them beside being called. */
    readonly attributes?: ReadonlyMap<string, Value>,
  ) {}
}

/** The name of a value's type in Python, for errors. */
export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  switch (typeof value) {
    case "string":
      return "str";
    case "number":
      return "int";
    case "boolean":
      return "bool";
  }
  if (Array.isArray(value)) return "list";
  if (value instanceof Map) return "dict";
  if (value instanceof Float) return "float";
  if (value instanceof Tuple) return "tuple";
  if (value instanceof View) return value.type;
  if (value instanceof Generator) return "generator";
  if (value instanceof Namespace) return "Namespace";
  return value instanceof Undefined ? "Undefined" : "function";
}

export function isTrue(value: Value): boolean {
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  if (value instanceof Float) return value.value !== 0;
  if (value instanceof Tuple || value instanceof View) return value.items.length > 0;
  if (value instanceof Undefined) return false;
  return typeof value === "object" && value !== null ? true : Boolean(value);
}

/** A number's value, or undefined for what is none. Booleans are numbers, as in Python. */
export function numeric(value: Value): number | undefined {
  if (typeof value === "number") return value;
  if (typeof value === "boolean") return value ? 1 : 0;
  return value instanceof Float ? value.value : undefined;
}

export function itemsOf(value: Value): readonly Value[] | undefined {
  if (Array.isArray(value)) return value;
  return value instanceof Tuple ? value.items : undefined;
}

/** Everything that a loop over the value goes through. @throws TemplateError for what is not iterable */
export function iterate(value: Value): readonly Value[] {
  const items = value instanceof View ? value.items : itemsOf(value);
  if (items) return items;
  if (typeof value === "string") return Array.from(value);
  if (value instanceof Map) return [...value.keys()];
  if (value instanceof Generator) return value.take();
  if (value instanceof Undefined) return [];
  throw new TemplateError(`'${typeName(value)}' object is not iterable`);
}

/** @throws TemplateError for what has no length */
export function lengthOf(value: Value): number {
  const items = value instanceof View ? value.items : itemsOf(value);
  if (items) return items.length;
  if (typeof value === "string") return Array.from(value).length;
  if (value instanceof Map) return value.size;
  if (value instanceof Undefined) return 0;
  throw new TemplateError(`object of type '${typeName(value)}' has no len()`);
}

export function equal(a: Value, b: Value): boolean {
  const x = numeric(a);
  const y = numeric(b);
  if (x !== undefined || y !== undefined) return x === y;
  if (a === b) return true;
  if (a instanceof Undefined) return b instanceof Undefined;
  if (Array.isArray(a)) return Array.isArray(b) && equalLists(a, b);
  if (a instanceof Tuple) return b instanceof Tuple && equalLists(a.items, b.items);
  if (a instanceof View && b instanceof View && a.type === b.type) {
    if (a.type === "range") return equalLists(a.items, b.items);
    // As sets; values are equal to themselves alone.
    return a.type !== "dict_values" && equalSets(a.items, b.items);
  }
  if (a instanceof Map && b instanceof Map) {
    return (
      a.size === b.size &&
      [...a].every(([key, value]) => b.has(key) && equal(value, b.get(key) as Value))
    );
  }
  return false;
}

function equalSets(a: readonly Value[], b: readonly Value[]): boolean {
  return a.length === b.length && a.every((item) => b.some((other) => equal(item, other)));
}

function equalLists(a: readonly Value[], b: readonly Value[]): boolean {
  return a.length === b.length && a.every((item, i) => equal(item, b[i]));
}

/** Below 0, 0 or above, as `a` is less than, equal to or greater than `b`. @throws TemplateError without an order */
export function compare(a: Value, b: Value, operator = "<"): number {
  const x = numeric(a);
  const y = numeric(b);
  if (x !== undefined && y !== undefined) return x - y;
  if (typeof a === "string" && typeof b === "string") return compareText(a, b);
  const left = itemsOf(a);
  const right = itemsOf(b);
  if (left && right && Array.isArray(a) === Array.isArray(b)) {
    for (let i = 0; i < Math.min(left.length, right.length); i++) {
      if (!equal(left[i], right[i])) return compare(left[i], right[i], operator);
    }
    return left.length - right.length;
  }
  if (a instanceof Undefined) a.fail();
  if (b instanceof Undefined) b.fail();
  throw new TemplateError(
    `'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`,
  );
}

/** By code points, where JavaScript compares UTF-16 units. */
function compareText(a: string, b: string): number {
  const left = Array.from(a, (c) => c.codePointAt(0) as number);
  const right = Array.from(b, (c) => c.codePointAt(0) as number);
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    if (left[i] !== right[i]) return left[i] - right[i];
  }
  return left.length - right.length;
}

/** The key that a value is in a dict. @throws TemplateError for what cannot be one */
export function keyOf(value: Value): Key {
  if (value === null || typeof value === "string") return value;
  // True and 1 are one key in Python, and the first spelling stays.
  const number = typeof value === "boolean" ? undefined : numeric(value);
  if (number !== undefined && Number.isInteger(number)) return number;
  throw new TemplateError(`a '${typeName(value)}' as a dict's key is not implemented`);
}

/** A value as output writes it: Python's `str`. */
export function text(value: Value): string {
  if (typeof value === "string") return value;
  return value instanceof Undefined ? "" : repr(value);
}

/** Python's `repr`. */
export function repr(value: Value): string {
  if (typeof value === "string") return reprString(value);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return integerText(value);
  if (value instanceof Float) return floatText(value.value);
  if (value instanceof Undefined) return "Undefined";
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Tuple) {
    return `(${value.items.map(repr).join(", ")}${value.items.length === 1 ? "," : ""})`;
  }
  if (value instanceof View) return `${value.type}(${value.shown()})`;
  if (value instanceof Map) {
    return `{${[...value].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(", ")}}`;
  }
  throw new TemplateError(`the text of a ${typeName(value)} is not implemented`);
}

function integerText(value: number): string {
  return Number.isSafeInteger(value) ? String(value) : BigInt(Math.trunc(value)).toString();
}

function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Object.is(value, -0)) return "-0.0";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
    return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
  }
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

const REPR_ESCAPES: Readonly<Record<string, string>> = {
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};

function reprString(value: string): string {
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  let result = "";
  for (const c of value) {
    if (c === quote) result += `\\${c}`;
    else if (REPR_ESCAPES[c]) result += REPR_ESCAPES[c];
    else if (c !== " " && /[\p{C}\p{Z}]/u.test(c)) {
      const code = c.codePointAt(0) as number;
      const hex = (length: number): string => code.toString(16).padStart(length, "0");
      result += code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
    } else result += c;
  }
  return quote + result + quote;
}

export interface JsonOptions {
  readonly ensureAscii: boolean;
  /** What a level is indented by, or undefined for one line. */
  readonly indent: string | undefined;
  readonly separators: readonly [string, string];
  readonly sortKeys: boolean;
}

/** Python's `json.dumps`. @throws TemplateError for what JSON has not */
export function toJson(value: Value, options: JsonOptions, depth = 0): string {
  const { indent, separators } = options;
  const list = (open: string, parts: readonly string[], close: string): string => {
    if (parts.length === 0) return open + close;
    if (indent === undefined) return open + parts.join(separators[0]) + close;
    const line = `\n${indent.repeat(depth + 1)}`;
    return `${open}${line}${parts.join(separators[0] + line)}\n${indent.repeat(depth)}${close}`;
  };
  if (typeof value === "string") return jsonString(value, options.ensureAscii);
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "number") return integerText(value);
  if (value instanceof Float) {
    const { value: number } = value;
    return Number.isNaN(number)
      ? "NaN"
      : Number.isFinite(number)
        ? floatText(number)
        : number > 0
          ? "Infinity"
          : "-Infinity";
  }
  const items = itemsOf(value);
  if (items)
    return list(
      "[",
      items.map((item) => toJson(item, options, depth + 1)),
      "]",
    );
  if (value instanceof Map) {
    const entries = [...value].map(([key, item]): [string, Value] => [
      typeof key === "string" ? key : toJson(key, options),
      item,
    ]);
    if (options.sortKeys) entries.sort(([a], [b]) => compareText(a, b));
    const parts = entries.map(
      ([key, item]) =>
        jsonString(key, options.ensureAscii) + separators[1] + toJson(item, options, depth + 1),
    );
    return list("{", parts, "}");
  }
  throw new TemplateError(`Object of type ${typeName(value)} is not JSON serializable`);
}

function jsonString(value: string, ensureAscii: boolean): string {
  const json = JSON.stringify(value);
  if (!ensureAscii) return json;
  return json.replace(/[\x7f-\uffff]/g, (c) =>
    c === "\x7f" ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** A JavaScript value (of a parsed request) as a template's. */
export function fromJavaScript(value: unknown): Value {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (value === undefined) return new Undefined("the value");
  if (typeof value === "number") return Number.isInteger(value) ? value : new Float(value);
  if (Array.isArray(value)) return value.map(fromJavaScript);
  if (typeof value === "object") {
    return new Map(
      Object.entries(value)
        .filter(([, item]) => item !== undefined)
        .map(([key, item]) => [key, fromJavaScript(item)]),
    );
  }
  throw new TemplateError(`a ${typeof value} cannot be given to a template`);
}
