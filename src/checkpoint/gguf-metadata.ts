/** Typed access to GGUF metadata: a wrong type or a missing key is an error that names file and key. */

import { isIntegerIn, shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { GgufFile, GgufNumbers, GgufValue } from "./gguf-parser.js";

type NumberArray = Exclude<GgufNumbers, BigInt64Array | BigUint64Array>;

export class GgufMetadata {
  readonly #values: GgufFile["metadata"];
  readonly #file: string;

  constructor(values: GgufFile["metadata"], file: string) {
    this.#values = values;
    this.#file = file;
  }

  fail(what: string): never {
    throw new PlanishError(`${this.#file}: ${what}`);
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  string(key: string): string | undefined {
    return this.#typed(key, "a string", (value): value is string => typeof value === "string");
  }

  boolean(key: string): boolean | undefined {
    return this.#typed(key, "a boolean", (value): value is boolean => typeof value === "boolean");
  }

  number(key: string): number | undefined {
    return this.#typed(key, "a finite number", (value): value is number => Number.isFinite(value));
  }

  /** A non-negative integer. */
  count(key: string): number | undefined {
    return this.#typed(
      key,
      "one non-negative integer",
      (value): value is number => Number.isSafeInteger(value) && (value as number) >= 0,
    );
  }

  /**
   * The id of one of `size` tokens. Another value is a mistake that generation can do without (published files hold
   * 4294967295): a warning, and undefined.
   */
  tokenId(key: string, size: number): number | undefined {
    const value = this.#values.get(key);
    if (value === undefined || isIntegerIn(value, { min: 0, max: size - 1 })) return value;
    process.emitWarning(
      `${this.#file}: metadata ${key} is ${shown(value)}, there are ${size} tokens; it is left out`,
      "PlanishWarning",
    );
    return undefined;
  }

  strings(key: string): string[] | undefined {
    return this.#typed(
      key,
      "a list of strings",
      (value): value is string[] =>
        Array.isArray(value) && value.every((item) => typeof item === "string"),
    );
  }

  numbers(key: string): NumberArray | undefined {
    return this.#typed(
      key,
      "a list of numbers",
      (value): value is NumberArray =>
        ArrayBuffer.isView(value) &&
        !(value instanceof BigInt64Array) &&
        !(value instanceof BigUint64Array),
    );
  }

  /** Switches, one for each of some things. */
  flags(key: string): boolean[] | undefined {
    const value = this.#values.get(key);
    if (value === undefined) return undefined;
    const list: unknown[] = ArrayBuffer.isView(value)
      ? [...(value as Uint8Array)]
      : Array.isArray(value)
        ? value
        : [];
    const known = list.every((item) => typeof item === "boolean" || item === 0 || item === 1);
    if (list.length === 0 || !known) this.fail(`metadata ${key} must be a list of booleans`);
    return list.map((item) => item === true || item === 1);
  }

  /** The value of a getter, or an error when the key is not there. */
  required<T>(key: string, value: T | undefined): T {
    return value ?? this.fail(`metadata ${key} is missing; the file cannot be used as a model`);
  }

  #typed<T extends GgufValue>(
    key: string,
    kind: string,
    test: (value: GgufValue) => value is T,
  ): T | undefined {
    const value = this.#values.get(key);
    if (value === undefined) return undefined;
    if (!test(value)) this.fail(`metadata ${key} must be ${kind}`);
    return value;
  }
}

/** A float32 setting as the decimal that was meant: 1e-5 rather than 9.999999747e-6. */
export function shortestFloat32(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const candidate = Number(value.toPrecision(digits));
    if (Math.fround(candidate) === Math.fround(value)) return candidate;
  }
  return value;
}
