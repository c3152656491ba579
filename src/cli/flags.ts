/** Parsers of flag values: each says what is accepted when it refuses. */

import { InvalidArgumentError } from "commander";
import { formatNumber } from "../common/format.js";

interface Range {
  readonly min?: number;
  readonly max?: number;
}

function describeRange({ min, max }: Range): string {
  if (min !== undefined && max !== undefined) {
    return ` from ${formatNumber(min)} to ${formatNumber(max)}`;
  }
  if (min !== undefined) return `, at least ${formatNumber(min)}`;
  if (max !== undefined) return `, at most ${formatNumber(max)}`;
  return "";
}

function inRange(value: number, { min = -Infinity, max = Infinity }: Range): boolean {
  return value >= min && value <= max;
}

/** Whole numbers in decimal digits; `1e3`, `0x10` and `7.0` are refused rather than guessed at. */
export function integer(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(value) || !inRange(value, range)) {
      throw new InvalidArgumentError(`Give a whole number${describeRange(range)}.`);
    }
    return value;
  };
}

/** Finite decimal numbers, exponents allowed. */
export function decimal(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const written = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text);
    if (!written || !Number.isFinite(value) || !inRange(value, range)) {
      throw new InvalidArgumentError(`Give a number${describeRange(range)}.`);
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
