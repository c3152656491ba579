/**
 * Grammars as data, until they are written down for the library behind the contract: rules by name, whose bodies are
 * expressions. What can never be completed is taken out first, since a text that went that way could not end.
 */
import { complement, intersect, normalize, type Range, type Ranges } from "./regex/ranges.js";
import type { Automaton } from "./regex/automaton.js";
import type { Regex } from "./regex/nodes.js";

export type Expression =
  | { readonly kind: "text"; readonly text: string }
  /** One character. */
  | { readonly kind: "class"; readonly ranges: Ranges }
  | { readonly kind: "sequence"; readonly parts: readonly Expression[] }
  | {
      readonly kind: "either";
      readonly parts: readonly Expression[];
      /** No two alternatives begin with the same character, nor with the same rule. */
      readonly apart?: boolean;
    }
  | {
      readonly kind: "repeat";
      readonly part: Expression;
      readonly min: number;
      readonly max: number;
    }
  | { readonly kind: "rule"; readonly name: string }
  /** Any text up to the first mark, then the rule; or any text without the mark, and the end. A rule's whole body. */
  | { readonly kind: "until"; readonly mark: string; readonly then: string };

export type Rules = Map<string, Expression>;

export const EMPTY: Expression = { kind: "text", text: "" };
/** What nothing fits. */
export const NEVER: Expression = { kind: "either", parts: [] };

export const text = (value: string): Expression => ({ kind: "text", text: value });
export const rule = (name: string): Expression => ({ kind: "rule", name });
export const sequence = (...parts: readonly Expression[]): Expression => ({
  kind: "sequence",
  parts,
});
export const either = (parts: readonly Expression[]): Expression => ({ kind: "either", parts });
/** Alternatives of which the first character tells which one it is. */
export const apart = (parts: readonly Expression[]): Expression => ({
  kind: "either",
  parts,
  apart: true,
});
export const optional = (part: Expression): Expression => ({
  kind: "either",
  parts: [part, EMPTY],
});
export const repeat = (part: Expression, min: number, max: number): Expression => ({
  kind: "repeat",
  part,
  min,
  max,
});

/** How characters are spelled: those that are written as they are, and what stands for others. */
export type Spelling = (ranges: Ranges) => Spelled;

export interface Spelled {
  readonly direct: Ranges;
  readonly escaped: readonly Expression[];
}

export const plainly: Spelling = (ranges) => ({ direct: ranges, escaped: [] });

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const CONTROLS: Range = [0, 0x1f];
const ESCAPED = normalize([CONTROLS, [QUOTE, QUOTE], [BACKSLASH, BACKSLASH]]);
const DIRECT = complement(ESCAPED);
/** Sets of so many characters mean "any": control characters without a short escape are left out of them. */
const WIDE = 1000;

/**
 * Inside a string of JSON, each character in one way: escapes only for those that must be, so that names can be told
 * apart by their spelling.
 */
export const inJson: Spelling = (ranges) => {
  const direct = intersect(ranges, DIRECT);
  const isWide = direct.reduce((sum, [first, last]) => sum + last - first + 1, 0) > WIDE;
  const escapes: string[] = [];
  for (const [first, last] of intersect(ranges, ESCAPED))
    for (let point = first; point <= last; point++)
      escapes.push(JSON.stringify(String.fromCodePoint(point)).slice(1, -1));
  const short = escapes.filter((escape) => escape.length === 2).map((escape) => escape[1]);
  const long = isWide ? [] : escapes.filter((escape) => escape.length > 2);
  return {
    direct,
    escaped: [
      ...(short.length > 0 ? [sequence(text("\\"), oneOf(short.join("")))] : []),
      ...long.map(text),
    ],
  };
};

/** One of some characters. */
export function oneOf(chars: string): Expression {
  const points = Array.from(chars, (char) => char.codePointAt(0) ?? 0);
  return { kind: "class", ranges: normalize(points.map((point) => [point, point])) };
}

export const oneChar = (ranges: Ranges): Expression => ({ kind: "class", ranges });

