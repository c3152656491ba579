/** Jinja's filters, with transformers' own `tojson`. What is missing here is refused by name. */

import { item } from "./access.js";
import { bind, type Bound } from "./arguments.js";
import { capitalize, MAX_TEXT, replace, splitLines, strip } from "./methods.js";
import { binary } from "./operators.js";
import { formatPercent } from "./printf.js";
import { TESTS } from "./tests.js";
import {
  compare,
  equal,
  Float,
  Generator,
  isTrue,
  iterate,
  itemsOf,
  lengthOf,
  numeric,
  TemplateError,
  text,
  toJson,
  Tuple,
  typeName,
  Undefined,
  type Named,
  type Value,
} from "./values.js";

interface Filter {
  readonly parameters: readonly string[];
  readonly apply: (value: Value, args: Bound) => Value;
}

/** Applies a filter by name. @throws TemplateError for an unknown one */
export function applyFilter(
  name: string,
  value: Value,
  args: readonly Value[],
  named: Named,
): Value {
  const free = FREE.get(name);
  if (free) return free(value, args, named);
  const filter = FILTERS.get(name);
  if (!filter) throw new TemplateError(`the filter '${name}' is not implemented`);
  return filter.apply(value, bind(name, filter.parameters, args, named));
}

/** Applies a test by name. @throws TemplateError for an unknown one */
export function applyTest(name: string, value: Value, args: readonly Value[]): boolean {
  const test = TESTS.get(name);
  if (!test) throw new TemplateError(`the test '${name}' is not implemented`);
  return test(value, args);
}

/** What `attribute="a.b.0"` picks out of an item. */
function getter(attribute: Value, fallback?: Value): (value: Value) => Value {
  if (attribute === null) return (value) => value;
  const path: Value[] =
    typeof attribute === "string"
      ? attribute.split(".").map((part) => (/^\d+$/.test(part) ? Number(part) : part))
      : [attribute];
  return (value) =>
    path.reduce<Value>((object, key) => {
      const found = item(object, key);
      return found instanceof Undefined && fallback !== undefined ? fallback : found;
    }, value);
}

/** Text is compared without case unless asked for. */
function sortKey(args: Bound): (value: Value) => Value {
  const get = getter(args.get("attribute"));
  const sensitive = isTrue(args.get("case_sensitive", false));
  return (value) => {
    const key = get(value);
    return typeof key === "string" && !sensitive ? key.toLowerCase() : key;
  };
}

function sorted(items: readonly Value[], key: (value: Value) => Value, reverse: boolean): Value[] {
  const keyed = items.map((value) => [key(value), value] as const);
  keyed.sort(([a], [b]) => (reverse ? compare(b, a) : compare(a, b)));
  return keyed.map(([, value]) => value);
}

function extreme(value: Value, args: Bound, sign: 1 | -1): Value {
  const items = iterate(value);
  if (items.length === 0) return new Undefined("No aggregated item, sequence was empty: it");
  const key = sortKey(args);
  return items.reduce((best, next) => (sign * compare(key(next), key(best)) > 0 ? next : best));
}

function present(value: Value | undefined, problem: string): Value {
  return value === undefined ? new Undefined(`${problem}, sequence was empty: it`) : value;
}

/** `select`, `reject` and their attribute forms. */
function choosing(keep: boolean, byAttribute: boolean) {
  return (value: Value, args: readonly Value[]): Value => {
    const [attribute, ...rest] = byAttribute ? args : [null, ...args];
    if (attribute === undefined) throw new TemplateError("Missing parameter for attribute name");
    const get = getter(attribute);
    const [name, ...more] = rest;
    const holds = (candidate: Value): boolean =>
      name === undefined ? isTrue(candidate) : applyTest(text(name), candidate, more);
    return new Generator(iterate(value).filter((candidate) => holds(get(candidate)) === keep));
  };
}

function map(value: Value, args: readonly Value[], named: Named): Value {
  const items = iterate(value);
  if (args.length === 0) {
    const attribute = named.get("attribute");
    if (attribute === undefined) throw new TemplateError("map requires a filter argument");
    const get = getter(attribute, named.get("default"));
    return new Generator(items.map(get));
  }
  const [name, ...rest] = args;
  return new Generator(items.map((candidate) => applyFilter(text(name), candidate, rest, named)));
}

