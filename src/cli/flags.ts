/** Parsers of flag values: each says what is accepted when it refuses. */

import { InvalidArgumentError } from "commander";
import { describeRange, isFiniteIn, isIntegerIn, type Range } from "../common/bounds.js";

/** What is accepted, after "a number": ` from 1 to 10`, `, at least 1`. */
function accepted(range: Range): string {
  const text = describeRange(range);
  return text === "" || text.startsWith("from") ? ` ${text}`.trimEnd() : `, ${text}`;
}

/** Whole numbers in decimal digits; `1e3`, `0x10` and `7.0` are refused rather than guessed at. */
export function integer(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text) || !isIntegerIn(value, range)) {
      throw new InvalidArgumentError(`Give a whole number${accepted(range)}.`);
    }
    return value;
  };
}

/** Finite decimal numbers, exponents allowed. */
export function decimal(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const written = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text);
    if (!written || !isFiniteIn(value, range)) {
      throw new InvalidArgumentError(`Give a number${accepted(range)}.`);
    }
    return value;
  };
}

/** Names separated by commas; blanks around them are dropped, empty and repeated names refused. */
export function nameList(text: string): string[] {
  const names = text.split(",").map((name) => name.trim());
  if (names.includes("") || new Set(names).size !== names.length) {
    throw new InvalidArgumentError("Give distinct names separated by commas, such as a,b,c.");
  }
  return names;
}
