/**
 * A tokenizer as GGUF metadata. GGUF names a tokenizer's rules where tokenizer.json spells them out, so the rules must be
 * ones with a name; what is written is read back and must cut texts the same way.
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { GgufMetadata } from "../../checkpoint/gguf-metadata.js";
import {
  namedPreTokenizer,
  rebuildTokenizer,
  TOKEN_TYPES,
} from "../../checkpoint/gguf-tokenizer.js";
import { plainValues } from "../../checkpoint/gguf-writer.js";
import { isJsonObject } from "../../checkpoint/file-reader.js";
import { createTokenizer, loadTokenizer, type Tokenizer } from "../../checkpoint/tokenizer.js";
import { completeAddedTokens } from "../../checkpoint/tokenizer/special-tokens.js";
import { PlanishError } from "../../common/errors.js";
import type { Fields } from "./fields.js";

interface BpeModel {
  readonly vocab: Readonly<Record<string, number>>;
  readonly merges: readonly (string | readonly [string, string])[];
  readonly byte_fallback?: boolean;
  readonly unk_token?: string | null;
}

/** Texts that published tokenizers cut differently: digits, contractions, white space, scripts, marks, symbols. */
const TRIALS = [
  "Hello, world! It's 1234567 o'clock; we'll see 3.14159.",
  "  two  spaces\tand\ttabs \n\n new lines\r\n  end ",
  "déjà vu — naïve “quotes” … Ångström ﬁ",
  "Быстрая лиса прыгает; 素早い茶色の狐 你好，世界 안녕하세요 مرحبا",
  "x = {'a': [1, 2], \"b\": None}  # code\n    if x >= 10: return x**2",
  "🙂👩‍👩‍👧 ½ ² № ∑∫ <tag> </s> user@example.com https://a.b/c?d=e",
  "CamelCaseWORDS under_score a'B don'T I'M 'tis",
  "a",
  "",
];

/** Metadata of the tokenizer and its chat template. @throws PlanishError when GGUF has no name for its rules. */
export function tokenizerFields(checkpoint: Checkpoint, rows: number): Fields {
  const { path } = checkpoint;
  const files = checkpoint.tokenizerFiles();
  const json = completeAddedTokens(files.tokenizer, files.config);
  const model = json["model"];
  if (!isJsonObject(model) || model["type"] !== "BPE")
    throw new PlanishError(
      `${path}: GGUF export writes tokenizers of type BPE, this one is ${isJsonObject(model) ? String(model["type"]) : "none"}`,
    );
  const own = loadTokenizer(checkpoint);
  const bpe = model as unknown as BpeModel;
  const fields: Fields = new Map();
  const put = vocabularyFields(json, bpe, own, rows, path);
  for (const [key, field] of put) fields.set(`tokenizer.ggml.${key}`, field);
  for (const [key, field] of specialFields(checkpoint, own)) fields.set(key, field);
  if (own.chatTemplate !== undefined)
    fields.set("tokenizer.chat_template", { type: "string", value: own.chatTemplate });
  compare(own, fields, path);
  return fields;
}

/** "Ġ a" or ["Ġ", "a"]. */
function pairOf(merge: string | readonly [string, string]): readonly [string, string] {
  if (typeof merge !== "string") return merge;
  const cut = merge.indexOf(" ", 1);
  return [merge.slice(0, cut), merge.slice(cut + 1)];
}