const FREE: ReadonlyMap<string, (value: Value, args: readonly Value[], named: Named) => Value> =
  new Map([
    ["map", map],
    ["select", choosing(true, false)],
    ["reject", choosing(false, false)],
    ["selectattr", choosing(true, true)],
    ["rejectattr", choosing(false, true)],
    ["format", (value, args, named) => {
      if (args.length > 0 && named.size > 0) throw new TemplateError("can't handle positional and keyword arguments at the same time");
      return formatPercent(text(value), named.size > 0 ? new Map(named) : new Tuple(args));
    }],
  ]); // prettier-ignore

function join(value: Value, args: Bound): string {
  const get = getter(args.get("attribute"));
  return iterate(value)
    .map((part) => text(get(part)))
    .join(text(args.get("d", "")));
}

function indent(value: Value, args: Bound): string {
  const width = args.get("width", 4);
  const by =
    typeof width === "string"
      ? width
      : " ".repeat(Math.min(args.integer("width", 4), MAX_TEXT >> 8));
  const lines = splitLines(`${text(value)}\n`);
  const blank = isTrue(args.get("blank", false));
  const result = lines
    .map((line, i) => (i === 0 || (line === "" && !blank) ? line : by + line))
    .join("\n");
  return isTrue(args.get("first", false)) ? by + result : result;
}

function toInteger(value: Value, args: Bound): Value {
  const fallback = args.get("default", 0);
  if (typeof value === "string") {
    const base = args.integer("base", 10);
    const digits = strip(value, null, true, true).replace(/(?<=[\da-f])_(?=[\da-f])/gi, "");
    const prefixed =
      base === 16
        ? digits.replace(/^([+-]?)0x/i, "$1")
        : base === 8
          ? digits.replace(/^([+-]?)0o/i, "$1")
          : base === 2
            ? digits.replace(/^([+-]?)0b/i, "$1")
            : digits;
    const allowed = "0123456789abcdefghijklmnopqrstuvwxyz".slice(0, base);
    if (new RegExp(`^[+-]?[${allowed}]+$`, "i").test(prefixed)) return parseInt(prefixed, base);
    const number = parseFloatStrictly(value);
    return number === undefined || !Number.isFinite(number) ? fallback : Math.trunc(number);
  }
  if (value instanceof Undefined) value.fail();
  const number = numeric(value);
  return number === undefined || !Number.isFinite(number) ? fallback : Math.trunc(number);
}

function parseFloatStrictly(value: string): number | undefined {
  const digits = strip(value, null, true, true).replace(/(?<=\d)_(?=\d)/g, "");
  if (/^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(digits)) return Number(digits);
  if (/^[+-]?inf(?:inity)?$/i.test(digits)) return digits.startsWith("-") ? -Infinity : Infinity;
  return /^[+-]?nan$/i.test(digits) ? NaN : undefined;
}

function toFloat(value: Value, args: Bound): Value {
  const number = typeof value === "string" ? parseFloatStrictly(value) : numeric(value);
  if (value instanceof Undefined) value.fail();
  return number === undefined ? args.get("default", new Float(0)) : new Float(number);
}

function round(value: Value, args: Bound): Value {
  const number = numeric(value);
  if (number === undefined) throw new TemplateError(`round takes a number, not ${typeName(value)}`);
  const precision = args.integer("precision", 0);
  const method = args.string("method", "common");
  if (!["common", "ceil", "floor"].includes(method))
    throw new TemplateError("method must be common, ceil or floor");
  if (method === "common") {
    // Whole numbers stay whole; halves go to the even side, by the number's exact digits.
    if (!(value instanceof Float))
      return typeof value === "boolean"
        ? Number(value)
        : precision < 0
          ? halfEven(number / 10 ** -precision) * 10 ** -precision
          : value;
    return new Float(
      precision > 0
        ? roundedDigits(number, precision)
        : halfEven(number * 10 ** precision) / 10 ** precision,
    );
  }
  const scale = 10 ** precision;
  return new Float(
    (method === "ceil" ? Math.ceil(number * scale) : Math.floor(number * scale)) / scale,
  );
}

