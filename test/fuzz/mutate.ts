/** Mutations of JSON that keep most of its structure, and of plain bytes and text. */
import type { Random } from "../../src/common/random.js";

/** JSON text put in as it is, for what no value writes: 1e999, NaN, equal keys. */
class Raw {
  constructor(readonly text: string) {}
}

const NUMBERS = [
  "0", "-0", "1", "-1", "2", "3", "7", "0.5", "-0.5", "1.5", "1e-45", "1e-300", "1e300", "1e999", "-1e999", "NaN",
  "Infinity", "127", "128", "255", "256", "65535", "65536", "2000000", "99999999", "2147483647", "2147483648",
  "4294967295", "4294967296", "1e15", "9007199254740991", "9007199254740992", "9007199254740993", "1e21",
]; // prettier-ignore

const OTHERS = [
  "null", "true", "false", "[]", "{}", '""', '"a"', '"0"', '"-1"', '"NaN"', '"\\u0000"', '"\\ud800"', '"\\n\\u001b[2J"',
  '"__proto__"', '"constructor"', '"../../etc/passwd"', "[null]", "[[]]", "[{}]", '{"":0}', '{"__proto__":{"a":1}}',
  "[0,0]", "[1e999]", "[1,2,3,4,5,6,7,8,9]",
]; // prettier-ignore

const KEYS = [
  "__proto__",
  "constructor",
  "toString",
  "hasOwnProperty",
  "length",
  "",
  "type",
  "a\nb",
];

export function pick<T>(random: Random, items: readonly T[]): T {
  return items[random.below(items.length)];
}

type Path = readonly (string | number)[];

/** A document to mutate, with the places in it. */
export class JsonBase {
  readonly paths: readonly Path[];
  readonly keys: readonly string[];

  /** `keys`: further names and values that mean something to the reader. */
  constructor(
    readonly value: unknown,
    keys: readonly string[] = [],
    readonly values: readonly unknown[] = [],
  ) {
    const paths: Path[] = [];
    const names = new Set([...KEYS, ...keys]);
    const walk = (each: unknown, path: Path): void => {
      paths.push(path);
      if (typeof each !== "object" || each === null) return;
      for (const [key, item] of Object.entries(each)) {
        if (!Array.isArray(each)) names.add(key);
        walk(item, [...path, Array.isArray(each) ? Number(key) : key]);
      }
    };
    walk(value, []);
    this.paths = paths;
    this.keys = [...names];
  }

  /** The text of the document after one to four mutations. */
  mutated(random: Random): string {
    let value = this.value;
    const changes = 1 + Math.floor(random.uniform() ** 2 * 4);
    for (let i = 0; i < changes; i++) {
      const path = pick(random, this.paths);
      value = changed(value, path, 0, (old) => this.#change(old, random));
    }
    const text = write(value);
    return random.uniform() < 0.06 ? mutatedText(text, random) : text;
  }

  #change(old: unknown, random: Random): unknown {
    switch (random.below(12)) {
      case 0:
      case 1:
        return new Raw(pick(random, NUMBERS));
      case 2:
        return new Raw(pick(random, OTHERS));
      case 3:
        return near(old, random);
      case 4:
        return undefined;
      case 5:
        return at(this.value, pick(random, this.paths));
      case 6:
        return this.values.length > 0 ? pick(random, this.values) : near(old, random);
      case 7:
        return withKey(old, pick(random, this.keys), scalar(random));
      case 8:
        return twice(old, random);
      case 9:
        return list(old, random);
      case 10:
        return random.uniform() < 0.1 ? deep(random) : pick<unknown>(random, [[old], { a: old }]);
      default:
        return typeof old === "object" ? list(old, random) : near(old, random);
    }
  }
}

function scalar(random: Random): Raw {
  return new Raw(pick(random, random.uniform() < 0.7 ? NUMBERS : OTHERS));
}

/** Like what was there, but not quite. */
function near(old: unknown, random: Random): unknown {
  if (typeof old === "number")
    return pick(random, [old + 1, old - 1, -old, old * 2, old / 2, old + 0.5, old * 1e9, old * 0]);
  if (typeof old === "boolean") return !old;
  if (typeof old !== "string") return scalar(random);
  return pick(random, [
    `${old}x`,
    old.slice(1),
    old.toUpperCase(),
    old + old,
    old.repeat(50),
    `\u0000${old}`,
    "",
  ]);
}

