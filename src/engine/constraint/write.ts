/**
 * Rules as EBNF for the matching library. Its classes know ASCII, and everything but some of ASCII; other sets of
 * characters (`\p{L}`, `.`) are written by the bytes of UTF-8, over an alphabet in which every byte is spelled with ASCII
 * characters. The same spelling is then given to the tokens (`spellBytes`).
 */
import { canEnd, type Expression, type Rules } from "./expression.js";
import { complement, intersect, type Range, type Ranges } from "./regex/ranges.js";

/** How tokens are given to the library: as their bytes, or with each byte spelled in ASCII. */
export type Alphabet = "native" | "spelled";

export interface WrittenGrammar {
  readonly ebnf: string;
  readonly alphabet: Alphabet;
  /** Tokens without text that the grammar names (`specialToken`). */
  readonly specials?: readonly number[];
}

/** How a token that is no text is named in a grammar: as a text that nothing else is written as. */
export function specialToken(token: number): string {
  return `\x10T${token};`;
}

const ASCII: Ranges = [[0, 0x7f]];
const BEYOND: Ranges = complement(ASCII);
/** Other characters up to this many are written one by one. */
const FEW = 64;

/** Bytes from 0x80 and from 0xc0 on are one of these, then a character from "0" on; so are the three themselves. */
const LOW = 0x0e;
const HIGH = 0x0f;
const ITSELF = 0x10;
const DIGIT = 0x30;
const SPELLED_ASCII = intersect(ASCII, complement([[LOW, ITSELF]]));

// eslint-disable-next-line no-control-regex -- these control characters are what is spelled
const SPELLED = /[\x0e\x0f\x10\x80-\xff]/g;

/** Bytes (one character each) in the spelled alphabet. */
export function spellBytes(bytes: string): string {
  return bytes.replace(SPELLED, (char) => {
    const byte = char.charCodeAt(0);
    if (byte < 0x80) return String.fromCharCode(ITSELF, byte + DIGIT);
    return String.fromCharCode(byte < 0xc0 ? LOW : HIGH, DIGIT + (byte & 0x3f));
  });
}

/** The rules that `root` needs, without alternatives that cannot be completed. */
export function writeRules(
  rules: Rules,
  root: string,
  productive: ReadonlySet<string>,
): WrittenGrammar {
  try {
    return { ebnf: new Writer(rules, productive, "native").write(root), alphabet: "native" };
  } catch (error) {
    if (!(error instanceof NeedsBytes)) throw error;
    return { ebnf: new Writer(rules, productive, "spelled").write(root), alphabet: "spelled" };
  }
}

class NeedsBytes extends Error {
  override readonly name = "NeedsBytes";
}

class Writer {
  private readonly needed = new Set<string>();
  private readonly runs = new Map<string, string>();
  private readonly alternatives = new Map<string, string>();

  constructor(
    private readonly rules: Rules,
    private readonly productive: ReadonlySet<string>,
    private readonly alphabet: Alphabet,
  ) {}

  write(root: string): string {
    this.needed.add(root);
    const lines: string[] = [];
    for (const name of this.needed) {
      const body = this.rules.get(name);
      if (body === undefined) throw new Error(`there is no rule ${name}`);
      lines.push(`${name === root ? "root" : name} ::= ${this.expression(body)}`);
    }
    for (const helpers of [this.alternatives, this.runs])
      for (const [body, name] of helpers) lines.push(`${name} ::= ${body}`);
    return lines.join("\n");
  }

  private expression(body: Expression): string {
    switch (body.kind) {
      case "text":
        return this.text(body.text);
      case "class":
        return this.class(body.ranges);
      case "sequence": {
        const parts = body.parts.filter((part) => part.kind !== "text" || part.text !== "");
        if (parts.length === 0) return '""';
        return parts.map((part) => this.expression(part)).join(" ");
      }
      case "either": {
        const parts = body.parts.filter((part) => canEnd(part, this.productive));
        return alternatives(parts.map((part) => this.alternative(part, body.apart === true)));
      }
      case "repeat":
        return this.repeat(body);
      case "rule":
        this.needed.add(body.name);
        return body.name;
      case "until":
        this.needed.add(body.then);
        return `TagDispatch((${this.text(body.mark)}, ${body.then}), stop_eos=true, loop_after_dispatch=false)`;
    }
  }

  /**
   * The library mixes up alternatives that begin alike and end alike when it makes an automaton of a rule: those that may
   * are rules of their own.
   */
  private alternative(part: Expression, isApart: boolean): string {
    const written = this.expression(part);
    if (isApart || part.kind !== "sequence" || !written.includes(" ")) return written;
    let name = this.alternatives.get(written);
    if (name === undefined)
      this.alternatives.set(written, (name = `alternative${this.alternatives.size}`));
    return name;
  }

  private repeat({ part, min, max }: Expression & { kind: "repeat" }): string {
    if (max === 0 || !canEnd(part, this.productive)) return '""';
    const inner = this.expression(part);
    if (part.kind === "class" && !inner.startsWith("[") && max === Infinity)
      return [...Array.from({ length: min }, () => inner), this.run(part.ranges)].join(" ");
    const times =
      max === Infinity
        ? min === 0
          ? "*"
          : `{${min},}`
        : min === 0 && max === 1
          ? "?"
          : `{${min},${max}}`;
    const isOne = part.kind === "rule" || (part.kind === "class" && inner.startsWith("["));
    return `${isOne ? inner : `(${inner})`}${times}`;
  }