function halfEven(number: number): number {
  const floor = Math.floor(number);
  const rest = number - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

/** `toFixed` works on the exact digits; only an exact half needs the even side. */
function roundedDigits(number: number, precision: number): number {
  if (precision > 17) return number;
  const scaled = number * 2 ** 17 * 10 ** 0;
  const isHalf =
    Number.isInteger(scaled) &&
    Number.isInteger(number * 10 ** precision * 2) &&
    !Number.isInteger(number * 10 ** precision);
  return isHalf
    ? halfEven(number * 10 ** precision) / 10 ** precision
    : Number(number.toFixed(precision));
}

function batches(value: Value, args: Bound): Value {
  const size = args.integer("linecount");
  if (size < 1) throw new TemplateError("batch takes a size of at least 1");
  const items = iterate(value);
  const rows: Value[] = [];
  for (let i = 0; i < items.length; i += size) {
    const row = items.slice(i, i + size);
    const fill = args.get("fill_with");
    rows.push(
      fill === null
        ? row.slice()
        : [...row, ...Array.from({ length: size - row.length }, () => fill)],
    );
  }
  return new Generator(rows);
}

function columns(value: Value, args: Bound): Value {
  const count = args.integer("slices");
  if (count < 1 || count > 10_000) throw new TemplateError("slice takes from 1 to 10000 slices");
  const items = iterate(value);
  const size = Math.floor(items.length / count);
  const larger = items.length % count;
  const fill = args.get("fill_with");
  let at = 0;
  return new Generator(
    Array.from({ length: count }, (_, i) => {
      const length = size + (i < larger ? 1 : 0);
      const column = items.slice(at, at + length);
      at += length;
      return fill !== null && i >= larger ? [...column, fill] : column.slice();
    }),
  );
}

function groups(value: Value, args: Bound): Value {
  const get = getter(
    args.required("attribute"),
    args.has("default") ? args.get("default") : undefined,
  );
  const sensitive = isTrue(args.get("case_sensitive", false));
  const key = (candidate: Value): Value => {
    const found = get(candidate);
    return typeof found === "string" && !sensitive ? found.toLowerCase() : found;
  };
  const result: { key: Value; items: Value[] }[] = [];
  for (const candidate of sorted(iterate(value), key, false)) {
    const last = result.at(-1);
    if (last && equal(last.key, key(candidate))) last.items.push(candidate);
    else result.push({ key: key(candidate), items: [candidate] });
  }
  return result.map((group) => new Tuple([get(group.items[0]), group.items]));
}

function unique(value: Value, args: Bound): Value {
  const key = sortKey(args);
  const seen: Value[] = [];
  return new Generator(
    iterate(value).filter((candidate) => {
      const found = key(candidate);
      if (seen.some((other) => equal(other, found))) return false;
      seen.push(found);
      return true;
    }),
  );
}

function truncate(value: Value, args: Bound): string {
  const all = Array.from(text(value));
  const length = args.integer("length", 255);
  const end = args.string("end", "...");
  if (all.length <= length + args.integer("leeway", 5)) return all.join("");
  const cut = all.slice(0, Math.max(0, length - Array.from(end).length)).join("");
  if (isTrue(args.get("killwords", false))) return cut + end;
  const space = cut.lastIndexOf(" ");
  return (space < 0 ? cut : cut.slice(0, space)) + end;
}

function json(value: Value, args: Bound): string {
  const given = args.get("indent");
  const by =
    typeof given === "string"
      ? given
      : given === null
        ? undefined
        : " ".repeat(Math.max(0, Math.min(args.integer("indent"), 1000)));
  const separators = args.get("separators");
  const pair =
    separators === null
      ? [by === undefined ? ", " : ",", ": "]
      : (itemsOf(separators) ?? []).map(text);
  if (pair.length !== 2) throw new TemplateError("tojson takes two separators");
  return toJson(value, {
    ensureAscii: isTrue(args.get("ensure_ascii", false)),
    indent: by,
    separators: [pair[0], pair[1]],
    sortKeys: isTrue(args.get("sort_keys", false)),
  });
}

function dictItems(value: Value): [Value, Value][] {
  if (value instanceof Undefined) return [];
  if (!(value instanceof Map)) throw new TemplateError("Can only get item pairs from a mapping.");
  return [...value];
}

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&#39;",
  '"': "&#34;",
};
const escape: Filter = {
  parameters: [],
  apply: (value) => text(value).replace(/[&<>'"]/g, (c) => ESCAPES[c]),
};
const fallback: Filter = {
  parameters: ["default_value", "boolean"],
  apply: (value, args) =>
    value instanceof Undefined || (isTrue(args.get("boolean", false)) && !isTrue(value))
      ? args.get("default_value", "")
      : value,
};
const length: Filter = { parameters: [], apply: lengthOf };
const onText = (change: (value: string) => Value): Filter => ({
  parameters: [],
  apply: (value) => change(text(value)),
});
const CASES = ["case_sensitive", "attribute"];

const FILTERS: ReadonlyMap<string, Filter> = new Map<string, Filter>([
  ["abs", { parameters: [], apply: (value) => {
    const number = numeric(value);
    if (number === undefined) throw new TemplateError(`bad operand type for abs(): '${typeName(value)}'`);
    return value instanceof Float ? new Float(Math.abs(number)) : Math.abs(number);
  } }],
  ["attr", { parameters: ["name"], apply: (value, args) => item(value instanceof Map ? null : value, args.required("name")) }],
  ["batch", { parameters: ["linecount", "fill_with"], apply: batches }],
  ["capitalize", onText(capitalize)],
  ["center", { parameters: ["width"], apply: (value, args) => {
    const all = text(value);
    const width = Math.min(args.integer("width", 80), MAX_TEXT >> 4);
    const missing = Math.max(0, width - Array.from(all).length);
    const left = Math.floor(missing / 2) + (missing & width & 1);
    return " ".repeat(left) + all + " ".repeat(missing - left);
  } }],
  ["default", fallback], ["d", fallback],
  ["dictsort", { parameters: ["case_sensitive", "by", "reverse"], apply: (value, args) => {
    const by = args.string("by", "key");
    if (by !== "key" && by !== "value") throw new TemplateError('You can only sort by either "key" or "value"');
    const sensitive = isTrue(args.get("case_sensitive", false));
    const at = by === "key" ? 0 : 1;
    const key = (pair: Value): Value => {
      const found = itemsOf(pair)?.[at] ?? null;
      return typeof found === "string" && !sensitive ? found.toLowerCase() : found;
    };
    return sorted(dictItems(value).map((pair) => new Tuple(pair)), key, isTrue(args.get("reverse", false)));
  } }],
  ["escape", escape], ["e", escape],
  ["first", { parameters: [], apply: (value) => present(value instanceof Generator ? value.next() : iterate(value)[0], "No first item") }],
  ["float", { parameters: ["default"], apply: toFloat }],
  ["groupby", { parameters: ["attribute", "default", "case_sensitive"], apply: groups }],
  ["indent", { parameters: ["width", "first", "blank"], apply: indent }],
  ["int", { parameters: ["default", "base"], apply: toInteger }],
  ["items", { parameters: [], apply: (value) => new Generator(dictItems(value).map((pair) => new Tuple(pair))) }],
  ["join", { parameters: ["d", "attribute"], apply: join }],
  ["last", { parameters: [], apply: (value) => {
    if (value instanceof Generator) throw new TemplateError("'generator' object is not reversible");
    return present(iterate(value).at(-1), "No last item");
  } }],
  ["length", length], ["count", length],
  ["list", { parameters: [], apply: (value) => [...iterate(value)] }],
  ["lower", onText((value) => value.toLowerCase())],
  ["max", { parameters: CASES, apply: (value, args) => extreme(value, args, 1) }],
  ["min", { parameters: CASES, apply: (value, args) => extreme(value, args, -1) }],
  ["replace", { parameters: ["old", "new", "count"], apply: (value, args) => replace(text(value), text(args.required("old")), text(args.required("new")), args.get("count") === null ? -1 : args.integer("count")) }],
  ["reverse", { parameters: [], apply: (value) => (typeof value === "string" ? Array.from(value).reverse().join("") : new Generator([...iterate(value)].reverse())) }],
  ["round", { parameters: ["precision", "method"], apply: round }],
  ["safe", { parameters: [], apply: (value) => value }],
  ["slice", { parameters: ["slices", "fill_with"], apply: columns }],
  ["sort", { parameters: ["reverse", "case_sensitive", "attribute"], apply: (value, args) => sorted(iterate(value), sortKey(args), isTrue(args.get("reverse", false))) }],
  ["string", onText((value) => value)],
  ["sum", { parameters: ["attribute", "start"], apply: (value, args) => iterate(value).map(getter(args.get("attribute"))).reduce((sum, next) => binary("+", sum, next), args.get("start", 0)) }],
  ["title", onText((value) => value.split(/([-\s({[<]+)/u).map(capitalize).join(""))],
  ["tojson", { parameters: ["ensure_ascii", "indent", "separators", "sort_keys"], apply: json }],
  ["trim", { parameters: ["chars"], apply: (value, args) => strip(text(value), args.stringOrNone("chars"), true, true) }],
  ["truncate", { parameters: ["length", "killwords", "end", "leeway"], apply: truncate }],
  ["unique", { parameters: CASES, apply: unique }],
  ["upper", onText((value) => value.toUpperCase())],
  ["urlencode", onText((value) => encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`).replaceAll("%2F", "/"))],
  ["wordcount", onText((value) => (value.match(/[\p{L}\p{N}\p{M}_]+/gu) ?? []).length)],
]); // prettier-ignore
