/** Attributes, items and slices, looked up as Jinja's sandbox does. */

import { methodOf } from "./methods.js";
import {
  Callable,
  itemsOf,
  keyOf,
  Namespace,
  numeric,
  repr,
  TemplateError,
  text,
  Tuple,
  typeName,
  Undefined,
  View,
  type Value,
} from "./values.js";

/** `object.name`: an attribute or method, else an item. */
export function attribute(object: Value, name: string): Value {
  const found = attributeOnly(object, name);
  if (found !== undefined) return found;
  // None is a value: `??` would take it for absence.
  const value = itemOnly(object, name);
  return value === undefined ? missing(object, name) : value;
}

/** `object[key]`: an item, else an attribute. */
export function item(object: Value, key: Value): Value {
  const found = itemOnly(object, key);
  if (found !== undefined) return found;
  const byName = typeof key === "string" ? attributeOnly(object, key) : undefined;
  return byName === undefined ? missing(object, key) : byName;
}

function attributeOnly(object: Value, name: string): Value | undefined {
  if (object instanceof Undefined) object.fail();
  if (object instanceof Namespace) return object.attributes.get(name);
  if (object instanceof Callable) return object.attributes?.get(name);
  return name.startsWith("_") ? undefined : methodOf(object, name);
}

function itemOnly(object: Value, key: Value): Value | undefined {
  if (object instanceof Undefined) object.fail();
  if (object instanceof Map) {
    return typeof key === "object" && key !== null ? undefined : object.get(keyOf(key));
  }
  const index = typeof key === "number" || typeof key === "boolean" ? numeric(key) : undefined;
  if (index === undefined) return undefined;
  return typeof object === "string" ? Array.from(object).at(index) : indexed(object)?.at(index);
}

function indexed(object: Value): readonly Value[] | undefined {
  return object instanceof View && object.type === "range" ? object.items : itemsOf(object);
}

function missing(object: Value, key: Value): Undefined {
  const named = typeof key === "string" ? key : repr(key);
  return new Undefined(`'${typeName(object)} object' has no attribute '${named}', it`);
}

/** `object[start:stop:step]`. @throws TemplateError for what cannot be sliced */
export function slice(object: Value, bounds: readonly (Value | undefined)[]): Value {
  if (object instanceof Undefined) object.fail();
  const all = typeof object === "string" ? Array.from(object) : indexed(object);
  if (!all) throw new TemplateError(`'${typeName(object)}' object cannot be sliced`);
  const [from, to, by] = bounds.map((bound) => {
    if (bound === undefined || bound === null) return undefined;
    if (typeof bound === "number" || typeof bound === "boolean") return Number(bound);
    if (bound instanceof Undefined) bound.fail();
    throw new TemplateError("slice indices must be integers or None");
  });
  const step = by ?? 1;
  if (step === 0) throw new TemplateError("slice step cannot be zero");
  const { length } = all;
  const clamp = (position: number | undefined, fallback: number): number => {
    if (position === undefined) return fallback;
    const at = position < 0 ? position + length : position;
    return step > 0 ? Math.min(Math.max(at, 0), length) : Math.min(Math.max(at, -1), length - 1);
  };
  const start = clamp(from, step > 0 ? 0 : length - 1);
  const stop = clamp(to, step > 0 ? length : -1);
  const taken: Value[] = [];
  for (let i = start; step > 0 ? i < stop : i > stop; i += step) taken.push(all[i]);
  if (typeof object === "string") return taken.map(text).join("");
  if (object instanceof View) {
    return new View("range", taken, () => {
      throw new TemplateError("the text of a part of a range is not implemented");
    });
  }
  return object instanceof Tuple ? new Tuple(taken) : taken;
}