  /** Characters of different lengths, as runs of plain ones with others between: that is matched fast. */
  private run(ranges: Ranges): string {
    const plain = this.class(intersect(ranges, SPELLED_ASCII));
    const others = this.class(intersect(ranges, complement(SPELLED_ASCII)));
    const name = `run${this.runs.size}`;
    const body = (own: string): string => `${plain}* (${others} ${own} | "")`;
    const known = [...this.runs].find(([written, own]) => written === body(own));
    if (known) return known[1];
    this.runs.set(body(name), name);
    return name;
  }

  private text(text: string): string {
    const written = this.alphabet === "native" ? text : spellBytes(utf8(text));
    return `"${Array.from(written, (char) => escape(char.codePointAt(0) ?? 0)).join("")}"`;
  }

  private class(ranges: Ranges): string {
    const beyond = intersect(ranges, BEYOND);
    if (this.alphabet === "spelled") return this.spelledClass(ranges, beyond);
    const ascii = intersect(ranges, ASCII);
    if (beyond.length === 0) return brackets(ascii);
    if (sizeOf(beyond) === sizeOf(BEYOND)) {
      const others = intersect(complement(ascii), ASCII);
      // An empty class is none: of all characters, the null one is left out.
      return `[^${others.length === 0 ? escape(0) : others.map(span).join("")}]`;
    }
    if (sizeOf(beyond) > FEW) throw new NeedsBytes();
    const single = pointsOf(beyond).map((point) => `"${escape(point)}"`);
    return alternatives(ascii.length > 0 ? [brackets(ascii), ...single] : single);
  }

  private spelledClass(ranges: Ranges, beyond: Ranges): string {
    const plain = intersect(ranges, SPELLED_ASCII);
    const parts = plain.length > 0 ? [brackets(plain)] : [];
    for (const point of pointsOf(intersect(ranges, [[LOW, ITSELF]])))
      parts.push(this.text(String.fromCodePoint(point)));
    for (const range of beyond)
      for (const bytes of utf8Ranges(range))
        parts.push(
          bytes
            .map(
              ([low, high]) =>
                `"${escape(low < 0xc0 ? LOW : HIGH)}" [${span([DIGIT + (low & 0x3f), DIGIT + (high & 0x3f)])}]`,
            )
            .join(" "),
        );
    return alternatives(parts);
  }
}

/** Whether the library has a class for a set of characters. */
export function isOneClass(ranges: Ranges): boolean {
  const beyond = sizeOf(intersect(ranges, BEYOND));
  return beyond === 0 || beyond === sizeOf(BEYOND);
}

function alternatives(parts: readonly string[]): string {
  const distinct = [...new Set(parts)];
  return distinct.length === 1 ? distinct[0] : `(${distinct.join(" | ")})`;
}

const brackets = (ranges: Ranges): string => `[${ranges.map(span).join("")}]`;

function span([first, last]: Range): string {
  return first === last ? escape(first) : `${escape(first)}-${escape(last)}`;
}

function sizeOf(ranges: Ranges): number {
  return ranges.reduce((sum, [first, last]) => sum + last - first + 1, 0);
}

function pointsOf(ranges: Ranges): number[] {
  return ranges.flatMap(([first, last]) =>
    Array.from({ length: last - first + 1 }, (_, i) => first + i),
  );
}

function escape(point: number): string {
  const char = String.fromCodePoint(point);
  if (/[A-Za-z0-9 _.,:]/.test(char)) return char;
  const hex = point.toString(16).toUpperCase();
  return point > 0xffff ? `\\U${hex.padStart(8, "0")}` : `\\u${hex.padStart(4, "0")}`;
}

/** A text's bytes, one character each. */
function utf8(text: string): string {
  return Buffer.from(text, "utf8").toString("latin1");
}

/** Largest code points of one to four bytes. */
const LENGTHS = [0x7f, 0x7ff, 0xffff, 0x10ffff];

/** A range of code points as sequences of ranges of bytes. */
export function utf8Ranges([first, last]: Range): (readonly Range[])[] {
  const limit = LENGTHS.find((most) => first <= most) ?? first;
  if (last > limit) return [...utf8Ranges([first, limit]), ...utf8Ranges([limit + 1, last])];
  const length = LENGTHS.indexOf(limit) + 1;
  // Cut where the bytes after a common beginning do not go from their first to their last value.
  for (let i = 1; i < length; i++) {
    const mask = (1 << (6 * i)) - 1;
    if ((first & ~mask) === (last & ~mask)) continue;
    if ((first & mask) !== 0)
      return [...utf8Ranges([first, first | mask]), ...utf8Ranges([(first | mask) + 1, last])];
    if ((last & mask) !== mask)
      return [...utf8Ranges([first, (last & ~mask) - 1]), ...utf8Ranges([last & ~mask, last])];
  }
  const from = Buffer.from(String.fromCodePoint(first), "utf8");
  const to = Buffer.from(String.fromCodePoint(last), "utf8");
  return [Array.from(from, (byte, i): Range => [byte, to[i]])];
}
