/** Jinja tokens to a tree, with the precedences of Jinja 2. */

import { tokenize, type Token } from "./lexer.js";
import type {
  Arguments,
  BinaryOperator,
  Body,
  Comparison,
  Expression,
  MacroStatement,
  Parameter,
  Statement,
  Target,
} from "./syntax.js";
import { BEYOND_INTEGERS, TemplateError } from "./values.js";

/** Blocks and brackets inside one another; published templates stay below 20. */
const MAX_DEPTH = 150;

const NO_ARGUMENTS: Arguments = { positional: [], named: [], list: undefined, dict: undefined };
const CONSTANTS: ReadonlyMap<string, boolean | null> = new Map([
  ["true", true], ["True", true], ["false", false], ["False", false], ["none", null], ["None", null],
]); // prettier-ignore
const COMPARISONS = new Set(["==", "!=", "<", "<=", ">", ">="]);

/** @throws TemplateError where the source is not Jinja, or uses a tag that is not implemented */
export function parse(source: string): Body {
  return new Parser(tokenize(source)).template();
}

class Parser {
  #at = 0;
  #depth = 0;

  constructor(private readonly tokens: readonly Token[]) {}

  template(): Body {
    const body = this.#body();
    if (this.#at < this.tokens.length) this.#fail(`unexpected tag '${this.#peekTag() ?? ""}'`);
    return body;
  }

  #fail(problem: string): never {
    throw new TemplateError(problem);
  }

  #nested<T>(read: () => T): T {
    if (++this.#depth > MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} levels of nesting`);
    const result = read();
    this.#depth--;
    return result;
  }

  get #token(): Token | undefined {
    return this.tokens[this.#at];
  }

