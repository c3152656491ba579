/**
 * Numbers between bounds as languages of their digits. At most 15 digits are written before the point (more are neither
 * exact in float64 nor wanted: a model may go on with digits for ever), and so many after it that a number near a bound
 * is read on its own side of it.
 */
import { ConstraintError } from "../contract.js";
import type { Regex, Regexes } from "../regex/nodes.js";

export interface NumberBounds {
  readonly integer: boolean;
  readonly min: number;
  readonly max: number;
  /** The bound itself is left out. */
  readonly aboveMin: boolean;
  readonly belowMax: boolean;
  /** Whole numbers that divide it. */
  readonly divisors: readonly number[];
}

/** Digits that float64 tells apart. */
const DIGITS = 15;
const LARGEST_DIVISOR = 1000;
/** Digits after the point where a bound does not ask for more. */
const FRACTION = 6;

export function numberRegex(regexes: Regexes, bounds: NumberBounds): Regex {
  const { min, max, divisors } = bounds;
  const integer = bounds.integer || divisors.length > 0;
  const digits = new Digits(regexes);
  if (!integer && min === -Infinity && max === Infinity) return digits.anyNumber();
  const ends = [min, max].filter(Number.isFinite);
  const fraction = integer ? 0 : fractionDigits(ends);
  const low = integer ? wholeBound(min, bounds.aboveMin, 1) : decimal(min, bounds.aboveMin);
  const high = integer ? wholeBound(max, bounds.belowMax, -1) : decimal(max, bounds.belowMax);
  const zero: Bound = { value: 0, isOut: false };
  const negative = (bound: Bound): Bound => ({ value: -bound.value, isOut: bound.isOut });
  const parts: Regex[] = [];
  const divided = divisors.map((divisor) => digits.multiple(divisor));
  if (high.value >= 0)
    parts.push(
      regexes.both([digits.between(low.value >= 0 ? low : zero, high, fraction), ...divided]),
    );
  if (low.value < 0) {
    const least = high.value < 0 ? negative(high) : { value: 0, isOut: true };
    const most = negative(low);
    parts.push(
      regexes.sequence([
        regexes.text("-"),
        regexes.both([digits.between(least, most, fraction), ...divided]),
      ]),
    );
  }
  return regexes.either(parts);
}

interface Bound {
  readonly value: number;
  /** The value itself is outside. */
  readonly isOut: boolean;
}

const decimal = (value: number, isOut: boolean): Bound => ({ value, isOut });

/** The nearest whole number inside a bound; `inward`: 1 for a lower one, -1 for an upper one. */
function wholeBound(value: number, isOut: boolean, inward: 1 | -1): Bound {
  if (!Number.isFinite(value)) return { value, isOut: false };
  const whole = inward === 1 ? Math.ceil(value) : Math.floor(value);
  return { value: isOut && whole === value ? whole + inward : whole, isOut: false };
}

/** @throws ConstraintError for bounds that are finer than digits can be told apart. */
function fractionDigits(ends: readonly number[]): number {
  const own = ends.map((end) => spelled(end)[1].length);
  const before = ends.map((end) => spelled(end)[0].length);
  const room = DIGITS - Math.max(1, ...before);
  const wanted = Math.max(...own, Math.min(FRACTION, room));
  if (wanted > room)
    throw new ConstraintError(
      `numbers between bounds of ${DIGITS} digits and more (${ends.join(", ")}) are not supported; give rounder ones`,
    );
  return wanted;
}

/** Digits before and after the point of a number's magnitude. */
function spelled(value: number): [whole: string, fraction: string] {
  const magnitude = Math.abs(value);
  for (let digits = 0; digits <= DIGITS; digits++) {
    const written = magnitude.toFixed(digits);
    if (written.includes("e")) break;
    if (Number(written) !== magnitude) continue;
    const [whole, fraction = ""] = written.split(".");
    return [whole, fraction.replace(/0+$/, "")];
  }
  throw new ConstraintError(`${value} has too many digits for a bound; give a rounder one`);
}

class Digits {
  private readonly digit: Regex;
  private readonly point: Regex;

  constructor(private readonly regexes: Regexes) {
    this.digit = this.range(0, 9);
    this.point = regexes.text(".");
  }

  private range(first: number, last: number): Regex {
    return this.regexes.set(first > last ? [] : [[0x30 + first, 0x30 + last]]);
  }

  private some(min: number, max: number): Regex {
    return this.regexes.repeat(this.digit, min, max);
  }

  private sequence(...parts: readonly Regex[]): Regex {
    return this.regexes.sequence(parts);
  }

  private optional(part: Regex): Regex {
    return this.regexes.repeat(part, 0, 1);
  }

