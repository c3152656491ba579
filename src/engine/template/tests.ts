/** Jinja's tests: what may stand behind `is`. */

import {
  Callable,
  compare,
  equal,
  Float,
  Generator,
  itemsOf,
  iterate,
  numeric,
  TemplateError,
  Undefined,
  View,
  type Value,
} from "./values.js";

type Test = (value: Value, args: readonly Value[]) => boolean;

const integer = (value: Value, what: string): number => {
  const number = numeric(value);
  if (number !== undefined) return number;
  if (value instanceof Undefined) value.fail();
  throw new TemplateError(`the test ${what} takes a number`);
};

const cased = (value: Value, change: (text: string) => string): boolean => {
  const text = typeof value === "string" ? value : "";
  return text === change(text) && text.toUpperCase() !== text.toLowerCase();
};

const argument = (args: readonly Value[], name: string): Value => {
  if (args.length !== 1)
    throw new TemplateError(`the test ${name} takes one argument, got ${args.length}`);
  return args[0];
};

const compared =
  (operator: string, holds: (order: number) => boolean): Test =>
  (value, args) =>
    holds(compare(value, argument(args, operator), operator));

/** Whether a container has an item. @throws TemplateError for what is no container */
export function contains(container: Value, item: Value): boolean {
  if (typeof container === "string") {
    if (typeof item === "string") return container.includes(item);
    if (item instanceof Undefined) item.fail();
    throw new TemplateError("'in <string>' requires string as left operand");
  }
  if (container instanceof Map) {
    const number = numeric(item);
    if (number !== undefined) return container.has(number);
    return item === null || typeof item === "string" ? container.has(item) : false;
  }
  return iterate(container).some((other) => equal(other, item));
}

const number = (value: Value): boolean => numeric(value) !== undefined;
const equals: Test = (value, args) => equal(value, argument(args, "eq"));
const differs: Test = (value, args) => !equal(value, argument(args, "ne"));
const less = compared("<", (order) => order < 0);
const most = compared("<=", (order) => order <= 0);
const greater = compared(">", (order) => order > 0);
const least = compared(">=", (order) => order >= 0);

export const TESTS: ReadonlyMap<string, Test> = new Map<string, Test>([
  ["defined", (value) => !(value instanceof Undefined)],
  ["undefined", (value) => value instanceof Undefined],
  ["none", (value) => value === null],
  ["boolean", (value) => typeof value === "boolean"],
  ["true", (value) => value === true],
  ["false", (value) => value === false],
  ["string", (value) => typeof value === "string"],
  ["number", number],
  ["integer", (value) => typeof value === "number"],
  ["float", (value) => value instanceof Float],
  ["mapping", (value) => value instanceof Map],
  ["sequence", (value) => typeof value === "string" || value instanceof Map || value instanceof Undefined || (value instanceof View && value.type === "range") || itemsOf(value) !== undefined],
  ["iterable", (value) => typeof value === "string" || value instanceof Map || value instanceof Undefined || value instanceof Generator || value instanceof View || itemsOf(value) !== undefined],
  ["callable", (value) => value instanceof Callable || value instanceof Undefined],
  ["sameas", (value, args) => value === argument(args, "sameas")],
  ["escaped", () => false],
  ["odd", (value) => Math.abs(integer(value, "odd") % 2) === 1],
  ["even", (value) => integer(value, "even") % 2 === 0],
  ["divisibleby", (value, args) => integer(value, "divisibleby") % integer(argument(args, "divisibleby"), "divisibleby") === 0],
  ["lower", (value) => cased(value, (text) => text.toLowerCase())],
  ["upper", (value) => cased(value, (text) => text.toUpperCase())],
  ["in", (value, args) => contains(argument(args, "in"), value)],
  ["eq", equals], ["equalto", equals], ["==", equals],
  ["ne", differs], ["!=", differs],
  ["lt", less], ["lessthan", less], ["<", less],
  ["le", most], ["<=", most],
  ["gt", greater], ["greaterthan", greater], [">", greater],
  ["ge", least], [">=", least],
]); // prettier-ignore
