/**
 * sentencepiece's compiled normalization rules (`precompiled_charsmap`): a double-array trie over UTF-8, from
 * spellings to offsets into a block of zero-terminated replacements.
 */

import { fail } from "./options.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });

/** Longer graphemes (in bytes) are looked up character by character, as the original does. */
const MAX_GRAPHEME_BYTES = 6;

/** The normalizer of a map in base64. Throws PlanishError when it is damaged. */
export function charsMap(base64: string, path: string): (text: string) => string {
  const data = Buffer.from(base64, "base64");
  const trieBytes = data.length >= 4 ? data.readUInt32LE(0) : -1;
  if (trieBytes < 4 || trieBytes % 4 !== 0 || 4 + trieBytes > data.length) {
    fail(path, "precompiled_charsmap is damaged (its trie does not fit); fetch the file again");
  }
  const units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => data.readUInt32LE(4 + 4 * i));
  const replacements = data.subarray(4 + trieBytes);

  /** The replacement of the shortest prefix of `bytes` that has one. */
  const lookUp = (bytes: Uint8Array): string | undefined => {
    let node = offsetOf(units[0]);
    for (const byte of bytes) {
      if (byte === 0) return undefined;
      node ^= byte;
      const unit = units[node];
      if (unit === undefined || (unit & 0x8000_00ff) >>> 0 !== byte) return undefined;
      node ^= offsetOf(unit);
      if ((unit >>> 8) & 1) {
        const start = (units[node] ?? 0) & 0x7fff_ffff;
        const end = replacements.indexOf(0, start);
        return decoder.decode(replacements.subarray(start, end < 0 ? undefined : end));
      }
    }
    return undefined;
  };

  return (text) => {
    let result = "";
    for (const { segment } of graphemes.segment(text)) {
      const bytes = encoder.encode(segment);
      const whole = bytes.length < MAX_GRAPHEME_BYTES ? lookUp(bytes) : undefined;
      if (whole !== undefined) {
        result += whole;
        continue;
      }
      for (const character of segment) result += lookUp(encoder.encode(character)) ?? character;
    }
    return result;
  };
}

function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}
