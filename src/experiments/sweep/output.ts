/** A sweep's table, as text and Markdown, and its trade-off curves: one HTML file that fetches nothing. */
import {
  formatBytes,
  formatMarkdownTable,
  formatTable,
  type Cell,
  type Column,
} from "../../common/format.js";
import { renderShell, renderTable } from "../page/html.js";
import type { Sweep, SweepPoint } from "./result.js";

function tableOf({ points, fullPrecision }: Sweep): {
  columns: (string | Column)[];
  rows: Cell[][];
} {
  const fields = Object.keys(points[0]?.values ?? {});
  const some = (key: keyof SweepPoint) => points.some((point) => point[key] !== undefined);
  const percent = (value: number | undefined, digits: number): Cell =>
    value === undefined ? undefined : `${(100 * value).toFixed(digits)}%`;
  const optional: [keyof SweepPoint, string, (p: SweepPoint) => Cell][] = [
    ["fourBitShare", "4-bit share", (p) => percent(p.fourBitShare, 1)],
    ["expansion", "K'/K", (p) => p.expansion?.toFixed(3)],
    ["clippedShare", "clipped", (p) => percent(p.clippedShare, 4)],
    ["tokensPerSecond", "prompt tokens/s", (p) => p.tokensPerSecond?.toFixed(0)],
  ];
  const shown = optional.filter(([key]) => some(key));
  const change = (perplexity: number) =>
    `${(100 * (perplexity / fullPrecision.perplexity - 1)).toFixed(2)}%`;
  return {
    columns: [
      ...fields,
      { title: "perplexity", decimals: 2 },
      "over full precision",
      "KL",
      ...shown.map(([, title]) => title),
      "size",
    ],
    rows: [
      [
        ...fields.map((_, i) => (i === 0 ? "full precision" : undefined)),
        fullPrecision.perplexity,
        undefined,
        undefined,
        ...shown.map(([key]) =>
          key === "tokensPerSecond" ? fullPrecision.tokensPerSecond?.toFixed(0) : undefined,
        ),
        formatBytes(fullPrecision.bytes),
      ],
      ...points.map((point) => [
        ...fields.map((field) => String(point.values[field])),
        point.perplexity,
        change(point.perplexity),
        point.kl.toFixed(4),
        ...shown.map(([, , cell]) => cell(point)),
        formatBytes(point.bytes),
      ]),
    ],
  };
}

function conditions({ model, method, preset, scheme, calibration, seed, text }: Sweep): string {
  return `${model}, ${method} (preset ${preset}), ${scheme}, seed ${seed}, calibrated on ${calibration}; perplexity on the first ${text.windows} windows of ${text.seqLen} tokens of ${text.name}, KL (nats per token) to full precision.`;
}

export function sweepText(sweep: Sweep): string {
  const { columns, rows } = tableOf(sweep);
  return `${formatTable(columns, rows)}\n\n${conditions(sweep)}`;
}

export function sweepMarkdown(sweep: Sweep): string {
  const { columns, rows } = tableOf(sweep);
  return `${formatMarkdownTable(columns, rows)}\n\n${conditions(sweep)}\n`;
}

/** Perplexity against 4-bit share, size and speed, drawn by assets/sweep/page.js with Observable Plot. */
export function sweepPage(sweep: Sweep): string {
  return renderShell({
    title: `Sweep of ${sweep.method} on ${sweep.model}`,
    subtitle: conditions(sweep),
    main: `${renderTable({ caption: "Points of the grid", ...tableOf(sweep) })}
<noscript><p>The curves need JavaScript; the table above does not.</p></noscript>
<div id="plots"></div>`,
    data: sweep,
    script: "sweep",
  });
}
