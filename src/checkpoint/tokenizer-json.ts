/**
 * Adjusts a parsed `tokenizer.json` for `@huggingface/tokenizers` 0.2, so that it gives the ids that the
 * original (Rust) library gives, and gives them quickly. Each adjustment says why it changes no id.
 */

import { isJsonObject } from "./file-reader.js";

type Json = Record<string, unknown>;

/** The tokenizer as it is handed to the library. The argument is left as it is. */
export function adaptTokenizerJson(tokenizer: Json): Json {
  // The library insists on these keys, though a tokenizer.json may leave out what is null.
  const full: Json = {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...tokenizer,
  };
  full["pre_tokenizer"] = splitWords(full, unicodeDigits(full["pre_tokenizer"]));
  return full;
}

/**
 * The library's `Digits` knows 0–9 only; the original takes every numeric character (½, ², ٣), which a `Split`
 * on `\p{N}` says.
 */
function unicodeDigits(preTokenizer: unknown): unknown {
  if (!isJsonObject(preTokenizer)) return preTokenizer;
  if (preTokenizer["type"] === "Sequence" && Array.isArray(preTokenizer["pretokenizers"])) {
    return { ...preTokenizer, pretokenizers: preTokenizer["pretokenizers"].map(unicodeDigits) };
  }
  if (preTokenizer["type"] !== "Digits") return preTokenizer;
  const pattern = preTokenizer["individual_digits"] === true ? "\\p{N}" : "\\p{N}+";
  return isolate(pattern);
}

function isolate(pattern: string): Json {
  return { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
}

/** A word of SentencePiece: its mark and what follows up to the next mark. */
const SENTENCEPIECE_WORD = "▁+[^▁]*";

/**
 * SentencePiece tokenizers merge over the whole text as one piece, which is slow and defeats the library's
 * cache. Where no merge joins across the beginning of a word ("x▁"), merges in one word never see another
 * word, and their order between words is immaterial: cutting the text into words changes no id.
 */
function splitWords(tokenizer: Json, preTokenizer: unknown): unknown {
  const model = tokenizer["model"];
  if (!isJsonObject(model) || model["type"] !== "BPE" || model["ignore_merges"] === true) {
    return preTokenizer;
  }
  const isMetaspace =
    isJsonObject(preTokenizer) &&
    preTokenizer["type"] === "Metaspace" &&
    (preTokenizer["replacement"] ?? "▁") === "▁";
  if (preTokenizer !== null && !isMetaspace) return preTokenizer;
  if (!Array.isArray(model["merges"]) || model["end_of_word_suffix"]) return preTokenizer;
  for (const merge of model["merges"] as unknown[]) {
    const merged = Array.isArray(merge) ? merge.join("") : String(merge).replace(" ", "");
    if (/[^▁]▁/u.test(merged)) return preTokenizer;
  }
  const words = isolate(SENTENCEPIECE_WORD);
  return isMetaspace ? { type: "Sequence", pretokenizers: [preTokenizer, words] } : words;
}
