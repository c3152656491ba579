/**
 * Jinja source to tokens, with transformers' settings: `trim_blocks`, `lstrip_blocks`, and one newline at the end of
 * the source dropped.
 */

import { TemplateError } from "./values.js";

export type Token =
  | { readonly type: "text"; readonly value: string }
  | { readonly type: "open" | "close"; readonly value: "block" | "output" }
  | { readonly type: "name" | "string" | "operator"; readonly value: string }
  | { readonly type: "integer" | "float"; readonly value: string };

/** White space of Python's `str.strip` and `\s`. */
export const PYTHON_SPACE =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const SPACE_AT_END = new RegExp(`${PYTHON_SPACE}+$`);
const ALL_SPACE = new RegExp(`^${PYTHON_SPACE}+$`);
const SPACES = new RegExp(`${PYTHON_SPACE}*`, "y");
const NAME = /[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{Mn}\p{Mc}\p{Nd}\p{Pc}]*/uy;
const FLOAT = /(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy;
const INTEGER = /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy;
const STRING = /'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"/sy;
const OPERATOR = /\/\/|\*\*|[=!<>]=|[-+/*%~[\](){}<>=.:|,;]/y;
const RAW = new RegExp(
  `\\{%([-+]?)${PYTHON_SPACE}*raw${PYTHON_SPACE}*(?:-%\\}${PYTHON_SPACE}*|%\\})`,
  "y",
);
const END_RAW = new RegExp(
  `\\{%([-+]?)${PYTHON_SPACE}*endraw${PYTHON_SPACE}*(?:\\+%\\}|-%\\}${PYTHON_SPACE}*|%\\}\\n?)`,
  "g",
);
const END_COMMENT = new RegExp(`\\+#\\}|-#\\}${PYTHON_SPACE}*|#\\}\\n?`, "g");
const END_BLOCK = new RegExp(`\\+%\\}|-%\\}${PYTHON_SPACE}*|%\\}\\n?`, "y");
const END_OUTPUT = new RegExp(`-\\}\\}${PYTHON_SPACE}*|\\}\\}`, "y");
const BRACKETS: Readonly<Record<string, string>> = { "(": ")", "[": "]", "{": "}" };

/** @throws TemplateError where the source is not Jinja */
export function tokenize(template: string): Token[] {
  const source = template.replace(/\r\n|\r/g, "\n").replace(/\n$/, "");
  const tokens: Token[] = [];
  let at = 0;
  let lineStarts = true;

  const matchAt = (expression: RegExp): RegExpExecArray | null => {
    expression.lastIndex = at;
    return expression.exec(source);
  };
  const fail = (problem: string): never => {
    throw new TemplateError(`line ${source.slice(0, at).split("\n").length}: ${problem}`);
  };
  /** Text before a tag, without the white space that the tag takes from it. */
  const addText = (text: string, sign: string, strips: boolean): void => {
    let kept = text;
    if (sign === "-") kept = text.replace(SPACE_AT_END, "");
    else if (sign !== "+" && strips) {
      const line = text.lastIndexOf("\n") + 1;
      if ((line > 0 || lineStarts) && ALL_SPACE.test(text.slice(line))) kept = text.slice(0, line);
    }
    if (kept !== "") tokens.push({ type: "text", value: kept });
  };
  const advance = (to: number): void => {
    if (to > at) lineStarts = source[to - 1] === "\n";
    at = to;
  };

  while (at < source.length) {
    const start = nextTag(source, at);
    const text = source.slice(at, start);
    if (start === source.length) {
      addText(text, "+", false);
      break;
    }
    const kind = source[start + 1];
    const sign = /[-+]/.test(source[start + 2] ?? "") ? source[start + 2] : "";
    addText(text, sign, kind !== "{");
    at = start;
    if (kind === "#") {
      at = start + 2;
      END_COMMENT.lastIndex = at + sign.length;
      const end = END_COMMENT.exec(source) ?? fail("a comment has no end");
      advance(end.index + end[0].length);
      continue;
    }
    const raw = kind === "%" ? matchAt(RAW) : null;
    if (raw) {
      advance(start + raw[0].length);
      END_RAW.lastIndex = at;
      const end = END_RAW.exec(source) ?? fail("raw has no endraw");
      addText(source.slice(at, end.index), end[1], true);
      advance(end.index + end[0].length);
      continue;
    }
    at = start + 2 + sign.length;
    const value = kind === "%" ? "block" : "output";
    tokens.push({ type: "open", value });
    readTag(value);
    tokens.push({ type: "close", value });
  }
  return tokens;

  function readTag(value: "block" | "output"): void {
    const open: string[] = [];
    for (;;) {
      at += matchAt(SPACES)?.[0].length ?? 0;
      if (at >= source.length) fail(`a ${value === "block" ? "block" : "variable"} tag has no end`);
      const end = open.length === 0 ? matchAt(value === "block" ? END_BLOCK : END_OUTPUT) : null;
      if (end) {
        advance(at + end[0].length);
        return;
      }
      const float = source[at - 1] === "." ? null : matchAt(FLOAT);
      const found =
        float ?? matchAt(INTEGER) ?? matchAt(NAME) ?? matchAt(STRING) ?? matchAt(OPERATOR);
      if (!found)
        fail(
          `unexpected character ${JSON.stringify(String.fromCodePoint(source.codePointAt(at) ?? 0))}`,
        );
      const word = found![0];
      const first = word[0];
      if (float) tokens.push({ type: "float", value: word.replaceAll("_", "") });
      else if (/\d/.test(first)) tokens.push({ type: "integer", value: word.replaceAll("_", "") });
      else if (first === "'" || first === '"') {
        tokens.push({ type: "string", value: unescape(word.slice(1, -1), fail) });
      } else if (found!.input === source && NAME_START.test(word)) {
        tokens.push({ type: "name", value: word.normalize("NFKC") });
      } else {
        if (BRACKETS[word]) open.push(BRACKETS[word]);
        else if (word === ")" || word === "]" || word === "}") {
          if (open.pop() !== word) fail(`unexpected '${word}'`);
        }
        tokens.push({ type: "operator", value: word });
      }
      at += word.length;
    }
  }
}

const NAME_START = /^[\p{L}\p{Nl}_]/u;

/** Where the next tag begins, or the end of the source. */
function nextTag(source: string, from: number): number {
  for (let i = source.indexOf("{", from); i >= 0; i = source.indexOf("{", i + 1)) {
    if (source[i + 1] === "{" || source[i + 1] === "%" || source[i + 1] === "#") return i;
  }
  return source.length;
}

const ESCAPES: Readonly<Record<string, string>> = {
  n: "\n", t: "\t", r: "\r", b: "\b", f: "\f", v: "\v", a: "\x07", "\\": "\\", "'": "'", '"': '"', "\n": "",
}; // prettier-ignore

/** A literal's escapes as Python's `unicode-escape` reads them; unknown ones stay as they are. */
function unescape(literal: string, fail: (problem: string) => never): string {
  return literal.replace(
    /\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{1,3})|(.))/gs,
    (whole, x?: string, u?: string, long?: string, octal?: string, other?: string) => {
      const hex = x ?? u ?? long;
      if (hex !== undefined) {
        const code = parseInt(hex, 16);
        return code <= 0x10ffff ? String.fromCodePoint(code) : fail(`bad escape ${whole}`);
      }
      if (octal !== undefined) return String.fromCharCode(parseInt(octal, 8));
      if (other === "x" || other === "u" || other === "U" || other === "N")
        return fail(`bad escape ${whole}`);
      return ESCAPES[other ?? ""] ?? whole;
    },
  );
}