function withKey(old: unknown, key: string, value: unknown): unknown {
  if (typeof old !== "object" || old === null || old instanceof Raw || Array.isArray(old))
    return value;
  return new Raw(
    write(old).replace(
      /\}$/,
      `${Object.keys(old).length > 0 ? "," : ""}${JSON.stringify(key)}:${write(value)}}`,
    ),
  );
}

/** The same key twice with different values. */
function twice(old: unknown, random: Random): unknown {
  if (typeof old !== "object" || old === null || old instanceof Raw) return scalar(random);
  const keys = Object.keys(old);
  return keys.length === 0 ? scalar(random) : withKey(old, pick(random, keys), scalar(random));
}

function list(old: unknown, random: Random): unknown {
  if (!Array.isArray(old)) return withKey(old, pick(random, KEYS), scalar(random));
  const items = old as unknown[];
  switch (random.below(5)) {
    case 0:
      return [...items, ...items.slice(-1)];
    case 1:
      return items.slice(0, random.below(items.length + 1));
    case 2:
      return [...items].reverse();
    case 3:
      return Array.from({ length: 300 }, (_, i) => items[i % Math.max(items.length, 1)] ?? 0);
    default:
      return [...items, scalar(random)];
  }
}

function deep(random: Random): Raw {
  const depth = pick(random, [65, 1000, 20_000]);
  return random.uniform() < 0.5
    ? new Raw("[".repeat(depth) + "]".repeat(depth))
    : new Raw('{"a":'.repeat(depth) + "0" + "}".repeat(depth));
}

function at(value: unknown, path: Path): unknown {
  return path.reduce((each: unknown, key) => (each as Record<string, unknown>)[key], value);
}

/** A copy with the value at a path changed, or dropped; as it is where an earlier mutation removed the place. */
function changed(
  value: unknown,
  path: Path,
  depth: number,
  change: (old: unknown) => unknown,
): unknown {
  if (depth === path.length) return change(value) ?? (depth === 0 ? null : undefined);
  if (typeof value !== "object" || value === null || value instanceof Raw) return value;
  const key = path[depth];
  if (!Object.hasOwn(value, key)) return value;
  const item = changed((value as Record<string, unknown>)[key], path, depth + 1, change);
  if (Array.isArray(value)) {
    const copy = [...(value as unknown[])];
    if (item === undefined) copy.splice(Number(key), 1);
    else copy[Number(key)] = item;
    return copy;
  }
  const copy = { ...value, [key]: item };
  return copy;
}

function write(value: unknown): string {
  if (value instanceof Raw) return value.text;
  if (Array.isArray(value)) return `[${value.map(write).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const members = Object.entries(value).filter(([, item]) => item !== undefined);
  return `{${members.map(([key, item]) => `${JSON.stringify(key)}:${write(item)}`).join(",")}}`;
}

/** A text with a few characters dropped, doubled or put in. */
export function mutatedText(text: string, random: Random, pieces: readonly string[] = []): string {
  const start = random.below(text.length + 1);
  const end = Math.min(text.length, start + 1 + Math.floor(random.uniform() ** 3 * 40));
  switch (random.below(5)) {
    case 0:
      return text.slice(0, start) + text.slice(end);
    case 1:
      return text.slice(0, end) + text.slice(start);
    case 2:
      return text.slice(0, start);
    case 3:
      return (
        text.slice(0, start) +
        String.fromCharCode(random.below(random.uniform() < 0.9 ? 128 : 65536)) +
        text.slice(start)
      );
    default:
      return (
        text.slice(0, start) +
        pick(random, pieces.length > 0 ? pieces : [...NUMBERS, ...OTHERS]) +
        text.slice(start)
      );
  }
}

const BYTES = [0, 1, 2, 0x7f, 0x80, 0xff];

/** Bytes with a few of them changed, or cut, or lengthened; in place where it can be. */
export function mutatedBytes(bytes: Uint8Array, random: Random, within = bytes.length): Uint8Array {
  switch (random.below(8)) {
    case 0:
      return bytes.slice(0, random.below(bytes.length + 1));
    case 1: {
      const longer = new Uint8Array(bytes.length + 1 + random.below(64));
      longer.set(bytes);
      return longer;
    }
    default: {
      const copy = bytes.slice();
      const count = 1 + random.below(3);
      for (let i = 0; i < count; i++) {
        const start = random.below(within);
        const length = pick(random, [1, 1, 1, 2, 4, 8]);
        const value = random.uniform() < 0.5 ? pick(random, BYTES) : random.below(256);
        copy.fill(value, start, start + length);
      }
      return copy;
    }
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export function encode(text: string): Uint8Array {
  return encoder.encode(text);
}

export function decode(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}
