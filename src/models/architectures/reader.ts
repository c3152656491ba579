/** Typed, bounded access to config.json. What is read is remembered: the keys that were not are judged in `keys.ts`. */
import { finiteIn, integerIn, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, ModelConfig } from "../config.js";

/** A reader, and the keys that it has been asked for. */
export function configReader(config: Readonly<Record<string, unknown>>): {
  reader: ConfigReader;
  read: ReadonlySet<string>;
} {
  const read = new Set<string>();
  const get = (key: string): unknown => {
    read.add(key);
    return Object.hasOwn(config, key) ? config[key] : undefined;
  };
  const fail = (key: string, want: string, got: unknown): never => {
    throw new PlanishError(`config.json: ${key} must be ${want}, found ${shown(got)}`);
  };
  const reader: ConfigReader = {
    number: (key, fallback, range) => finiteIn(get(key) ?? fallback, `config.json: ${key}`, range),
    integer: (key, max, fallback, min = 1) =>
      integerIn(get(key) ?? fallback, `config.json: ${key}`, { min, max }),
    boolean(key, fallback) {
      const value = get(key) ?? fallback;
      return typeof value === "boolean" ? value : fail(key, "true or false", value);
    },
    string(key, fallback) {
      const value = get(key) ?? fallback;
      return typeof value === "string" ? value : fail(key, "a string", value);
    },
    optional: get,
  };
  return { reader, read };
}

export function activation(name: string): ModelConfig["mlp"]["activation"] {
  switch (name) {
    case "silu":
    case "swish":
      return "silu";
    case "relu":
      return "relu";
    case "relu2":
      return "relu2";
    case "gelu":
      return "gelu";
    case "gelu_new":
    case "gelu_pytorch_tanh":
      return "geluTanh";
    default:
      throw new PlanishError(
        `activation ${quoted(name)} is not supported; accepted: silu, relu, relu2, gelu, gelu_new, gelu_pytorch_tanh`,
      );
  }
}
