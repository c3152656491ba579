/** Numbers and tables as people read them. Pure functions; nothing here prints. */

const BYTE_UNITS = ["KB", "MB", "GB", "TB", "PB"] as const;

/**
 * A byte count in decimal units (1 KB = 1000 B), three significant digits: `999 B`, `1.23 KB`, `135 MB`.
 * Throws RangeError for negative or non-finite counts.
 */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes) || bytes < 0) {
    throw new RangeError(`formatBytes: ${bytes} is not a size`);
  }
  if (bytes < 999.5) return `${Math.round(bytes)} B`;
  let value = bytes;
  let unit = -1;
  // 999.5 rounds to 1000, which belongs to the next unit.
  while (value >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${significant(value)} ${BYTE_UNITS[unit]}`;
}

/**
 * A duration given in seconds, to the precision that matters at its size: `450 ms`, `4.2 s`, `1 min 05 s`,
 * `2 h 07 min`, `3 d 04 h`. Throws RangeError for negative or non-finite durations.
 */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) {
    throw new RangeError(`formatDuration: ${seconds} is not a duration in seconds`);
  }
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const wholeSeconds = Math.round(seconds);
  if (wholeSeconds < 60) return `${wholeSeconds} s`;
  if (wholeSeconds < 3600) return pair(wholeSeconds, 60, "min", "s");
  const minutes = Math.round(seconds / 60);
  if (minutes < 24 * 60) return pair(minutes, 60, "h", "min");
  return pair(Math.round(seconds / 3600), 24, "d", "h");
}

function pair(value: number, base: number, major: string, minor: string): string {
  return `${Math.floor(value / base)} ${major} ${String(value % base).padStart(2, "0")} ${minor}`;
}

/**
 * A number with thousands separators and at most `digits` decimals (default 2, trailing zeros dropped).
 * Magnitudes below what `digits` can show, and above 1e15, are written in exponent form, never rounded to nothing.
 */
export function formatNumber(value: number, digits = 2): string {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  if (magnitude >= 1e15 || magnitude < 0.5 * 10 ** -digits) return value.toExponential(digits);
  const [whole, fraction = ""] = magnitude.toFixed(digits).split(".");
  const grouped = whole.replace(/\B(?=(?:\d{3})+$)/g, ",");
  const kept = fraction.replace(/0+$/, "");
  return (value < 0 ? "-" : "") + grouped + (kept === "" ? "" : `.${kept}`);
}

const COUNT_UNITS = ["", "K", "M", "B", "T"] as const;

/** A count in three significant digits with the suffixes the field uses for parameters: `135M`, `7.24B`. */
export function formatCount(count: number): string {
  let value = count;
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < COUNT_UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return unit === 0 ? String(Math.round(value)) : significant(value) + COUNT_UNITS[unit];
}

/** Three significant digits for values in [0.9995, 999.5). */
function significant(value: number): string {
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

/** A table's cell: text, or a number printed with `formatNumber`; undefined prints as "-". */
export type Cell = string | number | undefined;

export interface Column {
  readonly title: string;
  /** Default: right for columns whose cells are all numbers or "-", else left. */
  readonly align?: "left" | "right";
  /** Fixed decimals for numeric cells, so that a column's points line up (default: `formatNumber`). */
  readonly decimals?: number;
}

/**
 * Aligned plain-text columns, two spaces apart, titles over a rule; no trailing blanks, no final newline.
 * Throws RangeError when a row's length differs from the number of columns.
 */
export function formatTable(
  columns: readonly (string | Column)[],
  rows: readonly (readonly Cell[])[],
): string {
  const { titles, texts, rightAligned } = renderCells(columns, rows);
  const widths = titles.map((title, c) =>
    Math.max(textWidth(title), ...texts.map((row) => textWidth(row[c]))),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, c) => padText(cell, widths[c], rightAligned[c]))
      .join("  ")
      .trimEnd();
  return [line(titles), widths.map((w) => "-".repeat(w)).join("  "), ...texts.map(line)].join("\n");
}

/** The same table in GitHub-flavoured Markdown; pipes in cells are escaped. */
export function formatMarkdownTable(
  columns: readonly (string | Column)[],
  rows: readonly (readonly Cell[])[],
): string {
  const { titles, texts, rightAligned } = renderCells(columns, rows);
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  const rule = `|${rightAligned.map((right) => (right ? "---:" : "---")).join("|")}|`;
  return [line(titles), rule, ...texts.map(line)].join("\n");
}

function renderCells(
  columns: readonly (string | Column)[],
  rows: readonly (readonly Cell[])[],
): { titles: string[]; texts: string[][]; rightAligned: boolean[] } {
  const specs = columns.map((column) => (typeof column === "string" ? { title: column } : column));
  for (const row of rows) {
    if (row.length !== specs.length) {
      throw new RangeError(`table row has ${row.length} cells, its header ${specs.length}`);
    }
  }
  const rightAligned = specs.map(({ align }, c) =>
    align === undefined
      ? rows.some((row) => typeof row[c] === "number") &&
        rows.every((row) => typeof row[c] !== "string" || row[c] === "-")
      : align === "right",
  );
  const texts = rows.map((row) => row.map((cell, c) => cellText(cell, specs[c].decimals)));
  return { titles: specs.map(({ title }) => title), texts, rightAligned };
}

function cellText(cell: Cell, decimals: number | undefined): string {
  if (cell === undefined) return "-";
  if (typeof cell === "string") return cell;
  return decimals === undefined || !Number.isFinite(cell)
    ? formatNumber(cell)
    : cell.toFixed(decimals);
}

/** Code points, not UTF-16 units: a symbol outside the basic plane takes one column, not two. */
function textWidth(text: string): number {
  return Array.from(text).length;
}

function padText(text: string, width: number, right: boolean): string {
  const blanks = " ".repeat(Math.max(0, width - textWidth(text)));
  return right ? blanks + text : text + blanks;
}
