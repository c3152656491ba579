/**
 * Renders a parsed template as Jinja 2 does in the environment that transformers sets up: immutable sandbox, loop
 * controls, `generation` blocks, `raise_exception`, `strftime_now`, `namespace`, `dict`.
 */

import { attribute, item, slice } from "./access.js";
import { applyFilter, applyTest } from "./filters.js";
import { binary, negate } from "./operators.js";
import { checkAttribute, globals, Scope } from "./globals.js";
import { parse } from "./parser.js";
import type {
  Arguments,
  Body,
  Comparison,
  Expression,
  ForStatement,
  MacroStatement,
  Statement,
  Target,
} from "./syntax.js";
import { contains } from "./tests.js";
import {
  Callable,
  compare,
  equal,
  Float,
  fromJavaScript,
  isTrue,
  iterate,
  keyOf,
  Namespace,
  TemplateError,
  text,
  Tuple,
  typeName,
  Undefined,
  type Dict,
  type Named,
  type Value,
} from "./values.js";

/** Macros and recursive loops inside one another. */
const MAX_CALLS = 200;

/** A parsed template. */
export class JinjaTemplate {
  readonly #body: Body;

  /** @throws TemplateError where the source is not Jinja, or uses what is not implemented */
  constructor(source: string) {
    this.#body = parse(source);
  }

  /**
   * The text for some variables. `now` is what `strftime_now` writes.
   * @throws TemplateError when the template raises an exception or does what Python refuses
   */
  render(variables: Readonly<Record<string, unknown>>, now = new Date()): string {
    const scope = new Scope(globals(now));
    for (const [name, value] of Object.entries(variables)) {
      if (value !== undefined) scope.set(name, fromJavaScript(value));
    }
    return new Interpreter().render(this.#body, new Scope(scope));
  }
}

// `null` is None, a value; only undefined is absence.
type Flow = "next" | "break" | "continue";

class Interpreter {
  #calls = 0;

  render(body: Body, scope: Scope): string {
    const out: string[] = [];
    if (this.#run(body, scope, out) !== "next")
      throw new TemplateError("break or continue outside of a loop");
    return out.join("");
  }

  #run(body: Body, scope: Scope, out: string[]): Flow {
    for (const statement of body) {
      const flow = this.#statement(statement, scope, out);
      if (flow !== "next") return flow;
    }
    return "next";
  }

