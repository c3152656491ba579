/** The table of a comparison, as cells, as plain text and as Markdown. */
import {
  formatBytes,
  formatDuration,
  formatMarkdownTable,
  formatTable,
  type Cell,
  type Column,
} from "../../common/format.js";
import type { Measure } from "../../evaluate/statistics.js";
import { planePoints, planeVerdict } from "./plane.js";
import type { Comparison } from "./result.js";

export interface TableParts {
  readonly columns: readonly (string | Column)[];
  readonly rows: readonly (readonly Cell[])[];
}

/** One row per method. */
export function mainTable({ methods }: Comparison): TableParts {
  const points = planePoints({ methods });
  const withTasks = methods.some(({ average }) => average !== undefined);
  const withSpeed = methods.some(({ speed }) => speed !== undefined);
  const columns = [
    "method",
    { title: "perplexity", decimals: 2 },
    "KL to FP",
    "same top-1 (%)",
    ...(withTasks ? ["zero-shot (%)"] : []),
    "size",
    "quantized in",
    ...(withSpeed ? ["prefill (tokens/s)", "decode (tokens/s)"] : []),
    ...(points.length > 2 ? ["best in"] : []),
  ];
  const rows = methods.map((m): Cell[] => [
    m.name,
    m.perplexity,
    m.kl && measured(m.kl, 4),
    m.topAgreement && measured(m.topAgreement, 1, 100),
    ...(withTasks ? [m.average && measured(m.average, 1, 100)] : []),
    m.bytes === undefined ? undefined : formatBytes(m.bytes),
    m.quantizeSeconds === undefined ? undefined : formatDuration(m.quantizeSeconds),
    ...(withSpeed
      ? [
          m.speed && rateText(m.speed.prefill.median, m.speed.prefillRatio),
          m.speed && rateText(m.speed.decode.median, m.speed.decodeRatio),
        ]
      : []),
    ...(points.length > 2 ? [points.find(({ name }) => name === m.name)?.best.join(", ")] : []),
  ]);
  return { columns, rows };
}

/** What each method continues the prompt with; nothing for comparisons of versions that did not ask. */
export function answerTable({ methods }: Comparison): TableParts | undefined {
  const rows = methods.flatMap(({ name, answer }): Cell[][] =>
    answer ? [[name, `${answer.prompt}${answer.text}`.replace(/\s+/g, " ").trimEnd()]] : [],
  );
  return rows.length === 0 ? undefined : { columns: ["method", "answer"], rows };
}

/** One row per method, one column per task: the customary metric in percent. */
export function taskTable({ methods }: Comparison): TableParts | undefined {
  const tasks = methods.find((m) => (m.tasks?.length ?? 0) > 0)?.tasks;
  if (!tasks) return undefined;
  const columns = [
    "method",
    ...tasks.map(({ task, customary }) => (customary === "acc_norm" ? `${task}*` : task)),
    "average",
  ];
  const rows = methods
    .filter((m) => m.tasks)
    .map((m): Cell[] => [
      m.name,
      ...tasks.map(({ task }) => {
        const own = m.tasks?.find((each) => each.task === task);
        const value = own?.metrics[own.customary];
        return value && measured(value, 1, 100);
      }),
      m.average && measured(m.average, 1, 100),
    ]);
  return { columns, rows };
}

