/** Methods of Python's strings, lists and dicts that templates call. Those that change a value are refused, as the sandbox does. */

import { bind, type Bound } from "./arguments.js";
import { PYTHON_SPACE } from "./lexer.js";
import { formatBraces } from "./printf.js";
import {
  Callable,
  equal,
  itemsOf,
  iterate,
  keyOf,
  TemplateError,
  Tuple,
  typeName,
  Undefined,
  View,
  type Dict,
  type Value,
} from "./values.js";

interface Method<T> {
  readonly parameters: readonly string[];
  readonly call: (self: T, args: Bound) => Value;
}

const SPACES = new RegExp(`${PYTHON_SPACE}+`);
const UNSAFE_LIST = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const UNSAFE_DICT = ["clear", "pop", "popitem", "setdefault", "update"];
/** Methods of Python's that are not here. */
const MISSING_STRING = [
  "encode",
  "expandtabs",
  "format_map",
  "isascii",
  "isidentifier",
  "isprintable",
  "maketrans",
  "translate",
];

/** Without the characters of `set` (Python's white space by default) at the chosen ends. */
export function strip(value: string, set: string | null, left: boolean, right: boolean): string {
  const characters = Array.from(value);
  const drops = set === null ? (c: string) => SPACES.test(c) : (c: string) => set.includes(c);
  let start = 0;
  let end = characters.length;
  while (left && start < end && drops(characters[start])) start++;
  while (right && end > start && drops(characters[end - 1])) end--;
  return characters.slice(start, end).join("");
}

