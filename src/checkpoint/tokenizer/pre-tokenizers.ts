/** Pre-tokenizers: how a text is cut into the words that a model's merges stay within. */

import { toByteCharacters } from "./bytes.js";
import { checkPart, fail, sequence, type Json, type Part } from "./options.js";
import { compilePattern, splitText, SPACE, type Behavior } from "./pattern.js";

/** A stretch of text on its way to the model. */
export interface Piece {
  readonly text: string;
  /** Whether it begins where the whole input begins. */
  readonly first: boolean;
}

export type PreTokenizer = (pieces: readonly Piece[]) => Piece[];

const GPT2_WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`,
  "gu",
);
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const WORDS = new RegExp(`[${WORD}]+|[^${WORD}${SPACE}]+`, "gu");
const SPACES = new RegExp(SPACE, "gu");
/** ASCII punctuation, symbols among it, and what Unicode calls punctuation. */
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}]/gu;
const NUMERIC = /\p{N}/gu;

const DEFAULT_FIXED_LENGTH = 5;

/** The pre-tokenizer of a tokenizer.json's part. Throws PlanishError for options that are not implemented. */
export function createPreTokenizer(value: unknown, path?: string): PreTokenizer {
  return build(checkPart("pre_tokenizer", value, path));
}

function build(part: Part): PreTokenizer {
  const { options, path } = part;
  switch (part.type) {
    case "Sequence": {
      const parts = sequence("pre_tokenizer", part, "pretokenizers").map(build);
      return (pieces) => parts.reduce<Piece[]>((done, next) => next(done), [...pieces]);
    }
    case "Split":
      return splitting(
        compilePattern(options["pattern"] as Json, path),
        options["behavior"] as Behavior,
        options["invert"] as boolean,
      );
    case "Punctuation":
      return splitting(PUNCTUATION, (options["behavior"] ?? "Isolated") as Behavior);
    case "Digits":
      return splitting(NUMERIC, options["individual_digits"] ? "Isolated" : "Contiguous");
    case "Whitespace":
      return splitting(WORDS, "Removed", true);
    case "WhitespaceSplit":
      return splitting(SPACES, "Removed");
    case "BertPreTokenizer": {
      const words = splitting(SPACES, "Removed");
      const marks = splitting(PUNCTUATION, "Isolated");
      return (pieces) => marks(words(pieces));
    }
    case "CharDelimiterSplit":
      return splitting(compilePattern({ String: options["delimiter"] }, path), "Removed");
    case "FixedLength": {
      const length = (options["length"] ?? DEFAULT_FIXED_LENGTH) as number;
      return perPiece((text) => {
        const characters = Array.from(text);
        const parts: string[] = [];
        for (let i = 0; i < characters.length; i += length) {
          parts.push(characters.slice(i, i + length).join(""));
        }
        return parts;
      });
    }
    case "ByteLevel":
      return byteLevel(options);
    default:
      return metaspace(part);
  }
}

/** Applies `cut` to each piece; the first part of a first piece stays first when it begins the piece. */
function perPiece(cut: (text: string, first: boolean) => string[]): PreTokenizer {
  return (pieces) =>
    pieces.flatMap(({ text, first }) =>
      cut(text, first).map((part, i) => ({ text: part, first: first && i === 0 })),
    );
}

function splitting(expression: RegExp, behavior: Behavior, invert = false): PreTokenizer {
  return (pieces) =>
    pieces.flatMap(({ text, first }) => {
      const parts = splitText(text, expression, behavior, invert);
      // Where the beginning was removed, no part begins the input.
      const begins = first && behavior === "Removed" ? text.startsWith(parts[0] ?? "") : first;
      return parts.map((part, i) => ({ text: part, first: begins && i === 0 }));
    });
}

function byteLevel(options: Json): PreTokenizer {
  const useRegex = options["use_regex"] !== false;
  return perPiece((text) => {
    const spaced = options["add_prefix_space"] && !text.startsWith(" ") ? ` ${text}` : text;
    const words = useRegex ? splitText(spaced, GPT2_WORDS, "Isolated") : [spaced];
    return words.map(toByteCharacters);
  });
}

/** The prepend scheme of a Metaspace, checked against the older option. */
export function prependScheme({ options, path }: Part): string {
  const scheme = (options["prepend_scheme"] ?? "always") as string;
  if (options["add_prefix_space"] === false && scheme !== "never") {
    fail(path, `add_prefix_space false contradicts prepend_scheme ${JSON.stringify(scheme)}`);
  }
  return scheme;
}

function metaspace(part: Part): PreTokenizer {
  const replacement = part.options["replacement"] as string;
  const scheme = prependScheme(part);
  const words = compilePattern({ String: replacement }, part.path);
  return perPiece((text, first) => {
    let marked = text.replaceAll(" ", () => replacement);
    if (!marked.startsWith(replacement) && (scheme === "always" || (scheme === "first" && first))) {
      marked = replacement + marked;
    }
    return part.options["split"] === false ? [marked] : splitText(marked, words, "MergedWithNext");
  });
}
