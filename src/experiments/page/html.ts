/**
 * The report as one HTML file: text and tables written here, plots drawn by assets/report/page.js with Observable Plot,
 * which (with d3, its only need) is inlined. Nothing is fetched; the page's own policy forbids it.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { packageRoot } from "../../common/package.js";
import { formatNumber, type Cell, type Column } from "../../common/format.js";
import type { TableParts } from "../compare/table.js";
import type { PageData } from "./data.js";

export interface PageTable extends TableParts {
  readonly caption: string;
  /** Cells are sentences, which wrap. */
  readonly prose?: boolean;
}

export interface PageContent {
  readonly title: string;
  /** Below the title, in a line. */
  readonly subtitle: string;
  /** What it comes to, in sentences, above everything. */
  readonly verdict?: readonly string[];
  /** First the table that matters most. */
  readonly tables: readonly PageTable[];
  /** Remarks below the tables: conditions, methods left out, fallbacks. */
  readonly notes: readonly string[];
  /** Folded away: recipe, machine, versions. */
  readonly details: readonly { readonly title: string; readonly text: string }[];
  readonly data: PageData;
}

/** What surrounds every page: head, heading, `main` as HTML, the data that its script reads, and the script. */
export function renderShell(page: {
  readonly title: string;
  readonly subtitle: string;
  readonly main: string;
  readonly data: unknown;
  /** The folder of `assets/` with its page.js. */
  readonly script: string;
}): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>${escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>${readAsset("report", "page.css")}</style>
</head>
<body>
<header>
<h1>${escape(page.title)}</h1>
<p class="subtitle">${escape(page.subtitle)}</p>
</header>
<main>
${page.main}
</main>
<script id="data" type="application/json">${JSON.stringify(page.data).replace(/</g, "\\u003c")}</script>
${plotScripts(readAsset(page.script, "page.js"))}
</body>
</html>
`;
}

export function renderPage(content: PageContent): string {
  const { title, subtitle, verdict = [], tables, notes, details, data } = content;
  const main = `<section aria-labelledby="results">
<h2 id="results">Results</h2>
${verdict.length > 0 ? `<p class="verdict">${verdict.map(escape).join(" ")}</p>` : ""}
${tables.map(renderTable).join("\n")}
<ul class="notes">
${notes.map((note) => `<li>${escape(note)}</li>`).join("\n")}
</ul>
</section>
<noscript><p>The plots need JavaScript; the tables above do not.</p></noscript>
<div id="plots"></div>
<section aria-labelledby="details">
<h2 id="details">Recipes, machine, versions</h2>
${details.map((d) => `<details><summary>${escape(d.title)}</summary><pre tabindex="0">${escape(d.text)}</pre></details>`).join("\n")}
</section>`;
  return renderShell({ title, subtitle, main, data, script: "report" });
}

/** Numeric columns stand right; a wide table scrolls by itself, and can be scrolled with the keyboard. */
export function renderTable({ caption, columns, rows, prose }: PageTable): string {
  const specs = columns.map((c): Column => (typeof c === "string" ? { title: c } : c));
  const head = specs.map(({ title }) => `<th scope="col">${escape(title)}</th>`).join("");
  const body = rows
    .map((row) => {
      const [first, ...rest] = row.map((cell, c) => escape(cellText(cell, specs[c].decimals)));
      return `<tr><th scope="row">${first}</th>${rest.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
    })
    .join("\n");
  return `<div class="scroll${prose ? " prose" : ""}" tabindex="0" role="region" aria-label="${escape(caption)}">
<table><caption>${escape(caption)}</caption>
<thead><tr>${head}</tr></thead>
<tbody>
${body}
</tbody></table></div>`;
}

function cellText(cell: Cell, decimals: number | undefined): string {
  if (cell === undefined) return "–";
  if (typeof cell === "string") return cell;
  return decimals === undefined ? formatNumber(cell) : cell.toFixed(decimals);
}

export function escape(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** A script's text may hold its own end tag inside a string. */
function inlineScript(text: string): string {
  return text.replace(/<\/(script)/gi, "<\\/$1");
}

/** A page's own file, from `assets/<page>/`. */
function readAsset(page: string, name: string): string {
  return readFileSync(join(packageRoot, "assets", page, name), "utf8");
}

/** Script elements with Observable Plot and d3, its only need, inlined, and then the page's own script. */
function plotScripts(own: string): string {
  const scripts = [
    library("d3", "dist/d3.min.js"),
    library("@observablehq/plot", "dist/plot.umd.min.js"),
    own,
  ];
  return scripts.map((text) => `<script>${inlineScript(text)}</script>`).join("\n");
}

/** A file of an installed package, wherever the package manager put it. */
function library(name: string, file: string): string {
  const entry = createRequire(import.meta.url).resolve(name);
  let directory = dirname(entry);
  for (;;) {
    try {
      const { name: found } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8")) as {
        name?: string;
      };
      if (found === name) return readFileSync(join(directory, file), "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    directory = dirname(directory);
  }
}
