/**
 * Regular expressions as ECMAScript writes them (JSON Schema's `pattern`), as languages of whole texts. Anchors and
 * lookaheads become conditions on what is left of the text; what cannot be said by a regular language over what
 * follows (back references, lookbehinds, word boundaries) is refused by name.
 */
import { RegExpParser, type AST } from "@eslint-community/regexpp";
import { oneLine } from "../../../common/bounds.js";
import { ConstraintError } from "../contract.js";
import { complement, LAST_CODE_POINT, normalize, type Range, type Ranges } from "./ranges.js";
import type { Regex, Regexes } from "./nodes.js";

/** Characters of a pattern; what is longer was made by a machine, and not for people's texts. */
const LONGEST_PATTERN = 4000;
/** Repetitions that are counted; more of them take an automaton of as many states. */
const MOST_COUNTED = 10_000;

/**
 * The language of a pattern: `search`: texts in which it occurs, as JSON Schema means it; `whole`: texts that it
 * matches from beginning to end.
 * @throws ConstraintError naming what is not supported.
 */
export function parsePattern(regexes: Regexes, pattern: string, mode: "search" | "whole"): Regex {
  const parsed = parse(pattern);
  const reader = new PatternReader(regexes, pattern);
  if (mode === "whole") return reader.alternatives(parsed.alternatives, regexes.empty, true);
  const before = regexes.repeat(regexes.anyChar, 1, Infinity);
  return regexes.either([
    reader.alternatives(parsed.alternatives, regexes.any, true),
    regexes.sequence([before, reader.alternatives(parsed.alternatives, regexes.any, false)]),
  ]);
}

function parse(pattern: string): AST.Pattern {
  if (pattern.length > LONGEST_PATTERN)
    throw new ConstraintError(
      `the pattern has ${pattern.length} characters; at most ${LONGEST_PATTERN} are supported`,
    );
  const parser = new RegExpParser();
  try {
    return parser.parsePattern(pattern, 0, pattern.length, { unicode: true });
  } catch {
    // What is only wrong by the stricter rules of Unicode patterns (`\-`) means the same without them.
  }
  try {
    return parser.parsePattern(pattern, 0, pattern.length, { unicode: false });
  } catch (error) {
    const reason = (error as Error).message.replace(/^Invalid regular expression: /, "");
    throw new ConstraintError(`the pattern cannot be read (${oneLine(reason, 120)})`);
  }
}

class PatternReader {
  constructor(
    private readonly regexes: Regexes,
    private readonly pattern: string,
  ) {}

  /** What may stand from here on, given what follows (`rest`); `atStart`: nothing was taken before. */
  alternatives(list: readonly AST.Alternative[], rest: Regex, atStart: boolean): Regex {
    return this.regexes.either(list.map(({ elements }) => this.elements(elements, rest, atStart)));
  }

  private elements(elements: readonly AST.Element[], rest: Regex, atStart: boolean): Regex {
    const [first, ...others] = elements;
    if (first === undefined) return rest;
    const stays = first.type === "Assertion";
    const after = this.elements(others, rest, atStart && stays);
    return this.element(first, after, atStart);
  }

  private element(element: AST.Element, rest: Regex, atStart: boolean): Regex {
    const { regexes } = this;
    switch (element.type) {
      case "Assertion":
        return this.assertion(element, rest, atStart);
      case "Group":
      case "CapturingGroup":
        if (hasAssertion(element)) return this.alternatives(element.alternatives, rest, atStart);
        return regexes.sequence([
          this.alternatives(element.alternatives, regexes.empty, false),
          rest,
        ]);
      case "Quantifier": {
        const { element: part, min, max } = element;
        if (hasAssertion(part))
          throw this.unsupported("an anchor or lookahead that is repeated", element);
        if (min > MOST_COUNTED || (max > MOST_COUNTED && max !== Infinity))
          throw this.unsupported(`more than ${MOST_COUNTED} repetitions`, element);
        const once = this.element(part, regexes.empty, false);
        return regexes.sequence([regexes.repeat(once, min, max), rest]);
      }
      case "Character":
      case "CharacterSet":
      case "CharacterClass":
        return regexes.sequence([regexes.set(this.rangesOf(element)), rest]);
      case "Backreference":
        throw this.unsupported("a back reference", element);
      default:
        throw this.unsupported("a class of strings", element);
    }
  }