export function capitalize(value: string): string {
  const [first = "", ...rest] = Array.from(value);
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** At most `count` replacements; all of them below 0. */
export function replace(value: string, from: string, to: string, count: number): string {
  if (count < 0) return value.replaceAll(from, () => to);
  const parts = from === "" ? ["", ...Array.from(value), ""] : value.split(from);
  const done = Math.min(count, parts.length - 1);
  return (
    parts.slice(0, done + 1).join(to) +
    (done < parts.length - 1 ? from + parts.slice(done + 1).join(from) : "")
  );
}

/** Python's ends of lines, which are more than "\n". */
const LINE_END = "\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029";
const LINE = new RegExp(`[^${LINE_END}]*(?:\\r\\n|[${LINE_END}]|$)`, "g");
const END_OF_LINE = new RegExp(`(?:\\r\\n|[${LINE_END}])$`);

/** Lines without their ends, or with them. */
export function splitLines(value: string, keepEnds = false): string[] {
  const lines = value.match(LINE) ?? [];
  if (lines.at(-1) === "") lines.pop();
  return keepEnds ? lines : lines.map((line) => line.replace(END_OF_LINE, ""));
}

function split(
  value: string,
  separator: string | null,
  most: number,
  fromRight: boolean,
): string[] {
  if (separator === "") throw new TemplateError("empty separator");
  const limit = most < 0 ? Infinity : most;
  if (separator !== null) {
    const parts = value.split(separator);
    const excess = parts.length - 1 - limit;
    if (excess <= 0) return parts;
    return fromRight
      ? [parts.slice(0, excess + 1).join(separator), ...parts.slice(excess + 1)]
      : [...parts.slice(0, limit), parts.slice(limit).join(separator)];
  }
  const words: string[] = [];
  for (let rest = value; ;) {
    // The space at the far end stays where the limit is reached.
    rest = strip(rest, null, !fromRight, fromRight);
    if (rest === "") break;
    const found = words.length < limit ? (fromRight ? lastSpaces(rest) : SPACES.exec(rest)) : null;
    if (!found) {
      words.push(rest);
      break;
    }
    const before = rest.slice(0, found.index);
    const after = rest.slice(found.index + found[0].length);
    words.push(fromRight ? after : before);
    rest = fromRight ? before : after;
  }
  return fromRight ? words.reverse() : words;
}

function lastSpaces(value: string): { index: number; 0: string } | null {
  let last: RegExpExecArray | null = null;
  for (const match of value.matchAll(new RegExp(`${PYTHON_SPACE}+`, "g"))) last = match;
  return last;
}

/** A string's part between two positions in characters. */
function part(value: string, args: Bound): { text: string; start: number; valid: boolean } {
  const characters = Array.from(value);
  const position = (name: string, fallback: number): number => {
    const given = args.get(name, null) === null ? fallback : args.integer(name);
    return given < 0 ? Math.max(0, characters.length + given) : given;
  };
  const start = position("start", 0);
  const end = Math.min(position("end", characters.length), characters.length);
  return {
    text: characters.slice(start, end).join(""),
    start,
    valid: start <= characters.length && start <= end,
  };
}

function find(value: string, args: Bound, last: boolean): number {
  const { text, start, valid } = part(value, args);
  const wanted = args.string("sub");
  const at = last ? text.lastIndexOf(wanted) : text.indexOf(wanted);
  return !valid || at < 0 ? -1 : start + Array.from(text.slice(0, at)).length;
}

function index(value: string, args: Bound, last: boolean): number {
  const at = find(value, args, last);
  if (at < 0) throw new TemplateError("substring not found");
  return at;
}

function count(text: string, wanted: string): number {
  return wanted === "" ? Array.from(text).length + 1 : text.split(wanted).length - 1;
}

function affix(value: string, args: Bound, has: (text: string, affix: string) => boolean): boolean {
  const wanted = args.required("prefix");
  const { text, valid } = part(value, args);
  const choices = wanted instanceof Tuple ? wanted.items : [wanted];
  return choices.some((choice) => {
    if (typeof choice !== "string") {
      throw new TemplateError(
        `startswith and endswith take a str or a tuple of str, not ${typeName(choice)}`,
      );
    }
    return valid && has(text, choice);
  });
}

function pad(value: string, args: Bound, left: (missing: number, width: number) => number): string {
  const width = args.integer("width");
  if (width > MAX_TEXT) throw new TemplateError("a text becomes too long");
  const missing = Math.max(0, width - Array.from(value).length);
  const fill = args.string("fillchar", " ");
  if (Array.from(fill).length !== 1)
    throw new TemplateError("the fill character must be one character");
  const before = Math.floor(left(missing, width));
  return fill.repeat(before) + value + fill.repeat(missing - before);
}

/** Characters that one text may have. */
export const MAX_TEXT = 1 << 24;

const every = (expression: RegExp) => ({
  parameters: [],
  call: (self: string): Value => expression.test(self),
});
const plain = (change: (self: string) => string): Method<string> => ({
  parameters: [],
  call: change,
});
const stripping = (left: boolean, right: boolean): Method<string> => ({
  parameters: ["chars"],
  call: (self, args) => strip(self, args.stringOrNone("chars"), left, right),
});
const splitting = (fromRight: boolean): Method<string> => ({
  parameters: ["sep", "maxsplit"],
  call: (self, args) =>
    split(self, args.stringOrNone("sep"), args.integer("maxsplit", -1), fromRight),
});
const partition = (last: boolean): Method<string> => ({
  parameters: ["sep"],
  call: (self, args) => {
    const separator = args.string("sep");
    const at = last ? self.lastIndexOf(separator) : self.indexOf(separator);
    if (at < 0) return new Tuple(last ? ["", "", self] : [self, "", ""]);
    return new Tuple([self.slice(0, at), separator, self.slice(at + separator.length)]);
  },
});
const RANGE = ["sub", "start", "end"];

const STRING: ReadonlyMap<string, Method<string>> = new Map<string, Method<string>>([
  ["upper", plain((self) => self.toUpperCase())],
  ["lower", plain((self) => self.toLowerCase())],
  ["casefold", plain((self) => self.toLowerCase().replaceAll("ß", "ss"))],
  ["capitalize", plain(capitalize)],
  ["title", plain((self) => self.replace(/\p{Alphabetic}+/gu, capitalize))],
  ["swapcase", plain((self) => Array.from(self, (c) => (c === c.toUpperCase() ? c.toLowerCase() : c.toUpperCase())).join(""))],
  ["strip", stripping(true, true)],
  ["lstrip", stripping(true, false)],
  ["rstrip", stripping(false, true)],
  ["split", splitting(false)],
  ["rsplit", splitting(true)],
  ["splitlines", { parameters: ["keepends"], call: (self, args) => splitLines(self, args.get("keepends", false) === true) }],
  ["partition", partition(false)],
  ["rpartition", partition(true)],
  ["startswith", { parameters: ["prefix", "start", "end"], call: (self, args) => affix(self, args, (text, a) => text.startsWith(a)) }],
  ["endswith", { parameters: ["prefix", "start", "end"], call: (self, args) => affix(self, args, (text, a) => text.endsWith(a)) }],
  ["removeprefix", { parameters: ["prefix"], call: (self, args) => (self.startsWith(args.string("prefix")) ? self.slice(args.string("prefix").length) : self) }],
  ["removesuffix", { parameters: ["suffix"], call: (self, args) => (self.endsWith(args.string("suffix")) ? self.slice(0, self.length - args.string("suffix").length) : self) }],
  ["replace", { parameters: ["old", "new", "count"], call: (self, args) => replace(self, args.string("old"), args.string("new"), args.integer("count", -1)) }],
  ["find", { parameters: RANGE, call: (self, args) => find(self, args, false) }],
  ["rfind", { parameters: RANGE, call: (self, args) => find(self, args, true) }],
  ["index", { parameters: RANGE, call: (self, args) => index(self, args, false) }],
  ["rindex", { parameters: RANGE, call: (self, args) => index(self, args, true) }],
  ["count", { parameters: RANGE, call: (self, args) => count(part(self, args).text, args.string("sub")) }],
  ["join", { parameters: ["iterable"], call: (self, args) => joinStrings(self, args.required("iterable")) }],
  ["ljust", { parameters: ["width", "fillchar"], call: (self, args) => pad(self, args, () => 0) }],
  ["rjust", { parameters: ["width", "fillchar"], call: (self, args) => pad(self, args, (missing) => missing) }],
  // The odd one goes as in CPython.
  ["center", { parameters: ["width", "fillchar"], call: (self, args) => pad(self, args, (missing, width) => Math.floor(missing / 2) + (missing & width & 1)) }],
  ["zfill", { parameters: ["width"], call: (self, args) => {
    const [, sign = "", digits = ""] = /^([+-]?)(.*)$/s.exec(self) ?? [];
    const width = Math.min(args.integer("width"), MAX_TEXT);
    return sign + "0".repeat(Math.max(0, width - Array.from(self).length)) + digits;
  } }],
  ["isdigit", every(/^[\p{Nd}\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089\u2460-\u2468]+$/u)],
  ["isdecimal", every(/^\p{Nd}+$/u)],
  ["isnumeric", every(/^\p{N}+$/u)],
  ["isalpha", every(/^\p{L}+$/u)],
  ["isalnum", every(/^[\p{L}\p{N}]+$/u)],
  ["isspace", every(new RegExp(`^${PYTHON_SPACE}+$`))],
  ["isupper", { parameters: [], call: (self) => /[\p{Lu}\p{Uppercase}]/u.test(self) && !/[\p{Lowercase}\p{Lt}]/u.test(self) }],
  ["islower", { parameters: [], call: (self) => /\p{Lowercase}/u.test(self) && !/[\p{Lu}\p{Lt}]/u.test(self) }],
  ["istitle", { parameters: [], call: (self) => /\p{L}/u.test(self) && self === self.replace(/\p{Alphabetic}+/gu, capitalize) }],
]); // prettier-ignore

function joinStrings(separator: string, items: Value): string {
  return iterate(items)
    .map((item, i) => {
      if (typeof item === "string") return item;
      throw new TemplateError(`sequence item ${i}: expected str instance, ${typeName(item)} found`);
    })
    .join(separator);
}

const LIST: ReadonlyMap<string, Method<readonly Value[]>> = new Map<string, Method<readonly Value[]>>([
  ["count", { parameters: ["value"], call: (self, args) => self.filter((item) => equal(item, args.required("value"))).length }],
  ["copy", { parameters: [], call: (self) => [...self] }],
  ["index", { parameters: ["value"], call: (self, args) => {
    const at = self.findIndex((item) => equal(item, args.required("value")));
    if (at < 0) throw new TemplateError("the value is not in the list");
    return at;
  } }],
]); // prettier-ignore

const DICT: ReadonlyMap<string, Method<Dict>> = new Map<string, Method<Dict>>([
  ["get", { parameters: ["key", "default"], call: (self, args) => {
    const found = self.get(keyOf(args.required("key")));
    return found === undefined ? args.get("default") : found;
  } }],
  ["keys", { parameters: [], call: (self) => new View("dict_keys", [...self.keys()]) }],
  ["values", { parameters: [], call: (self) => new View("dict_values", [...self.values()]) }],
  ["items", { parameters: [], call: (self) => new View("dict_items", [...self].map((entry) => new Tuple(entry))) }],
  ["copy", { parameters: [], call: (self) => new Map(self) }],
]); // prettier-ignore

/** A method of a value, or undefined where its type has none of that name. @throws TemplateError for one not implemented */
export function methodOf(value: Value, name: string): Value | undefined {
  if (typeof value === "string") {
    if (name === "format") {
      return new Callable(name, (args, named) => formatBraces(value, args, named));
    }
    if (MISSING_STRING.includes(name))
      throw new TemplateError(`the method str.${name} is not implemented`);
    return bound(STRING.get(name), value, name);
  }
  if (value instanceof Map)
    return bound(DICT.get(name), value, name) ?? unsafe(UNSAFE_DICT, "dict", name);
  const items = itemsOf(value);
  if (!items) return undefined;
  if (value instanceof Tuple && name === "copy") return undefined;
  return (
    bound(LIST.get(name), items, name) ??
    (Array.isArray(value) ? unsafe(UNSAFE_LIST, "list", name) : undefined)
  );
}

function bound<T>(method: Method<T> | undefined, self: T, name: string): Value | undefined {
  if (!method) return undefined;
  return new Callable(name, (args, named) =>
    method.call(self, bind(name, method.parameters, args, named)),
  );
}

function unsafe(names: readonly string[], type: string, name: string): Value | undefined {
  return names.includes(name)
    ? new Undefined(`access to '${name}' of a ${type} is unsafe, it`)
    : undefined;
}