  #is(type: Token["type"], ...values: string[]): boolean {
    const token = this.#token;
    return token?.type === type && (values.length === 0 || values.includes(token.value));
  }

  #skip(type: Token["type"], ...values: string[]): boolean {
    const found = this.#is(type, ...values);
    if (found) this.#at++;
    return found;
  }

  #expect(type: Token["type"], value?: string): string {
    const token = this.#token;
    if (token?.type !== type || (value !== undefined && token.value !== value)) {
      const found = token ? `'${token.value}'` : "the end";
      this.#fail(`expected ${value ? `'${value}'` : `a ${type}`}, found ${found}`);
    }
    this.#at++;
    return token.value;
  }

  /** The name of the tag that begins here. */
  #peekTag(): string | undefined {
    const next = this.tokens[this.#at + 1];
    return this.#is("open", "block") && next?.type === "name" ? next.value : undefined;
  }

  /** Statements up to one of the tags named, which is left for the caller. */
  #body(...ends: string[]): Body {
    return this.#nested(() => {
      const body: Statement[] = [];
      for (let token = this.#token; token; token = this.#token) {
        if (token.type === "text") {
          body.push({ kind: "text", text: token.value });
          this.#at++;
        } else if (this.#is("open", "output")) {
          this.#at++;
          body.push({ kind: "output", value: this.#tuple() });
          this.#expect("close", "output");
        } else {
          const tag = this.#peekTag() ?? this.#fail("a block tag has no name");
          if (ends.includes(tag)) return body;
          if (ends.length === 0 && /^(end|else$|elif$)/.test(tag)) return body;
          this.#at += 2;
          body.push(this.#statement(tag));
        }
      }
      if (ends.length > 0) this.#fail(`expected the tag '${ends.at(-1)}', found the end`);
      return body;
    });
  }

  /** The body up to `end`, whose tag is taken too. */
  #closed(end: string): Body {
    this.#close();
    const body = this.#body(end);
    this.#endTag(end);
    return body;
  }

  #close(): void {
    this.#expect("close", "block");
  }

  #endTag(name: string): void {
    this.#expect("open", "block");
    this.#expect("name", name);
    // Jinja allows the name of a macro or block behind its end.
    if (name === "endmacro" || name === "endcall") this.#skip("name");
    this.#close();
  }

  #statement(tag: string): Statement {
    switch (tag) {
      case "if":
        return this.#if();
      case "for":
        return this.#for();
      case "set":
        return this.#set();
      case "macro":
        return this.#macro();
      case "call":
        return this.#callBlock();
      case "filter": {
        const filter = this.#filters(undefined, true) ?? this.#fail("filter without a name");
        return { kind: "filterBlock", filter, body: this.#closed("endfilter") };
      }
      case "with": {
        const values: [Target, Expression][] = [];
        while (!this.#is("close")) {
          if (values.length > 0) this.#expect("operator", ",");
          const target = this.#target();
          this.#expect("operator", "=");
          values.push([target, this.#expression()]);
        }
        return { kind: "with", values, body: this.#closed("endwith") };
      }
      // Marks what a model writes; it changes nothing but has a scope of its own.
      case "generation":
        return { kind: "scope", body: this.#closed("endgeneration") };
      case "break":
      case "continue":
        this.#close();
        return { kind: tag };
      default:
        return this.#fail(
          `the tag '${tag}' is not implemented (accepted: if, for, set, macro, call, filter, with, generation, break, continue, raw)`,
        );
    }
  }

  #if(): Statement {
    const test = this.#tuple();
    this.#close();
    const then = this.#body("elif", "else", "endif");
    if (this.#peekTag() === "elif") {
      this.#at += 2;
      return { kind: "if", test, then, otherwise: [this.#nested(() => this.#if())] };
    }
    let otherwise: Body = [];
    if (this.#peekTag() === "else") {
      this.#at += 2;
      this.#close();
      otherwise = this.#body("endif");
    }
    this.#endTag("endif");
    return { kind: "if", test, then, otherwise };
  }

  #for(): Statement {
    const target = this.#target();
    this.#expect("name", "in");
    const iterable = this.#tuple(false);
    const test = this.#skip("name", "if") ? this.#expression() : undefined;
    const recursive = this.#skip("name", "recursive");
    this.#close();
    const body = this.#body("endfor", "else");
    let otherwise: Body = [];
    if (this.#peekTag() === "else") {
      this.#at += 2;
      this.#close();
      otherwise = this.#body("endfor");
    }
    this.#endTag("endfor");
    return { kind: "for", target, iterable, test, body, otherwise, recursive };
  }

  #set(): Statement {
    const target = this.#target();
    if (this.#skip("operator", "=")) {
      const value = this.#tuple();
      this.#close();
      return { kind: "set", target, value };
    }
    const filter = this.#filters(undefined, false);
    return { kind: "capture", target, filter, body: this.#closed("endset") };
  }

  #macro(): MacroStatement {
    const name = this.#expect("name");
    const parameters = this.#parameters();
    return { kind: "macro", name, parameters, body: this.#closed("endmacro") };
  }

  #callBlock(): Statement {
    const parameters = this.#is("operator", "(") ? this.#parameters() : [];
    const call = this.#expression();
    if (call.kind !== "call") return this.#fail("expected a call in the tag 'call'");
    const body = this.#closed("endcall");
    return { kind: "callBlock", call, caller: { kind: "macro", name: "caller", parameters, body } };
  }

  #parameters(): Parameter[] {
    const parameters: Parameter[] = [];
    this.#expect("operator", "(");
    while (!this.#skip("operator", ")")) {
      if (parameters.length > 0) this.#expect("operator", ",");
      const name = this.#expect("name");
      const fallback = this.#skip("operator", "=") ? this.#expression() : undefined;
      if (name === "caller" && !fallback) this.#fail("the parameter 'caller' must have a default");
      if (!fallback && parameters.at(-1)?.fallback) {
        this.#fail("non-default argument follows default argument");
      }
      parameters.push({ name, fallback });
    }
    return parameters;
  }

  #target(): Target {
    const items: Target[] = [];
    let isTuple = false;
    do {
      if (items.length > 0) isTuple = true;
      if (this.#is("name", "in") || this.#is("operator", "=") || this.#is("close")) break;
      items.push(this.#singleTarget());
    } while (this.#skip("operator", ","));
    if (items.length === 0) this.#fail("expected a name to assign to");
    return isTuple ? { kind: "tuple", items } : items[0];
  }

  #singleTarget(): Target {
    if (this.#skip("operator", "(")) {
      const inner = this.#target();
      this.#expect("operator", ")");
      return inner;
    }
    const name = this.#expect("name");
    if (CONSTANTS.has(name)) this.#fail(`can't assign to '${name}'`);
    if (!this.#skip("operator", ".")) return { kind: "name", name };
    return { kind: "attribute", object: name, name: this.#expect("name") };
  }

  /** An expression, or several as a tuple. */
  #tuple(withConditional = true): Expression {
    const read = (): Expression => (withConditional ? this.#expression() : this.#or());
    const items = [read()];
    let isTuple = false;
    while (this.#skip("operator", ",")) {
      isTuple = true;
      if (this.#is("close") || this.#is("operator", ")")) break;
      items.push(read());
    }
    return isTuple ? { kind: "tuple", items } : items[0];
  }

  #expression(): Expression {
    return this.#nested(() => {
      let value = this.#or();
      while (this.#skip("name", "if")) {
        const test = this.#or();
        const otherwise = this.#skip("name", "else") ? this.#expression() : undefined;
        value = { kind: "conditional", test, then: value, otherwise };
      }
      return value;
    });
  }

  #or(): Expression {
    let left = this.#and();
    while (this.#skip("name", "or")) {
      left = { kind: "logical", operator: "or", left, right: this.#and() };
    }
    return left;
  }

  #and(): Expression {
    let left = this.#not();
    while (this.#skip("name", "and")) {
      left = { kind: "logical", operator: "and", left, right: this.#not() };
    }
    return left;
  }

  #not(): Expression {
    if (!this.#skip("name", "not")) return this.#comparison();
    return { kind: "unary", operator: "not", operand: this.#nested(() => this.#not()) };
  }

  #comparison(): Expression {
    const first = this.#sum();
    const rest: [Comparison, Expression][] = [];
    for (;;) {
      const token = this.#token;
      if (token?.type === "operator" && COMPARISONS.has(token.value)) {
        this.#at++;
        rest.push([token.value as Comparison, this.#sum()]);
      } else if (this.#skip("name", "in")) {
        rest.push(["in", this.#sum()]);
      } else if (this.#is("name", "not") && this.tokens[this.#at + 1]?.value === "in") {
        this.#at += 2;
        rest.push(["not in", this.#sum()]);
      } else {
        return rest.length === 0 ? first : { kind: "compare", first, rest };
      }
    }
  }

  #binary(operators: readonly string[], operand: () => Expression): Expression {
    let left = operand();
    for (
      let token = this.#token;
      token && this.#skip("operator", ...operators);
      token = this.#token
    ) {
      left = { kind: "binary", operator: token.value as BinaryOperator, left, right: operand() };
    }
    return left;
  }

  #sum(): Expression {
    return this.#binary(["+", "-"], () => this.#concatenation());
  }

  #concatenation(): Expression {
    return this.#binary(["~"], () => this.#product());
  }

  #product(): Expression {
    return this.#binary(["*", "/", "//", "%"], () => this.#power());
  }

  #power(): Expression {
    return this.#binary(["**"], () => this.#unary(true));
  }

  #unary(withFilter: boolean): Expression {
    let value: Expression;
    const token = this.#token;
    if (token && this.#skip("operator", "-", "+")) {
      const operand = this.#nested(() => this.#unary(false));
      value = { kind: "unary", operator: token.value as "-" | "+", operand };
    } else {
      value = this.#primary();
    }
    value = this.#postfix(value);
    return withFilter ? this.#filtersAndTests(value) : value;
  }

  #primary(): Expression {
    const token = this.#token;
    if (!token) return this.#fail("expected an expression, found the end");
    this.#at++;
    switch (token.type) {
      case "name": {
        const constant = CONSTANTS.get(token.value);
        return constant === undefined
          ? { kind: "name", name: token.value }
          : { kind: "constant", value: constant };
      }
      case "string": {
        let value = token.value;
        while (this.#is("string")) value += this.#expect("string");
        return { kind: "constant", value };
      }
      case "integer":
        return { kind: "constant", value: this.#integer(token.value) };
      case "float":
        return { kind: "constant", value: Number(token.value), float: true };
      case "operator":
        return this.#nested(() => this.#bracketed(token.value));
      default:
        return this.#fail("expected an expression");
    }
  }

  #integer(digits: string): number {
    const value = Number(digits);
    return Number.isSafeInteger(value) ? value : this.#fail(`${digits}: ${BEYOND_INTEGERS}`);
  }

  #bracketed(open: string): Expression {
    if (open === "(") {
      if (this.#skip("operator", ")")) return { kind: "tuple", items: [] };
      const value = this.#tuple();
      this.#expect("operator", ")");
      return value;
    }
    if (open === "[") return { kind: "list", items: this.#series("]", () => this.#expression()) };
    if (open === "{") {
      const entries = this.#series("}", (): [Expression, Expression] => {
        const key = this.#expression();
        this.#expect("operator", ":");
        return [key, this.#expression()];
      });
      return { kind: "dict", entries };
    }
    return this.#fail(`unexpected '${open}'`);
  }

  #series<T>(end: string, read: () => T): T[] {
    const items: T[] = [];
    while (!this.#skip("operator", end)) {
      if (items.length > 0) this.#expect("operator", ",");
      if (this.#skip("operator", end)) break;
      items.push(read());
    }
    return items;
  }

  #postfix(start: Expression): Expression {
    let value = start;
    for (;;) {
      if (this.#skip("operator", ".")) value = this.#attribute(value);
      else if (this.#skip("operator", "[")) value = this.#subscript(value);
      else if (this.#is("operator", "("))
        value = { kind: "call", callee: value, args: this.#arguments() };
      else return value;
    }
  }

  #attribute(object: Expression): Expression {
    if (this.#is("integer")) {
      const value = Number(this.#expect("integer"));
      return { kind: "item", object, key: { kind: "constant", value } };
    }
    return { kind: "attribute", object, name: this.#expect("name") };
  }

  #subscript(object: Expression): Expression {
    const bounds: (Expression | undefined)[] = [undefined];
    while (!this.#skip("operator", "]")) {
      if (this.#skip("operator", ":")) bounds.push(undefined);
      else if (this.#is("operator", ",")) this.#fail("several subscripts are not implemented");
      else bounds[bounds.length - 1] = this.#expression();
    }
    if (bounds.length > 3) this.#fail("a slice has more than three parts");
    if (bounds.length > 1) return { kind: "slice", object, bounds };
    const [key] = bounds;
    return key ? { kind: "item", object, key } : this.#fail("expected a subscript");
  }

  #filtersAndTests(start: Expression): Expression {
    let value = start;
    for (;;) {
      if (this.#is("operator", "|")) value = this.#filters(value, false) ?? value;
      else if (this.#skip("name", "is")) value = this.#test(value);
      else if (this.#is("operator", "("))
        value = { kind: "call", callee: value, args: this.#arguments() };
      else return value;
    }
  }

  /** Filters behind one another; the first needs no `|` where a filter block begins. */
  #filters(operand: Expression | undefined, isBlock: boolean): Expression | undefined {
    let value = operand;
    for (let first = isBlock; first || this.#skip("operator", "|"); first = false) {
      let name = this.#expect("name");
      while (this.#skip("operator", ".")) name += `.${this.#expect("name")}`;
      const args = this.#is("operator", "(") ? this.#arguments() : NO_ARGUMENTS;
      value = { kind: "filter", name, operand: value, args };
    }
    return value;
  }

  #test(operand: Expression): Expression {
    const negated = this.#skip("name", "not");
    let name = this.#expect("name");
    while (this.#skip("operator", ".")) name += `.${this.#expect("name")}`;
    let args = NO_ARGUMENTS;
    if (this.#is("operator", "(")) {
      args = this.#arguments();
    } else if (
      this.#is("string") ||
      this.#is("integer") ||
      this.#is("float") ||
      this.#is("operator", "[", "{") ||
      (this.#is("name") &&
        !this.#is("name", "else", "or", "and", "if", "in", "not", "is", "recursive"))
    ) {
      args = { ...NO_ARGUMENTS, positional: [this.#postfix(this.#primary())] };
    }
    const test: Expression = { kind: "test", name, operand, args };
    return negated ? { kind: "unary", operator: "not", operand: test } : test;
  }

  #arguments(): Arguments {
    return this.#nested(() => {
      const positional: Expression[] = [];
      const named: [string, Expression][] = [];
      let list: Expression | undefined;
      let dict: Expression | undefined;
      this.#expect("operator", "(");
      let first = true;
      while (!this.#skip("operator", ")")) {
        if (!first) this.#expect("operator", ",");
        first = false;
        if (this.#skip("operator", ")")) break;
        if (this.#skip("operator", "*")) list = this.#expression();
        else if (this.#skip("operator", "**")) dict = this.#expression();
        else if (this.#is("name") && this.#isAssignment()) {
          const name = this.#expect("name");
          this.#at++;
          named.push([name, this.#expression()]);
        } else {
          if (named.length > 0 || list || dict)
            this.#fail("invalid syntax for function call expression");
          positional.push(this.#expression());
        }
      }
      return { positional, named, list, dict };
    });
  }

  #isAssignment(): boolean {
    const next = this.tokens[this.#at + 1];
    return next?.type === "operator" && next.value === "=";
  }
}
