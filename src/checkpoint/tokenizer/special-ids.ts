/**
 * The ids of special tokens that `config.json` and `generation_config.json` give. Generation does without any of them, so
 * one that is no token, or that contradicts the tokenizer, is told and left out; no model is refused for it.
 */

import { isIntegerIn, quoted, shown } from "../../common/bounds.js";
import type { Json } from "./options.js";

export const ID_KEYS = {
  bos_token: "bos_token_id",
  eos_token: "eos_token_id",
  pad_token: "pad_token_id",
} as const;
export type NamedToken = keyof typeof ID_KEYS;
const TOKENS = Object.keys(ID_KEYS) as NamedToken[];

/** The ids of one configuration; lists where it has them, as some have several ends of a text. */
export type SpecialIds = Readonly<Record<NamedToken, readonly number[]>>;

/**
 * The ids in a configuration that are tokens.
 * @param file the configuration's name in warnings
 * @param size tokens of the vocabulary: ids lie below it
 */
export function readSpecialIds(config: Json, file: string, size: number): SpecialIds {
  const read = (token: NamedToken): number[] => {
    const key = ID_KEYS[token];
    const given = config[key] ?? [];
    // Before padding had a token of its own, -1 said that there is none.
    if (token === "pad_token" && given === -1) return [];
    const values: unknown[] = Array.isArray(given) ? given : [given];
    const isToken = (value: unknown): value is number =>
      isIntegerIn(value, { min: 0, max: size - 1 });
    const wrong = values.find((value) => !isToken(value));
    if (wrong !== undefined)
      warn(`${file}: ${key} is ${shown(wrong)}, there are ${size} tokens; it is left out`);
    return values.filter(isToken);
  };
  return {
    bos_token: read("bos_token"),
    eos_token: read("eos_token"),
    pad_token: read("pad_token"),
  };
}

/**
 * Warns where the tokenizer's own special tokens are not what the configurations say.
 * @param spellings the tokenizer's special tokens by name
 */
export function compareSpecialIds(
  spellings: Readonly<Record<string, string>>,
  idOf: (spelling: string) => number | undefined,
  configs: readonly SpecialIds[],
): void {
  for (const token of TOKENS) {
    const spelling = spellings[token];
    if (spelling === undefined) continue;
    const id = idOf(spelling);
    const name = quoted(spelling, 40);
    if (id === undefined) {
      // Padding is for training: nothing here pads.
      if (token !== "pad_token")
        warn(`the tokenizer's ${token} ${name} is not in its vocabulary; it is left out`);
      continue;
    }
    const others = [...new Set(configs.flatMap((config) => config[token]))];
    if (others.length === 0 || others.includes(id)) continue;
    const outcome =
      token === "eos_token" ? "a text ends at each of them" : "the tokenizer's is used";
    warn(
      `the tokenizer's ${token} ${name} is ${id}, ${ID_KEYS[token]} of the model's configuration is ${others.join(" and ")}; ${outcome}`,
    );
  }
}

function warn(message: string): void {
  process.emitWarning(message, "PlanishWarning");
}