  private assertion(element: AST.Assertion, rest: Regex, atStart: boolean): Regex {
    const { regexes } = this;
    switch (element.kind) {
      case "start":
        return atStart ? rest : regexes.none;
      case "end":
        return rest.nullable ? regexes.empty : regexes.none;
      case "lookahead": {
        const ahead = this.alternatives(element.alternatives, regexes.any, atStart);
        return regexes.both([element.negate ? regexes.not(ahead) : ahead, rest]);
      }
      case "lookbehind":
        throw this.unsupported("a lookbehind", element);
      case "word":
        throw this.unsupported("a word boundary", element);
    }
  }

  private rangesOf(element: AST.Element | AST.CharacterClassElement): Ranges {
    switch (element.type) {
      case "Character":
        return normalize([[element.value, element.value]]);
      case "CharacterClassRange":
        return normalize([[element.min.value, element.max.value]]);
      case "CharacterClass": {
        const ranges = normalize(element.elements.flatMap((each) => this.rangesOf(each)));
        return element.negate ? complement(ranges) : ranges;
      }
      case "CharacterSet":
        return this.setOf(element);
      default:
        throw this.unsupported("a class of strings", element);
    }
  }

  private setOf(element: AST.CharacterSet): Ranges {
    switch (element.kind) {
      case "any":
        return complement(LINE_ENDS);
      case "digit":
        return element.negate ? complement(DIGITS) : DIGITS;
      case "word":
        return element.negate ? complement(WORD) : WORD;
      case "space":
        return element.negate ? complement(SPACE) : SPACE;
      case "property":
        return propertyRanges(element.raw);
    }
  }

  private unsupported(what: string, { start, end }: AST.Node): ConstraintError {
    const part = oneLine(this.pattern.slice(start, end), 60);
    return new ConstraintError(`the pattern has ${what} (${part}), which is not supported`);
  }
}

/** An element with `^`, `$` or a lookahead in it; whatever else is unsupported is found when it is read. */
function hasAssertion(element: AST.Element): boolean {
  switch (element.type) {
    case "Assertion":
      return true;
    case "Group":
    case "CapturingGroup":
      return element.alternatives.some(({ elements }) => elements.some(hasAssertion));
    case "Quantifier":
      return hasAssertion(element.element);
    default:
      return false;
  }
}

const chars = (text: string): Ranges =>
  normalize(Array.from(text, (char): Range => [char.codePointAt(0)!, char.codePointAt(0)!]));

const LINE_ENDS = chars("\n\r\u2028\u2029");
const DIGITS: Ranges = [[0x30, 0x39]];
const WORD = normalize([
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]);
/** ECMA-262, CharacterClassEscape :: s (WhiteSpace and LineTerminator). */
const SPACE = normalize([
  ...chars("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
  [0x2000, 0x200a],
]);

const PROPERTIES = new Map<string, Ranges>();

/** The characters of `\p{…}`, asked of the JavaScript engine, which knows Unicode's tables. */
function propertyRanges(raw: string): Ranges {
  let found = PROPERTIES.get(raw);
  if (found !== undefined) return found;
  const test = new RegExp(`^${raw}$`, "u");
  const ranges: [number, number][] = [];
  for (let point = 0; point <= LAST_CODE_POINT; point++) {
    if (!test.test(String.fromCodePoint(point))) continue;
    const open = ranges.at(-1);
    if (open?.[1] === point - 1) open[1] = point;
    else ranges.push([point, point]);
  }
  PROPERTIES.set(raw, (found = normalize(ranges)));
  return found;
}
