/** Models: from one word to token ids, with the library's merging and searching. */

import * as library from "@huggingface/tokenizers";
import { quoted } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { isJsonObject } from "../file-reader.js";
import { checkPart, fail, type Json } from "./options.js";

/** A model's vocabulary and its way of spelling a word in it. */
export interface WordModel {
  readonly type: string;
  /** Token ids of one word (a pre-tokenizer's piece). */
  encode(word: string): number[];
  readonly ids: ReadonlyMap<string, number>;
  /** Spelling by id; ids may have holes. */
  readonly tokens: readonly (string | undefined)[];
}

interface LibraryModel {
  readonly tokens_to_ids: Map<string, number>;
  encode(words: string[]): string[];
}

type LibraryModelClass = new (config: object, eosToken?: string) => LibraryModel;
const { BPE, Unigram, WordPiece } = library as unknown as Record<
  "BPE" | "Unigram" | "WordPiece",
  LibraryModelClass
>;

const encoder = new TextEncoder();

/** The model of a tokenizer.json. Throws PlanishError for options that are not implemented. */
export function createModel(value: unknown): WordModel {
  const part = checkPart("model", isJsonObject(value) ? withType(value) : value);
  const { options, path } = part;
  switch (part.type) {
    case "BPE":
      return bpe(options, path);
    case "Unigram":
      return unigram(options, path);
    case "WordPiece": {
      const model = new WordPiece({ type: "WordPiece", ...options });
      const ids = new Map(Object.entries(options["vocab"] as Record<string, number>));
      return wordModel("WordPiece", ids, (word) =>
        model.encode([word]).map((token) => ids.get(token) ?? unknown(token)),
      );
    }
    default: {
      const ids = new Map(Object.entries(options["vocab"] as Record<string, number>));
      const unk = options["unk_token"] as string;
      return wordModel("WordLevel", ids, (word) => [ids.get(word) ?? ids.get(unk) ?? unknown(unk)]);
    }
  }
}

/** Files of older versions leave the type out; the options tell which it is. */
function withType(model: Json): Json {
  if (model["type"] !== undefined) return model;
  const type =
    "merges" in model
      ? "BPE"
      : Array.isArray(model["vocab"])
        ? "Unigram"
        : "continuing_subword_prefix" in model
          ? "WordPiece"
          : "WordLevel";
  return { ...model, type };
}

function wordModel(
  type: string,
  ids: ReadonlyMap<string, number>,
  encode: (word: string) => number[],
): WordModel {
  const tokens: (string | undefined)[] = [];
  for (const [token, id] of ids) tokens[id] = token;
  return { type, encode, ids, tokens };
}

function unknown(token: string): never {
  throw new PlanishError(
    `cannot encode the text: a character is not in the vocabulary, nor is the unknown token ${quoted(token)}; the tokenizer.json is damaged`,
  );
}

function bpe(options: Json, path: string): WordModel {
  const ids = new Map(Object.entries(options["vocab"] as Record<string, number>));
  const merges = (options["merges"] as unknown[]).map((merge, i) => {
    const pair: unknown[] =
      typeof merge === "string" ? merge.split(" ") : Array.isArray(merge) ? merge : [];
    const [left, right] = pair;
    if (pair.length !== 2 || typeof left !== "string" || typeof right !== "string") {
      fail(path, `merge ${i} is no pair of tokens`);
    }
    for (const token of [left, right, left + right]) {
      if (!ids.has(token)) {
        fail(path, `merge ${i} needs ${quoted(token)}, which is not in the vocabulary`);
      }
    }
    return [left, right];
  });
  const unk = (options["unk_token"] ?? undefined) as string | undefined;
  // The library looks at the first merge for their form, which an empty list has none of.
  const model = new BPE({ ...options, type: "BPE", merges, fuse_unk: false });
  const fuses = options["fuse_unk"] === true;
  return wordModel("BPE", ids, (word) => {
    const result: number[] = [];
    let unkBefore = false;
    for (const token of model.encode([word])) {
      const isUnk = token === unk;
      if (!(isUnk && unkBefore && fuses)) result.push(ids.get(token) ?? unknown(token));
      unkBefore = isUnk;
    }
    return result;
  });
}

function unigram(options: Json, path: string): WordModel {
  const vocab = options["vocab"] as [string, number][];
  const unkId = (options["unk_id"] ?? undefined) as number | undefined;
  if (unkId === undefined)
    fail(path, "unk_id null is not implemented for Unigram (accepted: an id)");
  if (unkId >= vocab.length) fail(path, `unk_id is ${unkId}, there are ${vocab.length} tokens`);
  const ids = new Map(vocab.map(([token], id) => [token, id]));
  const model = new Unigram({ ...options, type: "Unigram" });
  const bytesOf = (piece: string): number[] | undefined => {
    const found: number[] = [];
    for (const byte of encoder.encode(piece)) {
      const id = ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
      if (id === undefined) return undefined;
      found.push(id);
    }
    return found;
  };
  return wordModel("Unigram", ids, (word) => {
    const result: number[] = [];
    let run = "";
    const endRun = (): void => {
      if (run === "") return;
      result.push(...((options["byte_fallback"] === true && bytesOf(run)) || [unkId]));
      run = "";
    };
    for (const piece of model.encode([word])) {
      const id = ids.get(piece);
      // Neighbouring unknown characters are one unknown token.
      if (id === undefined || id === unkId) {
        run += piece;
        continue;
      }
      endRun();
      result.push(id);
    }
    endRun();
    return result;
  });
}
