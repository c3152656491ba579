/**
 * Grammars as clients write them: GBNF, as llama.cpp has it, and the same with XGrammar's escapes. A rule is a name,
 * `::=` and alternatives (`|`) of strings, character classes, `.`, groups and names of rules, each with `*`, `+`, `?`,
 * `{n}`, `{m,}` or `{m,n}` behind it; `#` begins a comment. A rule goes on in further lines inside parentheses, or where
 * a line begins with `|`.
 */
import { oneLine } from "../../common/bounds.js";
import { ConstraintError } from "./contract.js";
import {
  either,
  oneChar,
  repeat,
  rule,
  sequence,
  text,
  type Expression,
  type Rules,
} from "./expression.js";
import { ALL, complement, normalize, type Range } from "./regex/ranges.js";

/** Groups within one another. */
const MOST_DEPTH = 200;
const MOST_REPEATS = 10_000;
const NAME = /[A-Za-z_][A-Za-z0-9_-]*/y;
const SPACE = /(?:[ \t]|#[^\n]*)*/y;
const ANY_SPACE = /(?:\s|#[^\n]*)*/y;

/** Rules of which `root` is the first. @throws ConstraintError saying where it cannot be read. */
export function readGrammar(source: string): Rules {
  return new GrammarReader(source).read();
}

class GrammarReader {
  private at = 0;
  private depth = 0;
  private readonly rules: Rules = new Map();
  private readonly used = new Map<string, number>();

  constructor(private readonly source: string) {}

  read(): Rules {
    this.skip(ANY_SPACE);
    while (this.at < this.source.length) {
      const name = this.match(NAME);
      if (name === undefined) throw this.error("the name of a rule is expected");
      this.skip(SPACE);
      if (!this.take("::=")) throw this.error(`"::=" is expected after ${name}`);
      if (this.rules.has(own(name))) throw this.error(`the rule ${name} is there twice`);
      this.skip(ANY_SPACE);
      this.rules.set(own(name), this.alternatives());
      this.skip(ANY_SPACE);
    }
    for (const [name, at] of this.used)
      if (!this.rules.has(own(name))) throw this.error(`there is no rule ${name}`, at);
    const root = this.rules.get(own("root"));
    if (!root) throw new ConstraintError("grammar: it has no rule root, with which texts begin");
    this.refuseLeftRecursion();
    return new Map([["root", root], ...this.rules]);
  }

  private alternatives(): Expression {
    const parts = [this.sequence()];
    for (;;) {
      const before = this.at;
      this.skip(ANY_SPACE);
      if (!this.take("|")) {
        this.at = before;
        return parts.length === 1 ? parts[0] : either(parts);
      }
      this.skip(ANY_SPACE);
      parts.push(this.sequence());
    }
  }

  private sequence(): Expression {
    const parts: Expression[] = [];
    for (;;) {
      this.skip(this.depth > 0 ? ANY_SPACE : SPACE);
      const item = this.item();
      if (item === undefined) return sequence(...parts);
      parts.push(this.repeated(item));
    }
  }

  private item(): Expression | undefined {
    switch (this.source[this.at]) {
      case '"':
        return this.string();
      case "[":
        return this.class();
      case ".":
        this.at += 1;
        return oneChar(ALL);
      case "(": {
        if (++this.depth > MOST_DEPTH) throw this.error("groups are nested too deep");
        this.at += 1;
        this.skip(ANY_SPACE);
        const inner = this.alternatives();
        this.skip(ANY_SPACE);
        if (!this.take(")")) throw this.error('")" is expected');
        this.depth -= 1;
        return inner;
      }
      default:
        return this.reference();
    }
  }

  /** A rule's name, unless it begins the next rule. */
  private reference(): Expression | undefined {
    const before = this.at;
    const name = this.match(NAME);
    if (name === undefined) return undefined;
    this.skip(SPACE);
    if (this.source.startsWith("::=", this.at)) {
      this.at = before;
      return undefined;
    }
    this.at = before + name.length;
    if (!this.used.has(name)) this.used.set(name, before);
    return rule(own(name));
  }

  private repeated(item: Expression): Expression {
    const mark = this.source[this.at];
    if (mark === "*" || mark === "+" || mark === "?") {
      this.at += 1;
      return repeat(item, mark === "+" ? 1 : 0, mark === "?" ? 1 : Infinity);
    }
    if (mark !== "{") return item;
    const bounds = this.match(/\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}/y);
    const [, least, comma, most] = /\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}/.exec(bounds ?? "") ?? [];
    if (least === undefined) throw this.error("{n}, {m,} or {m,n} is expected");
    const min = Number(least);
    const max = comma === undefined ? min : most === "" ? Infinity : Number(most);
    if (min > MOST_REPEATS || (max !== Infinity && max > MOST_REPEATS))
      throw this.error(`more than ${MOST_REPEATS} repetitions are not supported`);
    if (max < min) throw this.error("the bounds are the wrong way round");
    return repeat(item, min, max);
  }

  private string(): Expression {
    this.at += 1;
    const points: number[] = [];
    while (this.source[this.at] !== '"') points.push(this.character());
    this.at += 1;
    return text(String.fromCodePoint(...points));
  }

  private class(): Expression {
    this.at += 1;
    const negated = this.take("^");
    const ranges: Range[] = [];
    while (this.source[this.at] !== "]") {
      const first = this.character();
      let last = first;
      if (this.source[this.at] === "-" && this.source[this.at + 1] !== "]") {
        this.at += 1;
        last = this.character();
        if (last < first) throw this.error("a range is the wrong way round");
      }
      ranges.push([first, last]);
    }
    this.at += 1;
    const found = normalize(ranges);
    return oneChar(negated ? complement(found) : found);
  }

  /** A character of a string or class, which may be escaped. */
  private character(): number {
    const point = this.source.codePointAt(this.at);
    if (point === undefined || point === 0x0a) throw this.error("a string or class does not end");
    const char = String.fromCodePoint(point);
    this.at += char.length;
    if (char !== "\\") return point;
    const code = this.match(/x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}/y);
    if (code !== undefined) {
      const value = parseInt(code.slice(1), 16);
      if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        throw this.error(`\\${code} is no character`);
      return value;
    }
    const short = this.source[this.at];
    this.at += 1;
    const found = ESCAPES[short] ?? (/[^A-Za-z0-9]/.test(short ?? "a") ? short : undefined);
    if (found === undefined) throw this.error(`the escape \\${short ?? ""} is not known`);
    return found.codePointAt(0) ?? 0;
  }

  /** A rule that begins with itself would be tried for ever. */
  private refuseLeftRecursion(): void {
    const empty = new Set<string>();
    for (let before = -1; empty.size > before;) {
      before = empty.size;
      for (const [name, body] of this.rules) if (mayBeEmpty(body, empty)) empty.add(name);
    }
    const done = new Set<string>();
    const open = new Set<string>();
    const visit = (name: string): void => {
      if (done.has(name)) return;
      if (open.has(name))
        throw new ConstraintError(
          `grammar: the rule ${oneLine(name.slice(1), 60)} begins with itself; put the recursion at its end`,
        );
      if (open.size > 2000) throw new ConstraintError("grammar: rules are nested too deep");
      open.add(name);
      for (const next of firstRules(this.rules.get(name)!, empty)) visit(next);
      open.delete(name);
      done.add(name);
    };
    for (const name of this.rules.keys()) visit(name);
  }

  private skip(pattern: RegExp): void {
    this.match(pattern);
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.source)?.[0];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  private take(what: string): boolean {
    const is = this.source.startsWith(what, this.at);
    if (is) this.at += what.length;
    return is;
  }

  private error(what: string, at = this.at): ConstraintError {
    const before = this.source.slice(0, at).split("\n");
    const place = `line ${before.length}, column ${(before.at(-1)?.length ?? 0) + 1}`;
    return new ConstraintError(`grammar: ${oneLine(what, 100)} (${place})`);
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  n: "\n",
  r: "\r",
  t: "\t",
  b: "\b",
  f: "\f",
  "0": "\0",
};

