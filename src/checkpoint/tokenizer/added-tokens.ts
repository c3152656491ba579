/**
 * Added tokens: spellings that are taken out of a text before anything else happens to it. Those with
 * `normalized` are looked for in the normalized text, the others in the text as it is; of several that begin at
 * one place the longest is taken.
 */

import { quoted } from "../../common/bounds.js";
import { checkAddedToken, fail } from "./options.js";
import type { Normalizer } from "./normalizers.js";
import { SPACE } from "./pattern.js";

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Only between characters that are no part of a word. */
  readonly singleWord: boolean;
  /** Takes the white space before it. */
  readonly lstrip: boolean;
  /** Takes the white space behind it. */
  readonly rstrip: boolean;
  readonly normalized: boolean;
  /** Left out by `skipSpecialTokens`. */
  readonly special: boolean;
}

/** An added token's id, or a stretch of text between them. */
export type Section = number | { readonly text: string; readonly first: boolean };

const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const WORD_AT_START = new RegExp(`^${WORD}`, "u");
const WORD_AT_END = new RegExp(`${WORD}$`, "u");
const SPACES_AT_START = new RegExp(`^${SPACE}+`, "u");
const SPACE_CHARACTER = new RegExp(`^${SPACE}$`, "u");

/**
 * The added tokens of a file. A token that the vocabulary has keeps the vocabulary's id; others take the ids that
 * follow, and a file that says otherwise contradicts itself and is refused.
 */
export function readAddedTokens(
  list: readonly unknown[],
  vocabularyId: (content: string) => number | undefined,
  vocabularySize: number,
): AddedToken[] {
  const tokens = new Map<string, AddedToken>();
  let largest = -1;
  list.forEach((item, i) => {
    const given = checkAddedToken(item, i);
    const content = given["content"] as string;
    if (content === "" || tokens.has(content)) return;
    const id =
      vocabularyId(content) ??
      (largest >= vocabularySize || vocabularySize === 0 ? largest + 1 : vocabularySize);
    if (id !== given["id"]) {
      fail(
        `added_tokens[${i}]`,
        `${quoted(content)} has id ${given["id"] as number}, but ${vocabularyId(content) === undefined ? "the next free id is" : "the vocabulary says"} ${id}; give it that id`,
      );
    }
    largest = Math.max(largest, id);
    const special = given["special"] === true;
    tokens.set(content, {
      id,
      content,
      singleWord: given["single_word"] === true,
      lstrip: given["lstrip"] === true,
      rstrip: given["rstrip"] === true,
      normalized: (given["normalized"] ?? !special) === true,
      special,
    });
  });
  return [...tokens.values()];
}

/** Spellings as a tree by UTF-16 units. */
interface Node {
  readonly next: Map<string, Node>;
  token?: AddedToken;
}

export class AddedTokenSplitter {
  readonly #raw: Node;
  readonly #normalized: Node;

  constructor(
    tokens: readonly AddedToken[],
    private readonly normalize: Normalizer,
  ) {
    this.#raw = tree(tokens.filter((token) => !token.normalized).map((t) => [t.content, t]));
    this.#normalized = tree(
      tokens.filter((token) => token.normalized).map((t) => [normalize(t.content), t]),
    );
  }

  /** Cuts a text at its added tokens; what is between them comes out normalized. */
  split(text: string): Section[] {
    return cut(text, true, this.#raw).flatMap((section) =>
      typeof section === "number"
        ? [section]
        : cut(this.normalize(section.text), this.#begins(section), this.#normalized),
    );
  }

  /** A stretch whose first character normalization drops no longer begins where the input does. */
  #begins({ text, first }: { text: string; first: boolean }): boolean {
    const code = text.codePointAt(0);
    return first && code !== undefined && this.normalize(String.fromCodePoint(code)) !== "";
  }
}

function tree(entries: readonly (readonly [string, AddedToken])[]): Node {
  const root: Node = { next: new Map() };
  for (const [spelling, token] of entries) {
    if (spelling === "") continue;
    let node = root;
    for (let i = 0; i < spelling.length; i++) {
      let child = node.next.get(spelling[i]);
      if (!child) node.next.set(spelling[i], (child = { next: new Map() }));
      node = child;
    }
    // Of two tokens that normalization makes alike, the last is found.
    node.token = token;
  }
  return root;
}

function cut(text: string, first: boolean, root: Node): Section[] {
  const sections: Section[] = [];
  let done = 0;
  const textUpTo = (end: number): void => {
    if (end > done) sections.push({ text: text.slice(done, end), first: first && done === 0 });
  };
  for (let at = 0; at < text.length;) {
    const match = longest(text, at, root);
    if (!match) {
      at++;
      continue;
    }
    const { token, length } = match;
    let start = at;
    let end = at + length;
    at = end;
    if (token.singleWord) {
      // Two units are enough to see the last character.
      const before = text.slice(Math.max(0, start - 2), start);
      if (WORD_AT_END.test(before) || WORD_AT_START.test(text.slice(end, end + 2))) continue;
    }
    if (token.lstrip) {
      while (start > done && SPACE_CHARACTER.test(text[start - 1])) start--;
      start = Math.max(start, done);
    }
    if (token.rstrip) end += SPACES_AT_START.exec(text.slice(end))?.[0].length ?? 0;
    // The white space that it is made of went to the token before it.
    if (start >= end) continue;
    textUpTo(start);
    sections.push(token.id);
    done = end;
  }
  textUpTo(text.length);
  return sections;
}

function longest(
  text: string,
  at: number,
  root: Node,
): { token: AddedToken; length: number } | undefined {
  let node: Node | undefined = root;
  let found: { token: AddedToken; length: number } | undefined;
  for (let i = at; (node = i < text.length ? node.next.get(text[i]) : undefined); i++) {
    if (node.token) found = { token: node.token, length: i + 1 - at };
  }
  return found;
}
