/** Reading of config.json for models whose layers mix tokens in different ways. */
import { LIMITS, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader } from "../config.js";

/**
 * What each layer is by the words of `layer_types` (or of the first of `keys` that is there), or else by `fallback`.
 * @throws PlanishError for a list of another length, or a word that is not known.
 */
export function layerMixers<T extends string>(
  c: ConfigReader,
  words: Readonly<Record<string, T>>,
  fallback: (layer: number) => T,
  keys: readonly string[] = ["layer_types"],
): readonly T[] {
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const given = keys.map((each) => [each, c.optional(each) ?? undefined] as const);
  const [key, types] = given.find(([, value]) => value !== undefined) ?? [keys[0], undefined];
  if (types === undefined) return Array.from({ length: layers }, (_, layer) => fallback(layer));
  if (!Array.isArray(types) || types.length !== layers)
    throw new PlanishError(
      `config.json: ${key} must have a word for each of ${layers} layers, found ${shown(types)}`,
    );
  return types.map((type: unknown) => {
    if (typeof type === "string" && Object.hasOwn(words, type)) return words[type];
    throw new PlanishError(
      `config.json: ${key} has ${shown(type)}; accepted: ${Object.keys(words).map(quoted).join(", ")}`,
    );
  });
}

/** @throws PlanishError where `many` of something cannot be shared evenly among `few`. */
export function checkShared(many: number, few: number, what: string): void {
  if (many % few !== 0)
    throw new PlanishError(`config.json: ${many} ${what} cannot be shared evenly among ${few}`);
}

/** @throws PlanishError unless the key, where it is there, has the only value that is computed. */
export function requireValue(c: ConfigReader, key: string, accepted: unknown): void {
  const value = c.optional(key) ?? accepted;
  if (value !== accepted)
    throw new PlanishError(
      `config.json: ${key} is ${shown(value)}; only ${shown(accepted)} is supported`,
    );
}
