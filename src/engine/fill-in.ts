/** Filling in between a beginning and an end, as models of code are taught: which tokens tell them so, and in which order. */
import type { Tokenizer } from "../checkpoint/tokenizer.js";

/** The prompt for what stands between two texts. */
export type FillInTokens = (prefix: readonly number[], suffix: readonly number[]) => number[];

interface FillInForm {
  /** Spellings of the tokens before the beginning, before the end, and behind both. */
  readonly prefix: string;
  readonly suffix: string;
  readonly middle: string;
  /** The end comes first. */
  readonly suffixFirst?: boolean;
}

/** Published tokenizers' forms. Sources: their models' cards and technical reports. */
const FORMS: readonly FillInForm[] = [
  // Qwen2.5-Coder, CodeGemma
  { prefix: "<|fim_prefix|>", suffix: "<|fim_suffix|>", middle: "<|fim_middle|>" },
  // StarCoder, SmolLM, Granite
  { prefix: "<fim_prefix>", suffix: "<fim_suffix>", middle: "<fim_middle>" },
  { prefix: "<fim-prefix>", suffix: "<fim-suffix>", middle: "<fim-middle>" },
  // Code Llama
  { prefix: "▁<PRE>", suffix: "▁<SUF>", middle: "▁<MID>" },
  // DeepSeek-Coder
  { prefix: "<｜fim▁begin｜>", suffix: "<｜fim▁hole｜>", middle: "<｜fim▁end｜>" },
  // Codestral
  { prefix: "[PREFIX]", suffix: "[SUFFIX]", middle: "", suffixFirst: true },
];

/** How a tokenizer's model is asked to fill in; undefined where it has no tokens for that. */
export function fillInTokens(tokenizer: Tokenizer): FillInTokens | undefined {
  for (const { prefix, suffix, middle, suffixFirst } of FORMS) {
    const ids = [prefix, suffix, ...(middle === "" ? [] : [middle])].map((spelling) =>
      tokenizer.tokenToId(spelling),
    );
    if (ids.some((id) => id === undefined)) continue;
    const [before, after, between] = ids as number[];
    // What the tokenizer begins every text with comes first here too.
    const start = tokenizer.bosTokenId;
    const begin = start !== undefined && tokenizer.encode("")[0] === start ? [start] : [];
    return (head, tail) => {
      const parts = [
        [before, ...head],
        [after, ...tail],
      ];
      if (suffixFirst) parts.reverse();
      return [...begin, ...parts.flat(), ...(between === undefined ? [] : [between])];
    };
  }
  return undefined;
}
