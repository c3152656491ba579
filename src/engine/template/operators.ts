/** Python's operators on template values. */

import { formatPercent } from "./printf.js";
import { MAX_TEXT } from "./methods.js";
import type { BinaryOperator } from "./syntax.js";
import {
  BEYOND_INTEGERS,
  Float,
  itemsOf,
  numeric,
  TemplateError,
  text,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.js";

/** @throws TemplateError for types that the operator has no meaning for */
export function binary(operator: BinaryOperator, left: Value, right: Value): Value {
  if (operator === "~") return text(left) + text(right);
  if (left instanceof Undefined) left.fail();
  if (operator === "%" && typeof left === "string") return formatPercent(left, right);
  if (right instanceof Undefined) right.fail();
  const x = numeric(left);
  const y = numeric(right);
  if (x !== undefined && y !== undefined) {
    return arithmetic(operator, x, y, left instanceof Float || right instanceof Float);
  }
  if (operator === "+") {
    if (typeof left === "string" && typeof right === "string") return left + right;
    if (Array.isArray(left) && Array.isArray(right)) return [...left, ...right];
    if (left instanceof Tuple && right instanceof Tuple)
      return new Tuple([...left.items, ...right.items]);
  }
  if (operator === "*") {
    const repeated =
      typeof left === "number"
        ? repeat(right, left)
        : typeof right === "number"
          ? repeat(left, right)
          : undefined;
    if (repeated !== undefined) return repeated;
  }
  throw new TemplateError(
    `unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`,
  );
}

/** @throws TemplateError for what is no number */
export function negate(value: Value, operator: "-" | "+"): Value {
  if (value instanceof Undefined) value.fail();
  const number = numeric(value);
  if (number === undefined) {
    throw new TemplateError(`bad operand type for unary ${operator}: '${typeName(value)}'`);
  }
  const result = operator === "-" ? -number : number;
  return value instanceof Float ? new Float(result) : result + 0;
}

function arithmetic(operator: BinaryOperator, x: number, y: number, isFloat: boolean): Value {
  const result = (value: number): Value => {
    if (isFloat) return new Float(value);
    if (!Number.isSafeInteger(value)) throw new TemplateError(BEYOND_INTEGERS);
    return value + 0;
  };
  switch (operator) {
    case "+":
      return result(x + y);
    case "-":
      return result(x - y);
    case "*":
      return result(x * y);
    case "**":
      if (x === 0 && y < 0) throw new TemplateError("0.0 cannot be raised to a negative power");
      if (x < 0 && !Number.isInteger(y))
        throw new TemplateError("complex numbers are not implemented");
      return y < 0 ? new Float(x ** y) : result(x ** y);
  }
  if (y === 0) throw new TemplateError("division by zero");
  if (operator === "/") return new Float(x / y);
  if (operator === "//") return result(Math.floor(x / y));
  const rest = x % y;
  return result(rest !== 0 && rest < 0 !== y < 0 ? rest + y : rest);
}

function repeat(value: Value, times: number): Value | undefined {
  const count = Math.max(0, times);
  if (typeof value === "string") {
    if (value.length * count > MAX_TEXT) throw new TemplateError("a text becomes too long");
    return value.repeat(count);
  }
  const items = itemsOf(value);
  if (!items) return undefined;
  if (items.length * count > MAX_TEXT >> 4) throw new TemplateError("a list becomes too long");
  const all = Array.from({ length: count }, () => items).flat();
  return value instanceof Tuple ? new Tuple(all) : all;
}
