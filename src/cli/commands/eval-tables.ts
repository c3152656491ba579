/** What `planish eval` prints without `--json`. */

import { formatDuration, formatNumber, formatTable, type Cell } from "../../common/format.js";
import type { Measure } from "../../evaluate/statistics.js";
import type { ClipSummary } from "../../quantize/block/clip-counts.js";
import type { EvalDocument, ModelScore } from "./eval-document.js";

export function renderEvaluation(document: EvalDocument): string {
  const { against, simulated } = document;
  const scores = [against, simulated, document].filter((score) => score !== undefined);
  const parts = [
    document.text === undefined ? undefined : perplexityTable(scores),
    document.simulatedRatio === undefined
      ? undefined
      : `perplexity, artifact over simulated: ${document.simulatedRatio.toFixed(5)}`,
    document.engine &&
      `perplexity through the engine: ${document.engine.perplexity.toFixed(2)}, over the simulated one: ${document.engine.ratio.toFixed(5)} (${formatDuration(document.engine.seconds)})`,
    document.divergence && divergenceLines(document.divergence),
    document.zeroShot && taskTable(scores),
    document.clipping && clippingLine(document.clipping),
    limitLine(document),
  ];
  return parts.filter((part) => part !== undefined).join("\n\n");
}

function perplexityTable(scores: readonly ModelScore[]): string {
  return formatTable(
    ["model", "scheme", "method", { title: "perplexity", decimals: 2 }, "windows × tokens", "time"],
    scores.map((s) => [
      s.model,
      s.scheme,
      s.method,
      s.perplexity,
      `${s.windows} × ${s.seqLen}`,
      formatDuration(s.seconds ?? 0),
    ]),
  );
}

function divergenceLines({
  kl,
  topAgreement,
  blockErrors,
}: NonNullable<EvalDocument["divergence"]>): string {
  const lines = [
    `KL divergence of next-token distributions: ${measured(kl, 4)} nats`,
    `same likeliest token: ${measured(topAgreement, 2, 100)} %`,
  ];
  if (blockErrors)
    lines.push(
      `relative error of states after each block: ${blockErrors.map((e) => e.toPrecision(2)).join(" ")}`,
    );
  return lines.join("\n");
}

/** Accuracies in percent, each with its standard error. */
function taskTable(scores: readonly ModelScore[]): string {
  const columns = ["task", "items", "acc (%)", "acc_norm (%)", "perplexity", "time"];
  const rows = scores.flatMap(({ model, zeroShot }) => {
    if (!zeroShot) return [];
    const own: Cell[][] = zeroShot.tasks.map(({ task, items, available, metrics, seconds }) => [
      task,
      items === available ? items.toString() : `${items} of ${available}`,
      metrics.acc && measured(metrics.acc, 2, 100),
      metrics.acc_norm && measured(metrics.acc_norm, 2, 100),
      metrics.perplexity && measured(metrics.perplexity, 2),
      formatDuration(seconds),
    ]);
    const average = measured(zeroShot.average, 2, 100);
    own.push([
      "average*",
      undefined,
      average,
      undefined,
      undefined,
      formatDuration(zeroShot.seconds),
    ]);
    return scores.length > 1 ? own.map((row) => [model, ...row]) : own;
  });
  const table = formatTable(scores.length > 1 ? ["model", ...columns] : columns, rows);
  const byLength = (scores[0].zeroShot?.tasks ?? [])
    .filter(({ customary }) => customary === "acc_norm")
    .map(({ task }) => task);
  const note =
    byLength.length === 0
      ? "* of acc"
      : `* of the customary metric: acc_norm for ${byLength.join(", ")}, acc for the rest`;
  return `${table}\n${note}`;
}

function measured({ value, stderr }: Measure, decimals: number, factor = 1): string {
  const text = (value * factor).toFixed(decimals);
  return stderr === undefined ? text : `${text} ± ${(stderr * factor).toFixed(decimals)}`;
}

const SHOWN_LINEARS = 3;

function clippingLine({ clipped, values, linears }: ClipSummary): string {
  const share = ((100 * clipped) / values).toPrecision(2);
  const most = Object.entries(linears)
    .slice(0, SHOWN_LINEARS)
    .map(([name, count]) => `${name} ${formatNumber(count.clipped)}`);
  const where = most.length > 0 ? `, most at ${most.join(", ")}` : "";
  return `activations beyond their static grid: ${formatNumber(clipped)} of ${formatNumber(values)} (${share}%)${where}`;
}

function limitLine({ limit, text, zeroShot }: EvalDocument): string | undefined {
  if (limit === undefined) return undefined;
  const what = [
    text === undefined ? [] : ["windows of the text"],
    zeroShot ? ["items of each task"] : [],
  ];
  return `Limited to the first ${limit} ${what.flat().join(" and ")}: not the scores of the whole.`;
}