/** A client's rules have names of their own, whatever ours are. */
function own(name: string): string {
  return `g${name.replaceAll("-", "__")}`;
}

function mayBeEmpty(body: Expression, empty: ReadonlySet<string>): boolean {
  switch (body.kind) {
    case "text":
      return body.text === "";
    case "class":
      return false;
    case "sequence":
      return body.parts.every((part) => mayBeEmpty(part, empty));
    case "either":
      return body.parts.some((part) => mayBeEmpty(part, empty));
    case "repeat":
      return body.min === 0 || mayBeEmpty(body.part, empty);
    case "rule":
      return empty.has(body.name);
    case "until":
      return true;
  }
}

/** Rules with which an expression may begin. */
function firstRules(body: Expression, empty: ReadonlySet<string>): string[] {
  switch (body.kind) {
    case "text":
    case "class":
      return [];
    case "sequence": {
      const end = body.parts.findIndex((part) => !mayBeEmpty(part, empty));
      return body.parts
        .slice(0, end < 0 ? undefined : end + 1)
        .flatMap((part) => firstRules(part, empty));
    }
    case "either":
      return body.parts.flatMap((part) => firstRules(part, empty));
    case "repeat":
      return firstRules(body.part, empty);
    case "rule":
      return [body.name];
    case "until":
      return [];
  }
}
