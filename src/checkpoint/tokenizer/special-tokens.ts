/**
 * What `tokenizer_config.json` and `special_tokens_map.json` say about special tokens beyond `tokenizer.json`, read
 * as transformers 5 reads them.
 */

import { isJsonObject } from "../file-reader.js";
import type { Json } from "./options.js";
import { ID_KEYS, type NamedToken, type SpecialIds } from "./special-ids.js";

const NAMES = [
  "bos_token",
  "eos_token",
  "unk_token",
  "pad_token",
  "sep_token",
  "cls_token",
  "mask_token",
];

/**
 * A tokenizer_config.json with what special_tokens_map.json adds. The map counts above the configuration in older
 * checkpoints, whose configuration has no `added_tokens_decoder`; in newer ones it only fills gaps.
 */
export function mergeSpecialTokensMap(config: Json, map: Json): Record<string, unknown> {
  return "added_tokens_decoder" in config ? { ...map, ...config } : { ...config, ...map };
}

/** The spelling of a special token, which is a string or an object with its content. */
function spelling(value: unknown): string | undefined {
  const text = isJsonObject(value) ? value["content"] : value;
  return typeof text === "string" ? text : undefined;
}

/**
 * The special tokens by name. One that no tokenizer file mentions (null is a mention) is looked up by the id that
 * the model's configurations give, in their order.
 */
export function specialTokenStrings(
  config: Json,
  modelIds: readonly SpecialIds[],
  idToToken: (id: number) => string | undefined,
): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of NAMES) {
    if (name in config) {
      const text = spelling(config[name]);
      if (text !== undefined) found[name] = text;
      continue;
    }
    if (!(name in ID_KEYS)) continue;
    for (const ids of modelIds) {
      const id = ids[name as NamedToken].at(0);
      const text = id === undefined ? undefined : idToToken(id);
      if (text === undefined) continue;
      found[name] = text;
      break;
    }
  }
  return found;
}

/**
 * tokenizer.json with the added tokens that the configuration knows besides: entries of `added_tokens_decoder`, and
 * special tokens of the vocabulary that no list mentions. A token without an id in the model's reach is left out.
 */
export function completeAddedTokens(tokenizer: Json, config: Json): Json {
  const listed = tokenizer["added_tokens"];
  const added: unknown[] = Array.isArray(listed) ? [...(listed as unknown[])] : [];
  const known = new Set(added.map(spelling));
  const more: unknown[] = [];
  const decoder = config["added_tokens_decoder"];
  for (const [id, token] of Object.entries(isJsonObject(decoder) ? decoder : {})) {
    const content = spelling(token);
    if (!isJsonObject(token) || content === undefined || known.has(content)) continue;
    const { single_word, lstrip, rstrip, normalized, special } = token;
    const flags = { single_word, lstrip, rstrip, normalized, special };
    const given = Object.entries(flags).filter(([, flag]) => typeof flag === "boolean");
    more.push({ id: Number(id), content, ...Object.fromEntries(given) });
    known.add(content);
  }
  const idOf = vocabularyLookup(tokenizer["model"]);
  const lists = ["additional_special_tokens", "extra_special_tokens"].flatMap((name) =>
    Array.isArray(config[name]) ? (config[name] as unknown[]) : [],
  );
  for (const value of [...NAMES.map((name) => config[name]), ...lists]) {
    const content = spelling(value);
    if (!content || known.has(content)) continue;
    const id = idOf(content);
    if (id === undefined) continue;
    more.push({ id, content, special: true, normalized: false });
    known.add(content);
  }
  return more.length === 0 ? tokenizer : { ...tokenizer, added_tokens: [...added, ...more] };
}

function vocabularyLookup(model: unknown): (token: string) => number | undefined {
  const vocab = isJsonObject(model) ? model["vocab"] : undefined;
  if (Array.isArray(vocab)) {
    const entries = vocab as unknown[];
    const ids = new Map(
      entries.map((entry, id) => [Array.isArray(entry) ? (entry[0] as unknown) : undefined, id]),
    );
    return (token) => ids.get(token);
  }
  if (!isJsonObject(vocab)) return () => undefined;
  return (token) => {
    const id = Object.hasOwn(vocab, token) ? vocab[token] : undefined;
    return typeof id === "number" ? id : undefined;
  };
}
