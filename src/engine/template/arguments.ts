/** Arguments of filters, tests and methods by position or name, as Python's calls bind them. */

import { numeric, TemplateError, typeName, Undefined, type Named, type Value } from "./values.js";

export class Bound {
  constructor(
    private readonly name: string,
    private readonly values: ReadonlyMap<string, Value>,
  ) {}

  has(parameter: string): boolean {
    return this.values.has(parameter);
  }

  get(parameter: string, fallback: Value = null): Value {
    return this.values.get(parameter) ?? (this.values.has(parameter) ? null : fallback);
  }

  required(parameter: string): Value {
    const value = this.values.get(parameter);
    if (value === undefined)
      throw new TemplateError(`${this.name}() lacks the argument '${parameter}'`);
    return value;
  }

  string(parameter: string, fallback?: string): string {
    const value = fallback === undefined ? this.required(parameter) : this.get(parameter, fallback);
    return typeof value === "string" ? value : this.#wrong(parameter, "a string", value);
  }

  stringOrNone(parameter: string): string | null {
    const value = this.get(parameter);
    return value === null || typeof value === "string"
      ? value
      : this.#wrong(parameter, "a string", value);
  }

  integer(parameter: string, fallback?: number): number {
    const value = fallback === undefined ? this.required(parameter) : this.get(parameter, fallback);
    const number = typeof value === "object" ? undefined : numeric(value);
    return number ?? this.#wrong(parameter, "an int", value);
  }

  #wrong(parameter: string, wanted: string, value: Value): never {
    if (value instanceof Undefined) value.fail();
    throw new TemplateError(
      `${this.name}(): '${parameter}' must be ${wanted}, not ${typeName(value)}`,
    );
  }
}

/** @throws TemplateError for too many arguments, unknown or repeated names */
export function bind(
  name: string,
  parameters: readonly string[],
  args: readonly Value[],
  named: Named,
): Bound {
  if (args.length > parameters.length) {
    throw new TemplateError(
      `${name}() takes at most ${parameters.length} arguments, got ${args.length}`,
    );
  }
  const values = new Map(args.map((value, i) => [parameters[i], value]));
  for (const [parameter, value] of named) {
    if (!parameters.includes(parameter)) {
      throw new TemplateError(`${name}() got an unexpected keyword argument '${parameter}'`);
    }
    if (values.has(parameter)) {
      throw new TemplateError(`${name}() got multiple values for argument '${parameter}'`);
    }
    values.set(parameter, value);
  }
  return new Bound(name, values);
}
