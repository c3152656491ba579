/** Scopes of variables, and the names that every template has: Jinja's own and those that transformers adds. */

import { bind } from "./arguments.js";
import { strftime } from "./strftime.js";
import {
  Callable,
  iterate,
  keyOf,
  Namespace,
  TemplateError,
  text,
  typeName,
  Undefined,
  View,
  type Dict,
  type Named,
  type Value,
} from "./values.js";

/** As in Jinja's sandbox. */
const MAX_RANGE = 100_000;
/** Variables, looked up in the scopes around where a scope has none of that name. */
export class Scope {
  readonly #values = new Map<string, Value>();

  constructor(private readonly parent?: Scope) {}

  get(name: string): Value {
    // None is a value: `??` would take it for absence.
    const value = this.#values.get(name);
    if (value !== undefined) return value;
    return this.parent ? this.parent.get(name) : new Undefined(`'${name}'`);
  }

  set(name: string, value: Value): void {
    this.#values.set(name, value);
  }
}

/** @throws TemplateError for names that templates may not store on a namespace */
export function checkAttribute(name: string): void {
  if (name.startsWith("_")) {
    throw new TemplateError(
      `templates cannot store underscore-prefixed attributes on a namespace, but got '${name}'`,
    );
  }
}

/** The names that every template has. */
export function globals(now: Date): Scope {
  const scope = new Scope();
  const define = (name: string, call: (args: readonly Value[], named: Named) => Value): void =>
    scope.set(name, new Callable(name, call));
  define("range", (args) => {
    if (args.length < 1 || args.length > 3)
      throw new TemplateError(`range takes 1 to 3 arguments, got ${args.length}`);
    const numbers = args.map((value) => {
      if (typeof value === "number" || typeof value === "boolean") return Number(value);
      if (value instanceof Undefined) value.fail();
      throw new TemplateError(`'${typeName(value)}' object cannot be interpreted as an integer`);
    });
    const [start, stop] = numbers.length === 1 ? [0, numbers[0]] : numbers;
    const step = numbers[2] ?? 1;
    if (step === 0) throw new TemplateError("range() arg 3 must not be zero");
    const count = Math.max(0, Math.ceil((stop - start) / step));
    if (count > MAX_RANGE) {
      throw new TemplateError(
        `Range too big. The sandbox blocks ranges larger than MAX_RANGE (${MAX_RANGE}).`,
      );
    }
    return new View(
      "range",
      Array.from({ length: count }, (_, i) => start + i * step),
      () => `${start}, ${stop}${step === 1 ? "" : `, ${step}`}`,
    );
  });
  define("dict", (args, named) => dictOf(args, named));
  define("namespace", (args, named) => {
    const attributes = new Map<string, Value>();
    for (const [key, value] of dictOf(args, named)) {
      checkAttribute(String(key));
      attributes.set(String(key), value);
    }
    return new Namespace(attributes);
  });
  define("raise_exception", (args) => {
    throw new TemplateError(text(args[0] ?? ""));
  });
  define("strftime_now", (args, named) => {
    const format = bind("strftime_now", ["format"], args, named).string("format");
    return strftime(now, format);
  });
  define("joiner", (args, named) => {
    const separator = bind("joiner", ["sep"], args, named).get("sep", ", ");
    let used = false;
    return new Callable("joiner", () => {
      const result = used ? separator : "";
      used = true;
      return result;
    });
  });
  define("cycler", (items) => {
    if (items.length === 0) throw new TemplateError("at least one item has to be provided");
    let at = 0;
    const attributes = new Map<string, Value>([["current", items[0]]]);
    const move = (to: number): void => {
      at = to % items.length;
      attributes.set("current", items[at]);
    };
    attributes.set("next", new Callable("next", () => {
      const current = items[at];
      move(at + 1);
      return current;
    })); // prettier-ignore
    attributes.set("reset", new Callable("reset", () => {
      move(0);
      return null;
    })); // prettier-ignore
    return new Namespace(attributes, false);
  });
  scope.set("self", new Namespace(new Map(), false));
  return scope;
}

function dictOf(args: readonly Value[], named: Named): Dict {
  if (args.length > 1)
    throw new TemplateError(`dict expected at most 1 argument, got ${args.length}`);
  const result: Dict = new Map();
  const [given] = args;
  if (given instanceof Map) for (const [key, value] of given) result.set(key, value);
  else if (given instanceof Namespace)
    throw new TemplateError("'Namespace' object is not iterable");
  else if (given !== undefined) {
    for (const pair of iterate(given)) {
      const [key, value, ...more] = iterate(pair);
      if (key === undefined || value === undefined || more.length > 0) {
        throw new TemplateError("a dict is made of pairs");
      }
      result.set(keyOf(key), value);
    }
  }
  for (const [key, value] of named) result.set(key, value);
  return result;
}