function vocabularyFields(
  json: Readonly<Record<string, unknown>>,
  { vocab, merges, byte_fallback: bytes, unk_token: unknown }: BpeModel,
  own: Tokenizer,
  rows: number,
  path: string,
): Fields {
  const size = Math.max(rows, own.vocabSize);
  const tokens = Array.from({ length: size }, (_, id) => own.idToToken(id) ?? `[PAD${id}]`);
  const types = new Int32Array(size).fill(TOKEN_TYPES.normal);
  for (let id = 0; id < size; id++) {
    if (own.idToToken(id) === undefined) types[id] = TOKEN_TYPES.unused;
    else if (bytes && /^<0x[0-9A-F]{2}>$/.test(tokens[id])) types[id] = TOKEN_TYPES.byte;
  }
  const added = (json["added_tokens"] ?? []) as readonly Readonly<Record<string, unknown>>[];
  for (const { id, special } of added)
    types[id as number] = special === true ? TOKEN_TYPES.control : TOKEN_TYPES.user;
  const fields: Fields = new Map();
  if (bytes) {
    if (unknown !== undefined && unknown !== null && Object.hasOwn(vocab, unknown))
      types[vocab[unknown]] = TOKEN_TYPES.unknown;
    fields.set("model", { type: "string", value: "llama" });
    fields.set("scores", { type: "f32s", value: scoresOf(vocab, merges, size) });
    const [first] = own.encode("a", { addSpecialTokens: false });
    const spaced = own.idToToken(first)?.startsWith("▁") === true;
    fields.set("add_space_prefix", { type: "bool", value: spaced });
  } else {
    fields.set("model", { type: "string", value: "gpt2" });
    fields.set("pre", { type: "string", value: namedPreTokenizer(json, path) });
    const spelled = merges.map((merge) => pairOf(merge).join(" "));
    fields.set("merges", { type: "strings", value: spelled });
  }
  fields.set("tokens", { type: "strings", value: tokens });
  fields.set("token_type", { type: "i32s", value: types });
  return fields;
}

/** What is merged earlier scores higher: SentencePiece keeps no merges. What no merge makes comes last. */
function scoresOf(
  vocab: BpeModel["vocab"],
  merges: BpeModel["merges"],
  size: number,
): Float32Array {
  const scores = new Float32Array(size).fill(-(merges.length + 1));
  merges.forEach((merge, rank) => {
    const id = vocab[pairOf(merge).join("")];
    if (id !== undefined) scores[id] = Math.max(scores[id], -rank);
  });
  return scores;
}

const PUNCTUATED = ["eos", "eot", "eom"] as const;

function specialFields({ config }: Checkpoint, own: Tokenizer): Fields {
  const fields: Fields = new Map();
  const id = (key: string, value: number | undefined): void => {
    if (value !== undefined) fields.set(`tokenizer.ggml.${key}_token_id`, { type: "u32", value });
  };
  const idOf = (name: string): number | undefined =>
    own.specialTokens[name] === undefined ? undefined : own.tokenToId(own.specialTokens[name]);
  id("bos", own.bosTokenId);
  const eos = idOf("eos_token") ?? own.eosTokenIds.at(0);
  const ends = [eos, ...own.eosTokenIds.filter((end) => end !== eos)];
  PUNCTUATED.forEach((key, i) => id(key, ends[i]));
  id("unknown", idOf("unk_token"));
  const padding = idOf("pad_token") ?? config["pad_token_id"];
  id("padding", typeof padding === "number" && padding >= 0 ? padding : undefined);
  const around = own.encode("a");
  const bare = own.encode("a", { addSpecialTokens: false });
  fields.set("tokenizer.ggml.add_bos_token", {
    type: "bool",
    value: around.length > bare.length && around[0] === own.bosTokenId,
  });
  fields.set("tokenizer.ggml.add_eos_token", {
    type: "bool",
    value: around.length > bare.length && around[around.length - 1] === eos && eos !== bare.at(-1),
  });
  return fields;
}

/** @throws PlanishError when a reader of the metadata would cut texts otherwise. */
function compare(own: Tokenizer, fields: Fields, path: string): void {
  const read = createTokenizer(rebuildTokenizer(new GgufMetadata(plainValues(fields), path)));
  const special = Object.values(own.specialTokens).join("x");
  for (const text of [...TRIALS, `a${special}b`, own.chatTemplate?.slice(0, 400) ?? ""]) {
    const [wanted, found] = [own.encode(text), read.encode(text)];
    if (wanted.length !== found.length || wanted.some((id, i) => id !== found[i]))
      throw new PlanishError(
        `${path}: its tokenizer has rules that GGUF has no name for: ${JSON.stringify(text)} would get other tokens; convert this model's tokenizer with llama.cpp's own script`,
      );
  }
}
