/** Text readers: the published join of WikiText-2, document forms, and tokens of the embedded text. */

import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../../src/common/package.js";
import {
  documentsOf,
  embeddedPath,
  joinWikitext,
  readDocuments,
  readText,
  tokenizeCorpus,
} from "../../../src/quantize/calibration/text.js";

describe("joinWikitext", () => {
  it("joins rows as Python's '\\n\\n'.join does", () => {
    // Computed by hand: rows are "", " = A = \n", "", "b c\n", "last".
    expect(joinWikitext(" \n = A = \n \nb c\nlast")).toBe("\n\n = A = \n\n\n\n\nb c\n\n\nlast");
    expect(joinWikitext("a\n")).toBe("a\n");
  });

  it("gives the published size of the WikiText-2 test text", () => {
    const text = readText(embeddedPath("wikitext2"));
    expect(createHash("sha256").update(text).digest("hex")).toBe(
      "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    );
    // 1,296,370 bytes after joining, as data/README of the data set's preparation states.
    expect(Buffer.byteLength(joinWikitext(text))).toBe(1_296_370);
  });

  it("gives 841 windows of 512 tokens with tiny-llama's tokenizer", () => {
    using checkpoint = openCheckpoint(join(packageRoot, "models/tiny-llama"));
    const [text] = readDocuments("wikitext2");
    const tokens = tokenizeCorpus(loadTokenizer(checkpoint), text);
    // 430,904 by the Rust tokenizers library (0.22) on the same text.
    expect(tokens.length).toBe(430_904);
    expect(Math.floor(tokens.length / 512)).toBe(841);
  });
});

describe("documentsOf", () => {
  it("takes articles with a body out of WikiExtractor text", () => {
    const text = [
      '<doc id="1" url="u" title="T">',
      "T",
      "",
      "Body one.",
      "Body two.",
      "",
      "</doc>",
      '<doc id="2" url="u" title="Redirect">',
      "Redirect",
      "",
      "</doc>",
      "",
    ].join("\n");
    expect(documentsOf(text)).toEqual(["T\n\nBody one.\nBody two."]);
  });

  it("finds the articles of the embedded text", () => {
    const documents = readDocuments("wikipedia");
    // 2,349 articles, 1,254 of which have a title only.
    expect(documents).toHaveLength(2349 - 1254);
    expect(
      documents.some((document) => document.includes("<doc") || document.includes("</doc")),
    ).toBe(false);
  });

  it("splits at end-of-text lines, by lines, or not at all", () => {
    expect(documentsOf("a\nb\n<|endoftext|>\nc\n")).toEqual(["a\nb", "c"]);
    expect(documentsOf("a\n\nb\n", "lines")).toEqual(["a", "b"]);
    expect(documentsOf("a\n\nb\n")).toEqual(["a\n\nb\n"]);
  });

  it("refuses a text without articles where articles are asked for", () => {
    expect(() => documentsOf("plain", "wikipedia")).toThrow(/no articles/);
  });
});

describe("readText", () => {
  it("refuses what is missing, empty, or not UTF-8", () => {
    const directory = mkdtempSync(join(tmpdir(), "planish-text-"));
    try {
      const file = join(directory, "t.txt");
      expect(() => readText(file)).toThrow(/does not exist.*wikitext2/);
      writeFileSync(file, " \n");
      expect(() => readText(file)).toThrow(/is empty/);
      writeFileSync(file, Buffer.from([0xc3, 0x28]));
      expect(() => readText(file)).toThrow(/UTF-8/);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe("tokenizeCorpus", () => {
  it("puts a blank line between documents", () => {
    using checkpoint = openCheckpoint(join(packageRoot, "models/tiny-llama"));
    const tokenizer = loadTokenizer(checkpoint);
    const tokens = tokenizeCorpus(tokenizer, ["First.", "Second."]);
    expect(tokenizer.decode(tokens)).toBe("First.\n\nSecond.");
  });
});
