/** Normalizers: what is done to a text before it is cut into words. */

import { toByteCharacters } from "./bytes.js";
import { charsMap } from "./chars-map.js";
import { checkPart, sequence, type Json, type Part } from "./options.js";
import { compilePattern, replaceMatches, SPACE } from "./pattern.js";

export type Normalizer = (text: string) => string;

const LEADING_SPACES = new RegExp(`^${SPACE}+`, "u");
const SPACES_AT_END = new RegExp(`${SPACE}+$`, "u");
/** As sentencepiece's nmt rules: what is dropped, and what becomes a space. */
// eslint-disable-next-line no-control-regex
const NMT_DROPPED = /[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]/gu;
// eslint-disable-next-line no-control-regex
const NMT_SPACES = /[\u0009\u000a\u000c\u000d\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/gu;
/** The blocks of Chinese characters that BERT's own code lists. */
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

/** The normalizer of a tokenizer.json's part. Throws PlanishError for options that are not implemented. */
export function createNormalizer(value: unknown): Normalizer {
  return build(checkPart("normalizer", value));
}

function build(part: Part): Normalizer {
  const { options, path, type } = part;
  switch (type) {
    case "Sequence": {
      const parts = sequence("normalizer", part, "normalizers").map(build);
      return (text) => parts.reduce((done, next) => next(done), text);
    }
    case "Nmt":
      return (text) => text.replace(NMT_DROPPED, "").replace(NMT_SPACES, " ");
    case "Lowercase":
      return lowercase;
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "");
    case "ByteLevel":
      return toByteCharacters;
    case "Strip":
      return (text) => {
        const left = options["strip_left"] ? text.replace(LEADING_SPACES, "") : text;
        return options["strip_right"] ? left.replace(SPACES_AT_END, "") : left;
      };
    case "Prepend":
      return (text) => (text === "" ? "" : `${options["prepend"] as string}${text}`);
    case "Replace": {
      const pattern = compilePattern(options["pattern"] as Json, path);
      const content = options["content"] as string;
      return (text) => replaceMatches(text, pattern, content);
    }
    case "Precompiled":
      return charsMap(options["precompiled_charsmap"] as string, path);
    case "BertNormalizer":
      return bert(options);
    default:
      return (text) => text.normalize(type);
  }
}

/** Character by character: a sigma at the end of a word is no exception, as it is in `toLowerCase` of a word. */
function lowercase(text: string): string {
  let result = "";
  for (const character of text) result += character.toLowerCase();
  return result;
}

function bert(options: Json): Normalizer {
  const stripAccents = options["strip_accents"] ?? options["lowercase"];
  return (text) => {
    let result = text;
    if (options["clean_text"]) {
      result = result
        // eslint-disable-next-line no-control-regex
        .replace(/[\u0000\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/gu, "")
        .replace(new RegExp(SPACE, "gu"), " ");
    }
    if (options["handle_chinese_chars"]) result = result.replace(CHINESE, " $& ");
    if (stripAccents) result = result.normalize("NFD").replace(/\p{Mn}/gu, "");
    return options["lowercase"] ? lowercase(result) : result;
  };
}