/** What the tables do not say: where things were measured, and who is left out and why. */
export function comparisonNotes(comparison: Comparison): string[] {
  const { text, calibration, seed, limit, methods, remarks, model, machine } = comparison;
  const { samples, seqLen } = calibration;
  const windows = samples === undefined ? "" : `, ${samples} windows`;
  const length = seqLen === undefined ? "" : ` of ${seqLen} tokens`;
  const tasks = methods.find((m) => (m.tasks?.length ?? 0) > 0)?.tasks;
  return [
    `${model.name} (${formatBytes(model.bytes)}), ${comparison.scheme}, seed ${seed}, calibrated on ${calibration.text}${windows}${length}.`,
    `Perplexity, KL and top-1 agreement on the first ${text.windows} windows of ${text.seqLen} tokens of ${text.name}; KL in nats per token; ± is a standard error.`,
    ...(tasks
      ? [
          `Zero-shot through the engine: customary metric in percent (* acc_norm, else acc)${limit === undefined ? "" : `, the first ${limit} items of each task only`}: ${tasks.map((t) => `${t.task} ${t.items} of ${t.available}`).join(", ")}.`,
        ]
      : []),
    ...methods.flatMap(({ name, refused }) =>
      refused === undefined ? [] : [`${name} is left out: ${refused}`],
    ),
    ...methods.flatMap(({ name, refused, perplexity }) =>
      refused === undefined && perplexity === undefined
        ? [`${name} is not finished; planish compare … --resume goes on with it.`]
        : [],
    ),
    ...methods.flatMap(({ name, fallbacks }) =>
      (fallbacks ?? []).map((fallback) => `${name}, fallback: ${fallback}`),
    ),
    ...(methods.some(({ speed }) => speed)
      ? [
          "Speed in the engine: a prompt of 256 tokens in one step, then 32 tokens in a step each; median of 5 rounds, and × as fast as the model as it is, measured in turns with it.",
        ]
      : []),
    ...methods.flatMap(({ name, tasksBy }) =>
      tasksBy?.startsWith("simulated") ? [`Zero-shot of ${name} by ${tasksBy}.`] : [],
    ),
    ...methods.flatMap(({ name, speedReason }) =>
      speedReason === undefined ? [] : [`${name} has no speed: ${speedReason}`],
    ),
    ...(planePoints({ methods }).length > 2
      ? [
          "Best in size (speed): no other method is as near to the original in KL and as small (as fast at decoding), the model as it is included.",
        ]
      : []),
    ...remarks.map((remark) => `${remark[0].toUpperCase()}${remark.slice(1)}.`),
    `${machine.backend}; Node ${machine.node}, Planish ${comparison.planishVersion}.`,
  ];
}

export function comparisonText(comparison: Comparison): string {
  const { columns, rows } = mainTable(comparison);
  const tasks = taskTable(comparison);
  const answers = answerTable(comparison);
  const verdict = planeVerdict(comparison);
  return [
    ...(verdict.length > 0 ? [verdict.join("\n")] : []),
    formatTable(columns, rows),
    ...(tasks ? [formatTable(tasks.columns, tasks.rows)] : []),
    ...(answers ? [formatTable(answers.columns, answers.rows)] : []),
    comparisonNotes(comparison).join("\n"),
  ].join("\n\n");
}

export function comparisonMarkdown(comparison: Comparison): string {
  const { columns, rows } = mainTable(comparison);
  const tasks = taskTable(comparison);
  const answers = answerTable(comparison);
  const verdict = planeVerdict(comparison);
  return `${[
    `# ${comparison.model.name}, ${comparison.scheme}`,
    ...(verdict.length > 0 ? [verdict.join(" ")] : []),
    formatMarkdownTable(columns, rows),
    ...(tasks ? [formatMarkdownTable(tasks.columns, tasks.rows)] : []),
    ...(answers ? [formatMarkdownTable(answers.columns, answers.rows)] : []),
    comparisonNotes(comparison)
      .map((note) => `- ${note}`)
      .join("\n"),
  ].join("\n\n")}\n`;
}

function rateText(rate: number, ratio: number): string {
  return `${rate.toFixed(0)} (${ratio.toFixed(2)}×)`;
}

function measured({ value, stderr }: Measure, decimals: number, factor = 1): string {
  const text = (value * factor).toFixed(decimals);
  return stderr === undefined ? text : `${text} ± ${(stderr * factor).toFixed(decimals)}`;
}
