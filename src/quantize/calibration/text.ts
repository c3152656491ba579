/**
 * Texts for calibration and evaluation: the embedded ones, files in the forms that the usual data sets
 * come in, and their tokens.
 */

import type { Tokenizer } from "../../checkpoint/tokenizer.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { companionFile } from "../../common/companions.js";
import { MAX_TEXT_BYTES, readUserText } from "../../common/read-file.js";

export type EmbeddedText = "wikitext2" | "wikipedia";

const EMBEDDED: Readonly<Record<EmbeddedText, string>> = {
  wikitext2: "wikitext2/test.txt",
  wikipedia: "calibration/wikipedia.txt",
};

/** Absolute path of a text of the package @planish/data. @throws PlanishError when it is not on this machine. */
export function embeddedPath(name: EmbeddedText): string {
  return companionFile("data", EMBEDDED[name]);
}

/** Whether `name` is that of an embedded text. */
export function isEmbeddedText(name: string): name is EmbeddedText {
  return Object.hasOwn(EMBEDDED, name);
}

/**
 * How a text is put together.
 * - `wikitext`: rows joined as for perplexity (`joinWikitext`)
 * - `wikipedia`: articles between `<doc …>` and `</doc>`
 * - `lines`: a document a line, as C4 is distributed
 * - `endoftext`: documents separated by lines `<|endoftext|>`
 * - `plain`: one document
 */
export type TextForm = "wikitext" | "wikipedia" | "lines" | "endoftext" | "plain";

/** Reads a UTF-8 file. Throws PlanishError when it is missing, no text, or empty. */
export function readText(path: string): string {
  const text = readUserText(path, {
    what: "text",
    most: MAX_TEXT_BYTES,
    hint: `give a text file in UTF-8 or ${Object.keys(EMBEDDED).join(" or ")}`,
  });
  if (text.trim() === "") throw new PlanishError(`${path} is empty; give a text file with content`);
  return text;
}

/**
 * The documents of a text in its form. `form` is recognised from the text when left out: `<doc` and
 * `<|endoftext|>` lines tell; anything else is plain.
 */
export function documentsOf(text: string, form: TextForm = recogniseForm(text)): string[] {
  switch (form) {
    case "wikitext":
      return [joinWikitext(text)];
    case "wikipedia":
      return wikipediaDocuments(text);
    case "lines":
      return text.split("\n").filter((line) => line.trim() !== "");
    case "endoftext":
      return text
        .split(/^<\|endoftext\|>$/m)
        .map((document) => document.trim())
        .filter((document) => document !== "");
    case "plain":
      return [text];
  }
}

function recogniseForm(text: string): TextForm {
  if (/^<doc id=/.test(text)) return "wikipedia";
  if (/^<\|endoftext\|>$/m.test(text)) return "endoftext";
  return "plain";
}

/**
 * The documents of a file, or of an embedded text by its name.
 * @throws UsageError for data sets to be fetched (`hf:…`, URLs), PlanishError for files that cannot be read.
 */
export function readDocuments(nameOrPath: string, form?: TextForm): string[] {
  if (/^(hf:|https?:\/\/)/.test(nameOrPath))
    throw new UsageError(
      `text "${nameOrPath}" would have to be fetched, which is not done for texts; accepted: ${Object.keys(EMBEDDED).join(" or ")} (embedded), or the path of a UTF-8 text file; fetch it yourself and give its path`,
    );
  if (!isEmbeddedText(nameOrPath)) return documentsOf(readText(nameOrPath), form);
  const embeddedForm = nameOrPath === "wikitext2" ? "wikitext" : "wikipedia";
  return documentsOf(readText(embeddedPath(nameOrPath)), form ?? embeddedForm);
}

/**
 * WikiText as the quantization papers tokenize it, `"\n\n".join(rows)` of the Hugging Face data set: a row is a
 * line with its line feed, and a line of blanks is the empty row.
 */
export function joinWikitext(text: string): string {
  const lines = text.split("\n");
  // The last line feed ends a row; what follows it is no row.
  const rest = lines.pop() ?? "";
  const rows = lines.map((line) => (line.trim() === "" ? "" : `${line}\n`));
  if (rest !== "") rows.push(rest.trim() === "" ? "" : rest);
  return rows.join("\n\n");
}

/**
 * Articles of WikiExtractor output: title, blank line, paragraphs. Articles without a body (redirects) are
 * left out.
 */
export function wikipediaDocuments(text: string): string[] {
  const documents: string[] = [];
  for (const [, inner] of text.matchAll(/^<doc [^\n]*>\n([^]*?)^<\/doc>$/gm)) {
    const article = inner.trim();
    if (article.includes("\n")) documents.push(article);
  }
  if (documents.length === 0) {
    throw new PlanishError("the text has no articles between <doc …> and </doc> lines");
  }
  return documents;
}

/**
 * Token ids of a text, or of documents one after the other with a blank line between them. What the
 * tokenizer puts before a text (a beginning-of-sequence token) comes once, at the very start. Special tokens
 * written out in the text become their ids, so separators of data sets should be gone (`documentsOf`).
 */
export function tokenizeCorpus(tokenizer: Tokenizer, text: string | readonly string[]): Int32Array {
  if (typeof text === "string") return Int32Array.from(tokenizer.encode(text));
  const separator = tokenizer.encode("\n\n", { addSpecialTokens: false });
  const pieces = text.map((document, i) => {
    const ids = tokenizer.encode(document, { addSpecialTokens: i === 0 });
    return i === 0 ? ids : [...separator, ...ids];
  });
  const all = new Int32Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let filled = 0;
  for (const ids of pieces) {
    all.set(ids, filled);
    filled += ids.length;
  }
  return all;
}