  /** Whole numbers of at most `DIGITS` digits, without leading zeros. */
  private whole(): Regex {
    return this.regexes.either([
      this.range(0, 0),
      this.sequence(this.range(1, 9), this.some(0, DIGITS - 1)),
    ]);
  }

  multiple(divisor: number): Regex {
    if (!Number.isInteger(divisor) || divisor > LARGEST_DIVISOR)
      throw new ConstraintError(
        `multipleOf: ${divisor} is not supported; give a whole number from 1 to ${LARGEST_DIVISOR}`,
      );
    return this.regexes.multiple(divisor);
  }

  anyNumber(): Regex {
    const sign = this.optional(
      this.regexes.set([
        [0x2b, 0x2b],
        [0x2d, 0x2d],
      ]),
    );
    const e = this.regexes.set([
      [0x45, 0x45],
      [0x65, 0x65],
    ]);
    return this.sequence(
      this.optional(this.regexes.text("-")),
      this.whole(),
      this.optional(this.sequence(this.point, this.some(1, DIGITS))),
      this.optional(this.sequence(e, sign, this.some(1, 2))),
    );
  }

  /** Numbers from 0 on, with at most so many digits after the point. */
  between(low: Bound, high: Bound, fraction: number): Regex {
    const form = this.sequence(
      this.whole(),
      this.optional(this.sequence(this.point, this.some(fraction === 0 ? 0 : 1, fraction))),
    );
    const whole = fraction === 0 ? this.whole() : form;
    return this.regexes.both([whole, this.atLeast(low), this.atMost(high)]);
  }

  private anyFraction(): Regex {
    return this.optional(this.sequence(this.point, this.some(1, Infinity)));
  }

  private atLeast({ value, isOut }: Bound): Regex {
    if (value === 0 && !isOut) return this.regexes.any;
    const [whole, fraction] = spelled(value);
    const larger = this.regexes.either([
      this.sequence(this.range(1, 9), this.some(whole.length, Infinity)),
      ...this.differing(whole, (digit) => this.range(digit + 1, 9)),
    ]);
    const equal = this.sequence(this.regexes.text(whole), this.fractionAtLeast(fraction, isOut));
    return this.regexes.either([this.sequence(larger, this.anyFraction()), equal]);
  }

  private atMost({ value, isOut }: Bound): Regex {
    if (value === Infinity) return this.regexes.any;
    const [whole, fraction] = spelled(value);
    const shorter = whole.length > 1 ? this.some(1, whole.length - 1) : this.regexes.none;
    const smaller = this.regexes.either([
      shorter,
      ...this.differing(whole, (digit) => this.range(0, digit - 1)),
    ]);
    const equal = this.sequence(this.regexes.text(whole), this.fractionAtMost(fraction, isOut));
    return this.regexes.either([this.sequence(smaller, this.anyFraction()), equal]);
  }

  /** Digits as many as given, equal up to one place, and there as `at` says. */
  private differing(digits: string, at: (digit: number) => Regex): Regex[] {
    return Array.from(digits, (digit, i) =>
      this.sequence(
        this.regexes.text(digits.slice(0, i)),
        at(Number(digit)),
        this.some(digits.length - i - 1, digits.length - i - 1),
      ),
    );
  }

  private fractionAtLeast(fraction: string, isOut: boolean): Regex {
    const nonZero = this.sequence(this.some(0, Infinity), this.range(1, 9), this.some(0, Infinity));
    const from = this.regexes.text(fraction);
    const written = this.regexes.either([
      ...this.diverging(fraction, (digit) => this.range(digit + 1, 9)),
      this.sequence(from, isOut ? nonZero : this.some(0, Infinity)),
    ]);
    const beyond = this.sequence(this.point, written);
    return fraction === "" && !isOut ? this.optional(beyond) : beyond;
  }

  private fractionAtMost(fraction: string, isOut: boolean): Regex {
    const shorter = Array.from(fraction, (_, i) => fraction.slice(0, i))
      .filter((each) => each !== "")
      .map((each) => this.regexes.text(each));
    const zeros = this.regexes.repeat(this.range(0, 0), 0, Infinity);
    const same = isOut ? this.regexes.none : this.sequence(this.regexes.text(fraction), zeros);
    const written = this.regexes.either([
      ...this.diverging(fraction, (digit) => this.range(0, digit - 1)),
      ...shorter,
      same,
    ]);
    const below = this.sequence(this.point, written);
    return fraction === "" && isOut ? this.regexes.none : this.optional(below);
  }

  /** Equal up to one place, there as `at` says, then anything. */
  private diverging(digits: string, at: (digit: number) => Regex): Regex[] {
    return Array.from(digits, (digit, i) =>
      this.sequence(
        this.regexes.text(digits.slice(0, i)),
        at(Number(digit)),
        this.some(0, Infinity),
      ),
    );
  }
}
