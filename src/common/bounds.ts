/**
 * Where numbers from files, flags and requests are bounded before they size, loop over or address anything, and where
 * what a stranger wrote is shortened before it goes into an error line. Nothing here reads files (`read-file.ts`) or
 * knows what a number is for.
 */
import { PlanishError } from "./errors.js";

/** An interval of numbers; what is absent does not bound. */
export interface Range {
  /** Smallest accepted value. */
  readonly min?: number;
  /** Largest accepted value. */
  readonly max?: number;
  /** Values must be larger than this, for what may come near a bound but not reach it. */
  readonly above?: number;
}

export interface BoundOptions extends Range {
  /** What to do about it, added to the error after a semicolon. */
  readonly hint?: string;
}

/**
 * Most that is accepted of things that models and runs are made of: above everything published by an order of
 * magnitude, and small enough that a loop or a list of so many does no harm.
 */
export const LIMITS = {
  layers: 4096,
  /** Heads of one layer. */
  heads: 1 << 16,
  /** Experts of one layer. */
  experts: 1 << 16,
  /** Experts of all layers, each of which has linears of its own. */
  allExperts: 1 << 16,
  /** Channels of any activation: hidden and intermediate sizes, head dimensions. */
  width: 1 << 22,
  /** Channels of all heads of a projection, which are put in order one by one. */
  rows: 1 << 18,
  /** Token ids. */
  vocabulary: 1 << 24,
  /** Positions of a context. */
  positions: 1 << 30,
  /** Dimensions of a stored tensor. */
  rank: 8,
  /** Threads, worker processes. */
  threads: 1024,
  /** Windows of text, items of a task, passes over them. */
  samples: 1_000_000,
  /** Tokens of one window, prompt or answer. */
  tokens: 1 << 24,
  /** Bytes of memory or of a file. */
  bytes: 2 ** 50,
} as const;

/** `from 1 to 10`, `at least 1`, `above 0 and at most 1`; empty when nothing bounds. */
export function describeRange({ min, max, above }: Range): string {
  if (min !== undefined && max !== undefined) return `from ${plain(min)} to ${plain(max)}`;
  const parts: string[] = [];
  if (above !== undefined) parts.push(`above ${plain(above)}`);
  if (min !== undefined) parts.push(`at least ${plain(min)}`);
  if (max !== undefined) parts.push(`at most ${plain(max)}`);
  return parts.join(" and ");
}

/** Digits with separators; exponents only where digits would be too many. */
function plain(value: number): string {
  return Math.abs(value) < 1e15 ? value.toLocaleString("en-US", DIGITS) : String(value);
}
const DIGITS = { maximumFractionDigits: 12 };

/** Whether a value is a finite number in the range. */
export function isFiniteIn(value: unknown, range: Range = {}): value is number {
  const { min = -Infinity, max = Infinity, above = -Infinity } = range;
  return (
    typeof value === "number" &&
    Number.isFinite(value) &&
    value >= min &&
    value <= max &&
    value > above
  );
}

/** Whether a value is a whole number that is exact in float64, and in the range. */
export function isIntegerIn(value: unknown, range: Range = {}): value is number {
  return Number.isSafeInteger(value) && isFiniteIn(value, range);
}

/**
 * A whole number in a range.
 * @param what names it with its place, such as `config.json: num_hidden_layers`.
 * @throws PlanishError saying what was found and what is accepted.
 */
export function integerIn(value: unknown, what: string, options: BoundOptions = {}): number {
  return isIntegerIn(value, options) ? value : refuse(value, what, "a whole number", options);
}

/** A finite number in a range. @throws PlanishError saying what was found and what is accepted. */
export function finiteIn(value: unknown, what: string, options: BoundOptions = {}): number {
  return isFiniteIn(value, options) ? value : refuse(value, what, "a finite number", options);
}

/** A number of things: a whole number from 0 (or `min`) to `most`. @throws PlanishError as `integerIn`. */
export function countIn(value: unknown, what: string, most: number, min = 0): number {
  return integerIn(value, what, { min, max: most });
}

/** An id of one of `size` things: a whole number from 0 to `size` − 1. @throws PlanishError as `integerIn`. */
export function idIn(value: unknown, what: string, size: number): number {
  return integerIn(value, what, { min: 0, max: size - 1 });
}

function refuse(value: unknown, what: string, kind: string, options: BoundOptions): never {
  const range = describeRange(options);
  const hint = options.hint === undefined ? "" : `; ${options.hint}`;
  throw new PlanishError(
    `${what} must be ${kind}${range && ` ${range}`}, found ${shown(value)}${hint}`,
  );
}

/** Characters that an error line gives to one value of a stranger. */
const SHOWN = 60;

/**
 * A value from a file, flag or request for an error line: JSON's spelling on one line without control characters, cut
 * to `most` characters. Never walks more of the value than it shows, so depth and size do no harm.
 */
export function shown(value: unknown, most = SHOWN): string {
  return cut(render(value, most, 0), most);
}

/** A name or text from a stranger in quotes, for an error line; see `shown`. */
export function quoted(text: string, most = SHOWN): string {
  return cut(quote(text, most), most, '"');
}

/** A foreign message on one line, cut: parsers quote what they choke on. */
export function oneLine(message: string, most = 120): string {
  return cut(
    clean(
      message
        .slice(0, 4 * most)
        .replace(/\s+/g, " ")
        .trim(),
    ),
    most,
  );
}