/** An automaton as rules, one for each state; adds them, and returns where to begin. */
export function automatonRules(
  rules: Rules,
  prefix: string,
  automaton: Automaton,
  spelling: Spelling,
): Expression {
  const nameOf = (state: number): string => `${prefix}_${state}`;
  automaton.forEach(({ accepts, arrows }, state) => {
    const parts: Expression[] = [];
    let loop: Expression = EMPTY;
    for (const { ranges, to } of arrows) {
      const { direct, escaped } = spelling(ranges);
      // What stays in a state by plain characters is one run of them: that is matched without a rule for each.
      if (to === state) loop = repeat(oneChar(direct), 0, Infinity);
      else parts.push(sequence(oneChar(direct), rule(nameOf(to))));
      parts.push(...escaped.map((each) => sequence(each, rule(nameOf(to)))));
    }
    rules.set(nameOf(state), sequence(loop, apart(accepts ? [...parts, EMPTY] : parts)));
  });
  return rule(nameOf(0));
}

/** Any number of characters of a set, at least `min`; adds a rule. */
export function runRules(
  rules: Rules,
  name: string,
  { direct, escaped }: Spelled,
  min: number,
): Expression {
  const rest = apart([...escaped.map((each) => sequence(each, rule(name))), EMPTY]);
  rules.set(name, sequence(repeat(oneChar(direct), 0, Infinity), rest));
  return sequence(repeat(oneChar(direct), min, min), rule(name));
}

/** A language without "and", "not" or divisors as an expression; undefined for one that has them. */
export function directExpression(regex: Regex, spelling: Spelling): Expression | undefined {
  switch (regex.kind) {
    case "none":
      return NEVER;
    case "empty":
      return EMPTY;
    case "set": {
      const { direct, escaped } = spelling(regex.ranges);
      return either([oneChar(direct), ...escaped]);
    }
    case "sequence": {
      const head = directExpression(regex.head, spelling);
      const tail = directExpression(regex.tail, spelling);
      return head && tail && sequence(head, tail);
    }
    case "either": {
      const parts = regex.parts.map((part) => directExpression(part, spelling));
      return parts.every((part) => part !== undefined) ? either(parts) : undefined;
    }
    case "repeat": {
      // Repeated alternatives of different lengths are slow to match: runs are of plain characters.
      const part =
        regex.part.kind === "set"
          ? oneChar(spelling(regex.part.ranges).direct)
          : directExpression(regex.part, spelling);
      return part && repeat(part, regex.min, regex.max);
    }
    default:
      return undefined;
  }
}

/** Names of the rules that some text completes. */
export function productiveRules(rules: Rules): Set<string> {
  const found = new Set<string>();
  for (let before = -1; found.size > before;) {
    before = found.size;
    for (const [name, body] of rules) if (!found.has(name) && canEnd(body, found)) found.add(name);
  }
  return found;
}

/** Whether some text completes an expression, given the rules for which that is so. */
export function canEnd(body: Expression, productive: ReadonlySet<string>): boolean {
  switch (body.kind) {
    case "text":
      return true;
    case "class":
      return body.ranges.length > 0;
    case "sequence":
      return body.parts.every((part) => canEnd(part, productive));
    case "either":
      return body.parts.some((part) => canEnd(part, productive));
    case "repeat":
      return body.min === 0 || canEnd(body.part, productive);
    case "rule":
      return productive.has(body.name);
    case "until":
      return true;
  }
}

/** Rules that go by other names, so that they can stand beside those of another grammar. */
export function renamed(rules: Rules, prefix: string): Rules {
  const expression = (body: Expression): Expression => {
    switch (body.kind) {
      case "rule":
        return rule(prefix + body.name);
      case "until":
        return { ...body, then: prefix + body.then };
      case "sequence":
      case "either":
        return { ...body, parts: body.parts.map(expression) };
      case "repeat":
        return { ...body, part: expression(body.part) };
      default:
        return body;
    }
  };
  return new Map([...rules].map(([name, body]) => [prefix + name, expression(body)]));
}