  #statement(statement: Statement, scope: Scope, out: string[]): Flow {
    switch (statement.kind) {
      case "text":
        out.push(statement.text);
        return "next";
      case "output":
        out.push(text(this.#value(statement.value, scope)));
        return "next";
      case "if":
        return this.#run(
          isTrue(this.#value(statement.test, scope)) ? statement.then : statement.otherwise,
          scope,
          out,
        );
      case "for":
        this.#loop(statement, this.#value(statement.iterable, scope), scope, out, 1);
        return "next";
      case "set":
        this.#assign(statement.target, this.#value(statement.value, scope), scope);
        return "next";
      case "capture": {
        const captured = this.render(statement.body, new Scope(scope));
        const value = statement.filter
          ? this.#filtered(statement.filter, captured, scope)
          : captured;
        this.#assign(statement.target, value, scope);
        return "next";
      }
      case "macro":
        scope.set(statement.name, this.#macro(statement, scope));
        return "next";
      case "callBlock": {
        const caller = this.#macro(statement.caller, scope);
        const { callee, args } = statement.call;
        out.push(text(this.#call(this.#value(callee, scope), args, scope, caller)));
        return "next";
      }
      case "filterBlock": {
        const body = this.render(statement.body, new Scope(scope));
        out.push(text(this.#filtered(statement.filter, body, scope)));
        return "next";
      }
      case "with": {
        const inner = new Scope(scope);
        for (const [target, value] of statement.values)
          this.#assign(target, this.#value(value, scope), inner);
        return this.#run(statement.body, inner, out);
      }
      case "scope":
        out.push(this.render(statement.body, new Scope(scope)));
        return "next";
      default:
        return statement.kind;
    }
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    if (target.kind === "name") {
      scope.set(target.name, value);
    } else if (target.kind === "tuple") {
      const items = iterate(value);
      if (items.length !== target.items.length) {
        const problem = items.length < target.items.length ? "not enough" : "too many";
        throw new TemplateError(
          `${problem} values to unpack (expected ${target.items.length}, got ${items.length})`,
        );
      }
      target.items.forEach((inner, i) => this.#assign(inner, items[i], scope));
    } else {
      const object = scope.get(target.object);
      if (!(object instanceof Namespace && object.writable)) {
        throw new TemplateError("cannot assign attribute on non-namespace object");
      }
      checkAttribute(target.name);
      object.attributes.set(target.name, value);
    }
  }

  #loop(loop: ForStatement, iterable: Value, scope: Scope, out: string[], depth: number): void {
    let items = iterate(iterable);
    if (loop.test) {
      const { test } = loop;
      items = items.filter((candidate) => {
        const inner = new Scope(scope);
        this.#assign(loop.target, candidate, inner);
        return isTrue(this.#value(test, inner));
      });
    }
    const changing: { last?: readonly Value[] } = {};
    let completed = false;
    const usesLoop = uses(loop.body, "loop");
    for (let i = 0; i < items.length; i++) {
      const inner = new Scope(scope);
      this.#assign(loop.target, items[i], inner);
      if (usesLoop) inner.set("loop", this.#loopValue(loop, items, i, scope, depth, changing));
      const flow = this.#run(loop.body, inner, out);
      if (flow === "break") break;
      completed ||= flow === "next";
    }
    // As Jinja's: also after a loop whose only iterations ended in break or continue.
    if (completed) return;
    if (this.#run(loop.otherwise, new Scope(scope), out) !== "next") {
      throw new TemplateError("break or continue in the else of a loop is not implemented");
    }
  }

  #loopValue(
    loop: ForStatement,
    items: readonly Value[],
    i: number,
    scope: Scope,
    depth: number,
    changing: { last?: readonly Value[] },
  ): Value {
    const { length } = items;
    const attributes = new Map<string, Value>([
      ["index", i + 1],
      ["index0", i],
      ["revindex", length - i],
      ["revindex0", length - i - 1],
      ["first", i === 0],
      ["last", i === length - 1],
      ["length", length],
      ["depth", depth],
      ["depth0", depth - 1],
      ["previtem", i > 0 ? items[i - 1] : new Undefined("there is no previous item: it")],
      ["nextitem", i + 1 < length ? items[i + 1] : new Undefined("there is no next item: it")],
      ["cycle", new Callable("cycle", (args) => {
        if (args.length === 0) throw new TemplateError("no items for cycling given");
        return args[i % args.length];
      })],
      ["changed", new Callable("changed", (args) => {
        const same = changing.last?.length === args.length && changing.last.every((value, j) => equal(value, args[j]));
        changing.last = args;
        return !same;
      })],
    ]); // prettier-ignore
    const recurse = (args: readonly Value[]): Value => {
      if (!loop.recursive)
        throw new TemplateError(
          "The loop must have the 'recursive' marker to be called recursively.",
        );
      const out: string[] = [];
      this.#nested("loop", () => this.#loop(loop, args[0] ?? null, scope, out, depth + 1));
      return out.join("");
    };
    return new Callable("loop", recurse, attributes);
  }

  #nested<T>(name: string, work: () => T): T {
    if (++this.#calls > MAX_CALLS)
      throw new TemplateError(`${name} calls itself more than ${MAX_CALLS} times`);
    const result = work();
    this.#calls--;
    return result;
  }

  #macro({ name, parameters, body }: MacroStatement, defined: Scope): Callable {
    const render = (args: readonly Value[], named: Named): Value =>
      this.#nested(name, () => {
        const scope = new Scope(defined);
        const extra = new Map(named);
        const caller = extra.get("caller");
        if (caller !== undefined && !parameters.some((parameter) => parameter.name === "caller")) {
          extra.delete("caller");
          scope.set("caller", caller);
        } else if (caller === undefined) {
          scope.set("caller", new Undefined("No caller defined: it"));
        }
        parameters.forEach((parameter, i) => {
          const given = i < args.length ? args[i] : extra.get(parameter.name);
          if (i < args.length && extra.has(parameter.name)) {
            throw new TemplateError(
              `macro '${name}' got multiple values for argument '${parameter.name}'`,
            );
          }
          extra.delete(parameter.name);
          // Defaults may use the parameters before them.
          const fallback = (): Value =>
            parameter.fallback
              ? this.#value(parameter.fallback, scope)
              : new Undefined(`parameter '${parameter.name}' was not provided: it`);
          scope.set(parameter.name, given === undefined ? fallback() : given);
        });
        this.#rest(name, parameters.length, args, extra, body, scope);
        return this.render(body, scope);
      });
    const attributes = new Map<string, Value>([
      ["name", name],
      ["arguments", new Tuple(parameters.map((parameter) => parameter.name))],
    ]);
    return new Callable(name, render, attributes);
  }

  /** Arguments beyond a macro's parameters go to `varargs` and `kwargs` where its body uses them. */
  #rest(
    name: string,
    count: number,
    args: readonly Value[],
    named: Dict | Map<string, Value>,
    body: Body,
    scope: Scope,
  ): void {
    if (uses(body, "varargs")) scope.set("varargs", new Tuple(args.slice(count)));
    else if (args.length > count)
      throw new TemplateError(`macro '${name}' takes not more than ${count} argument(s)`);
    if (uses(body, "kwargs")) scope.set("kwargs", new Map(named));
    else if (named.size > 0) {
      throw new TemplateError(
        `macro '${name}' takes no keyword argument '${String([...named.keys()][0])}'`,
      );
    }
  }

  #filtered(filter: Expression, operand: Value, scope: Scope): Value {
    if (filter.kind !== "filter") throw new TemplateError("expected a filter");
    const value = filter.operand ? this.#filtered(filter.operand, operand, scope) : operand;
    const { positional, named } = this.#arguments(filter.args, scope);
    return applyFilter(filter.name, value, positional, named);
  }

  #value(expression: Expression, scope: Scope): Value {
    switch (expression.kind) {
      case "constant":
        return expression.float ? new Float(expression.value as number) : expression.value;
      case "name":
        return scope.get(expression.name);
      case "list":
        return expression.items.map((part) => this.#value(part, scope));
      case "tuple":
        return new Tuple(expression.items.map((part) => this.#value(part, scope)));
      case "dict":
        return new Map(
          expression.entries.map(([key, value]) => [
            keyOf(this.#value(key, scope)),
            this.#value(value, scope),
          ]),
        );
      case "attribute":
        return attribute(this.#value(expression.object, scope), expression.name);
      case "item":
        return item(this.#value(expression.object, scope), this.#value(expression.key, scope));
      case "slice":
        return slice(
          this.#value(expression.object, scope),
          expression.bounds.map((bound) => (bound ? this.#value(bound, scope) : undefined)),
        );
      case "call":
        return this.#call(this.#value(expression.callee, scope), expression.args, scope);
      case "filter": {
        const operand = this.#value(expression.operand as Expression, scope);
        const { positional, named } = this.#arguments(expression.args, scope);
        return applyFilter(expression.name, operand, positional, named);
      }
      case "test": {
        const { positional } = this.#arguments(expression.args, scope);
        return applyTest(expression.name, this.#value(expression.operand, scope), positional);
      }
      case "unary": {
        const operand = this.#value(expression.operand, scope);
        return expression.operator === "not"
          ? !isTrue(operand)
          : negate(operand, expression.operator);
      }
      case "binary": {
        const left = this.#value(expression.left, scope);
        return binary(expression.operator, left, this.#value(expression.right, scope));
      }
      case "logical": {
        const left = this.#value(expression.left, scope);
        return isTrue(left) === (expression.operator === "or")
          ? left
          : this.#value(expression.right, scope);
      }
      case "compare":
        return this.#compare(expression.first, expression.rest, scope);
      case "conditional":
        if (isTrue(this.#value(expression.test, scope))) return this.#value(expression.then, scope);
        return expression.otherwise
          ? this.#value(expression.otherwise, scope)
          : new Undefined(
              "the inline if-expression evaluated to false and no else section was defined: it",
            );
    }
  }

  #compare(
    first: Expression,
    rest: readonly (readonly [Comparison, Expression])[],
    scope: Scope,
  ): boolean {
    let left = this.#value(first, scope);
    for (const [operator, expression] of rest) {
      const right = this.#value(expression, scope);
      if (!holds(operator, left, right)) return false;
      left = right;
    }
    return true;
  }

  #arguments(args: Arguments, scope: Scope): { positional: Value[]; named: Map<string, Value> } {
    const positional = args.positional.map((value) => this.#value(value, scope));
    if (args.list) positional.push(...iterate(this.#value(args.list, scope)));
    const named = new Map<string, Value>();
    for (const [name, value] of args.named) {
      if (named.has(name)) throw new TemplateError(`keyword argument repeated: ${name}`);
      named.set(name, this.#value(value, scope));
    }
    if (args.dict) {
      const more = this.#value(args.dict, scope);
      if (!(more instanceof Map))
        throw new TemplateError(`argument after ** must be a mapping, not ${typeName(more)}`);
      for (const [name, value] of more) {
        if (typeof name !== "string") throw new TemplateError("keywords must be strings");
        if (named.has(name))
          throw new TemplateError(`got multiple values for keyword argument '${name}'`);
        named.set(name, value);
      }
    }
    return { positional, named };
  }

  #call(callee: Value, args: Arguments, scope: Scope, caller?: Callable): Value {
    const { positional, named } = this.#arguments(args, scope);
    if (callee instanceof Undefined) callee.fail();
    if (!(callee instanceof Callable))
      throw new TemplateError(`'${typeName(callee)}' object is not callable`);
    if (caller) named.set("caller", caller);
    return callee.call(positional, named);
  }
}

const names = new WeakMap<Body, ReadonlySet<string>>();

/** Whether a body reads a variable of that name anywhere. */
function uses(body: Body, name: string): boolean {
  let found = names.get(body);
  if (!found) {
    const all = new Set<string>();
    const visit = (node: unknown): void => {
      if (typeof node !== "object" || node === null) return;
      if ("kind" in node && node.kind === "name" && "name" in node) all.add(String(node.name));
      for (const child of Object.values(node)) visit(child);
    };
    visit(body);
    names.set(body, (found = all));
  }
  return found.has(name);
}

function holds(operator: Comparison, left: Value, right: Value): boolean {
  switch (operator) {
    case "==":
      return equal(left, right);
    case "!=":
      return !equal(left, right);
    case "in":
      return contains(right, left);
    case "not in":
      return !contains(right, left);
  }
  const order = compare(left, right, operator);
  if (operator === "<") return order < 0;
  if (operator === "<=") return order <= 0;
  return operator === ">" ? order > 0 : order >= 0;
}