function cut(text: string, most: number, close = ""): string {
  if (text.length <= most) return text;
  // Not within an escape, nor between the halves of a character outside the basic plane.
  const kept = text
    .slice(0, most - 1 - close.length)
    .replace(/\\(?:u[0-9a-f]{0,3})?$|[\ud800-\udbff]$/, "");
  return `${kept}…${close}`;
}

function quote(text: string, most: number): string {
  return clean(JSON.stringify(text.length > most ? text.slice(0, most + 1) : text));
}

/** Characters that a terminal or a log takes for something else: controls, line separators, direction marks. */
function clean(text: string): string {
  return text.replace(
    // eslint-disable-next-line no-control-regex -- they are what this looks for
    /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function render(value: unknown, most: number, depth: number): string {
  switch (typeof value) {
    case "string":
      return quote(value, most);
    case "number":
    case "boolean":
    case "bigint":
      return String(value);
    case "undefined":
      return "nothing";
    case "object":
      break;
    default:
      return `a ${typeof value}`;
  }
  if (value === null) return "null";
  const isList = Array.isArray(value) || (ArrayBuffer.isView(value) && "length" in value);
  if (depth > 2) return isList ? "[…]" : "{…}";
  let text = isList ? "[" : "{";
  const add = (part: string): boolean => {
    text += (text.length > 1 ? "," : "") + part;
    return text.length < most;
  };
  if (isList) {
    const list = value as ArrayLike<unknown>;
    for (let i = 0; i < list.length; i++) if (!add(render(list[i], most, depth + 1))) break;
    return `${text}]`;
  }
  // `in` stops at the first keys; Object.entries would list them all.
  for (const key in value) {
    if (!Object.hasOwn(value, key)) continue;
    const item = (value as Record<string, unknown>)[key];
    if (!add(`${quote(key, most)}:${render(item, most, depth + 1)}`)) break;
  }
  return `${text}}`;
}

export interface JsonLimits {
  /** Most that arrays and objects may be nested (default 64). */
  readonly depth?: number;
  /** Most characters of the text (default: as many as a string has). */
  readonly length?: number;
  /**
   * Reads numbers that Python writes and JSON has not, `Infinity`, `-Infinity` and `NaN`, as transformers writes them since
   * version 5: `{"__float__": "Infinity"}`.
   */
  readonly python?: boolean;
}

/** A string of JSON, or a number that JSON has not. */
const STRING_OR_NAME = /"(?:[^"\\]|\\.)*"|-?\b(?:Infinity|NaN)\b/gs;

function withoutPython(text: string): string {
  return text.replace(STRING_OR_NAME, (found) =>
    found.startsWith('"') ? found : `{"__float__":"${found}"}`,
  );
}

/** Deeper than any configuration, tokenizer or tool schema that people publish. */
const MAX_DEPTH = 64;

/**
 * Parses JSON of a stranger. What it returns is no deeper than the limit, so code that recurses over it is safe, and
 * all its numbers are finite (`JSON.parse` makes Infinity of 1e999).
 * @param what names the text in errors, such as a file's path.
 * @throws PlanishError saying what is wrong with it, in one line.
 */
export function parseJson(text: string, what: string, limits: JsonLimits = {}): unknown {
  const { depth = MAX_DEPTH, length = Infinity, python = false } = limits;
  if (text.length > length)
    throw new PlanishError(
      `${what} is ${plain(text.length)} characters long; at most ${plain(length)} are accepted`,
    );
  // Before it is parsed: values nested by the million take `JSON.parse` seconds, and gigabytes.
  checkJson(text, what, depth);
  try {
    return JSON.parse(python ? withoutPython(text) : text) as unknown;
  } catch (cause) {
    const reason = oneLine((cause as Error).message);
    throw new PlanishError(`${what} is not valid JSON (${reason})`, { cause });
  }
}

/** Walks a text, which need not be valid, for what `JSON.parse` lets through. */
function checkJson(text: string, what: string, maxDepth: number): void {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      i = stringEnd(text, i);
    } else if (char === 0x7b || char === 0x5b) {
      depth += 1;
      if (depth > maxDepth)
        throw new PlanishError(`${what} is nested more than ${maxDepth} levels deep`);
    } else if (char === 0x7d || char === 0x5d) {
      depth -= 1;
    } else if (char === 0x2d || (char >= 0x30 && char <= 0x39)) {
      const start = i;
      while (isNumberPart(text.charCodeAt(i + 1))) i += 1;
      // Shorter ones cannot be out of range.
      if (i - start >= 4 && !Number.isFinite(Number(text.slice(start, i + 1))))
        throw new PlanishError(
          `${what} holds ${cut(text.slice(start, i + 1), SHOWN)}, which is no finite number`,
        );
    }
  }
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** Position of the quote that ends the string begun at `start`, or the end of a text that lacks it. */
function stringEnd(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); ; end = text.indexOf('"', end + 1)) {
    if (end < 0) return text.length;
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === BACKSLASH) slashes += 1;
    if (slashes % 2 === 0) return end;
  }
}

function isNumberPart(char: number): boolean {
  // Digits, "+", "-", ".", "e", "E".
  return (
    (char >= 0x30 && char <= 0x39) ||
    char === 0x2b ||
    char === 0x2d ||
    char === 0x2e ||
    char === 0x65 ||
    char === 0x45
  );
}
