/** Decoders: from the spellings of tokens back to text. Each takes and returns a list; the last is joined. */

import { fromByteCharacters } from "./bytes.js";
import { checkPart, sequence, type Json, type Part } from "./options.js";
import { compilePattern, replaceMatches } from "./pattern.js";
import { prependScheme } from "./pre-tokenizers.js";

export type Decoder = (tokens: readonly string[]) => string[];

const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;
// A byte-order mark is text like any other.
const lossy = new TextDecoder("utf-8", { ignoreBOM: true });
const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

/** The decoder of a tokenizer.json's part. Throws PlanishError for options that are not implemented. */
export function createDecoder(value: unknown): Decoder {
  return build(checkPart("decoder", value));
}

function build(part: Part): Decoder {
  const { options, path } = part;
  switch (part.type) {
    case "Sequence": {
      const parts = sequence("decoder", part, "decoders").map(build);
      return (tokens) => parts.reduce<string[]>((done, next) => next(done), [...tokens]);
    }
    case "ByteLevel":
      return (tokens) => [lossy.decode(concatenated(tokens.map(fromByteCharacters)))];
    case "Fuse":
      return (tokens) => [tokens.join("")];
    case "ByteFallback":
      return byteFallback;
    case "Replace": {
      const pattern = compilePattern(options["pattern"] as Json, path);
      const content = options["content"] as string;
      return (tokens) => tokens.map((token) => replaceMatches(token, pattern, content));
    }
    case "Strip":
      return strip(options);
    case "BPEDecoder": {
      const suffix = options["suffix"] as string;
      return (tokens) =>
        tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? "" : " "));
    }
    case "WordPiece":
      return wordPiece(options);
    default:
      return metaspace(part);
  }
}

function concatenated(parts: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat(parts);
}

/** Runs of `<0x..>` become the characters they spell, or a replacement character each when they spell none. */
function byteFallback(tokens: readonly string[]): string[] {
  const result: string[] = [];
  let run: number[] = [];
  const end = (): void => {
    if (run.length === 0) return;
    try {
      result.push(strict.decode(Uint8Array.from(run)));
    } catch {
      for (let i = 0; i < run.length; i++) result.push("\ufffd");
    }
    run = [];
  };
  for (const token of tokens) {
    const byte = BYTE_TOKEN.exec(token);
    if (byte) {
      run.push(parseInt(byte[1], 16));
    } else {
      end();
      result.push(token);
    }
  }
  end();
  return result;
}

function strip(options: Json): Decoder {
  const content = options["content"] as string;
  const start = options["start"] as number;
  const stop = options["stop"] as number;
  return (tokens) =>
    tokens.map((token) => {
      const characters = Array.from(token);
      let from = 0;
      while (from < start && characters[from] === content) from++;
      let to = characters.length;
      while (characters.length - to < stop && characters[to - 1] === content) to--;
      return characters.slice(from, to).join("");
    });
}

function metaspace(part: Part): Decoder {
  const replacement = part.options["replacement"] as string;
  const dropsFirst = prependScheme(part) !== "never";
  return (tokens) =>
    tokens.map((token, i) =>
      token.replaceAll(replacement, () => (i === 0 && dropsFirst ? "" : " ")),
    );
}

function wordPiece(options: Json): Decoder {
  const prefix = options["prefix"] as string;
  return (tokens) =>
    tokens.map((token, i) => {
      const spaced =
        i === 0 ? token : token.startsWith(prefix) ? token.replace(prefix, "") : ` ${token}`;
      return options["cleanup"] ? cleanUp(spaced) : spaced;
    });
}

/** The clean-up that the decoder itself asks for (that of tokenizer_config.json is never applied). */
function cleanUp(text: string): string {
  return text
    .replaceAll(" .", ".")
    .replaceAll(" ?", "?")
    .replaceAll(" !", "!")
    .replaceAll(" ,", ",")
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(" do not", " don't")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re");
}
