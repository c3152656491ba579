/**
 * Patterns of `tokenizer.json` (literal strings and Oniguruma expressions) and the five ways in which the original
 * library cuts a text at their matches.
 */

import * as library from "@huggingface/tokenizers";
import { oneLine, quoted } from "../../common/bounds.js";
import { fail, type Json } from "./options.js";

const { SplitPreTokenizer } = library as unknown as {
  SplitPreTokenizer: new (config: object) => { readonly pattern: RegExp };
};

export type Behavior =
  "Removed" | "Isolated" | "MergedWithPrevious" | "MergedWithNext" | "Contiguous";

/** A stretch of a text, and whether the pattern matches it. Stretches follow one another without gaps. */
interface Stretch {
  start: number;
  end: number;
  readonly isMatch: boolean;
}

/** White space as Unicode has it; JavaScript's `\s` takes U+FEFF for it and does not know U+0085. */
export const SPACE = "\\p{White_Space}";

/** Constructs whose meaning is lost on the way to a JavaScript expression. */
const UNTRANSLATABLE: readonly (readonly [RegExp, string])[] = [
  [/\(\?>/, "an atomic group (?>…)"],
  [/\(\?[a-z]*-?[a-z]+\)/, "an option for the rest of the expression, such as (?i)"],
  [/\(\?(?!i:)[a-z]*-?[a-z]+:/, "a group with options other than (?i:…)"],
  [/\(\?#/, "a comment (?#…)"],
  [/\(\?~/, "an absence operator (?~…)"],
  [/\\[RXKNOgk](?![a-z])/, "\\R, \\X, \\K, \\N, \\O, \\g or \\k"],
  [/\\p\{\^/, "a negated property \\p{^…}"],
];

/** Characters that fold to an ASCII letter and are not ASCII: long s, Kelvin sign. */
const FOLDED: Readonly<Record<string, string>> = { s: "ſ", k: "\u212a" };

/** The expression of an option `pattern`, global and by code points. Throws PlanishError for one not understood. */
export function compilePattern(pattern: Json, path: string): RegExp {
  if (typeof pattern["String"] === "string") {
    return new RegExp(pattern["String"].replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "gu");
  }
  const source = pattern["Regex"] as string;
  // Escaped characters are no constructs.
  const bare = source.replace(/\\\\/g, "");
  for (const [construct, name] of UNTRANSLATABLE) {
    if (construct.test(bare))
      fail(path, `the expression ${quote(source)} has ${name}, which is not implemented`);
  }
  try {
    return new SplitPreTokenizer({ pattern: { Regex: foldGroups(source) } }).pattern;
  } catch (error) {
    const reason = oneLine((error as Error).message);
    return fail(path, `the expression ${quote(source)} is not understood: ${reason}`);
  }
}

const quote = (source: string): string => quoted(source, 120);

/**
 * `(?i:…)` folds the letters s and k beyond ASCII in Oniguruma; the library's translation folds ASCII only. The
 * missing characters are written out. Groups that hold other letters beyond ASCII do not occur in published files.
 */
function foldGroups(source: string): string {
  return source.replace(/\(\?i:((?:\\.|\[(?:\\.|[^\]\\])*\]|[^()\\[])*)\)/gs, (_, body: string) => {
    const folded = body.replace(/\\.|\[(?:\\.|[^\]\\])*\]|[sSkK]/gs, (item) => {
      if (item.startsWith("\\")) return item;
      if (item.startsWith("[")) {
        const extra = [...new Set(item.toLowerCase())].map((c) => FOLDED[c] ?? "").join("");
        return `${item.slice(0, -1)}${extra}]`;
      }
      return `[${item}${FOLDED[item.toLowerCase()]}]`;
    });
    return `(?i:${folded})`;
  });
}

/** Where `expression` matches and where it does not, from the beginning of `text` to its end. */
function stretches(text: string, expression: RegExp): Stretch[] {
  const found: Stretch[] = [];
  let end = 0;
  let lastMatchEnd = -1;
  for (const match of text.matchAll(expression)) {
    const start = match.index;
    const stop = start + match[0].length;
    // As in the original, nothing matches right behind a match.
    if (stop === start && start === lastMatchEnd) continue;
    if (start > end) found.push({ start: end, end: start, isMatch: false });
    found.push({ start, end: stop, isMatch: true });
    end = stop;
    lastMatchEnd = stop;
  }
  if (end < text.length) found.push({ start: end, end: text.length, isMatch: false });
  return found;
}

/** Puts `content` in the place of every match of `expression`. */
export function replaceMatches(text: string, expression: RegExp, content: string): string {
  return stretches(text, expression)
    .map(({ start, end, isMatch }) => (isMatch ? content : text.slice(start, end)))
    .join("");
}

/** Cuts `text` at the matches of `expression`; pieces are never empty. */
export function splitText(
  text: string,
  expression: RegExp,
  behavior: Behavior,
  invert = false,
): string[] {
  let parts = stretches(text, expression).map((part) => ({
    ...part,
    isMatch: part.isMatch !== invert,
  }));
  switch (behavior) {
    case "Isolated":
      break;
    case "Removed":
      parts = parts.filter((part) => !part.isMatch);
      break;
    case "Contiguous":
      parts = joined(parts, (part, previous) => part.isMatch === previous);
      break;
    case "MergedWithPrevious":
      parts = joined(parts, (part, previous) => part.isMatch && !previous);
      break;
    case "MergedWithNext":
      parts = joined(parts.reverse(), (part, previous) => part.isMatch && !previous).reverse();
      break;
  }
  return parts
    .filter((part) => part.end > part.start)
    .map((part) => text.slice(part.start, part.end));
}

/** Joins a part to the one before it where `joins` says so, given whether that one, by itself, was a match. */
function joined(
  parts: readonly Stretch[],
  joins: (part: Stretch, previousIsMatch: boolean) => boolean,
): Stretch[] {
  const result: Stretch[] = [];
  let previous = false;
  for (const part of parts) {
    const last = result.at(-1);
    if (last && joins(part, previous)) {
      last.start = Math.min(last.start, part.start);
      last.end = Math.max(last.end, part.end);
    } else {
      result.push({ ...part });
    }
    previous = part.isMatch;
  }
  return result;
}
