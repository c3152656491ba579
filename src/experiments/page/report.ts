/** What goes into a report: of an artifact, or of a comparison with the artifacts it made. */
import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { cpus, totalmem } from "node:os";
import type { Backend } from "../../backend/contract/training.js";
import { quoted } from "../../common/bounds.js";
import { UsageError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { packageVersion } from "../../common/package.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import {
  isArtifact,
  readQuantizationInfo,
  type QuantizationInfo,
} from "../../quantize/artifact/artifact.js";
import { COMPARISON_FILE, isComparison, readComparison } from "../compare/directory.js";
import type { Comparison } from "../compare/result.js";
import { planePoints, planeVerdict } from "../compare/plane.js";
import { answerTable, comparisonNotes, mainTable, taskTable } from "../compare/table.js";
import { capture, type Capture } from "./capture.js";
import type { MethodView } from "./data.js";
import { renderPage, type PageContent, type PageTable } from "./html.js";
import { short } from "./measure.js";

export interface ReportOptions {
  readonly backend: Backend;
  /** An artifact of `planish quantize`, or the directory of a comparison. */
  readonly directory: string;
  /**
   * The full-precision model, for what tensors look like before and after. A comparison remembers where it was; without
   * it those parts of the page are left out, and the page says so.
   */
  readonly source?: string;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

/**
 * The report of one directory as a self-contained HTML document.
 * @throws UsageError when the directory is neither artifact nor comparison; PlanishError when `source` is another model.
 */
export async function report(options: ReportOptions): Promise<string> {
  const { directory } = options;
  refuseOther(directory);
  if (isComparison(directory)) return renderPage(await ofComparison(options));
  return renderPage(await ofArtifact(options));
}

/** @throws UsageError when there is nothing at a path that a report could be of. */
export function refuseOther(directory: string): void {
  if (directory !== "" && (isComparison(directory) || isArtifact(directory))) return;
  throw new UsageError(
    `${quoted(directory)} is neither an artifact (no quantization.json) nor a comparison (no ${COMPARISON_FILE}); give what \`planish quantize\` or \`planish compare\` left`,
  );
}

async function ofComparison(options: ReportOptions): Promise<PageContent> {
  const { directory } = options;
  const comparison = readComparison(directory);
  const source =
    options.source ?? (existsSync(comparison.model.path) ? comparison.model.path : undefined);
  const artifacts = comparison.methods.flatMap(({ name, artifact }) => {
    if (artifact === undefined) return [];
    const path = join(directory, artifact);
    return isArtifact(path) ? [{ name, path }] : [];
  });
  const found = await look(options, source, artifacts);
  const infos = new Map(artifacts.map(({ name, path }) => [name, readQuantizationInfo(path)]));
  const tasks = taskTable(comparison);
  const answers = answerTable(comparison);
  const tables: PageTable[] = [
    { caption: "Methods side by side", ...mainTable(comparison) },
    ...(tasks ? [{ caption: "Zero-shot tasks (percent)", ...tasks }] : []),
    ...(answers
      ? [{ caption: "What each continues the prompt with", prose: true, ...answers }]
      : []),
  ];
  return {
    title: `${comparison.model.name}, ${comparison.scheme}: ${comparison.methods.length} methods`,
    subtitle: `planish compare ${comparison.model.name} --scheme ${comparison.scheme} --methods ${comparison.methods.map(({ name }) => name).join(",")}`,
    verdict: planeVerdict(comparison),
    tables,
    notes: [...comparisonNotes(comparison), ...missing(found, source, artifacts.length)],
    details: [
      ...[...infos].map(([name, info]) => recipeOf(name, info)),
      { title: "Machine and versions", text: machineOf(comparison) },
    ],
    data: {
      plane: planePoints(comparison),
      tasks: comparison.methods.flatMap(({ name, tasks: done = [] }) =>
        done.flatMap(({ task, metrics, customary }) => {
          const value = metrics[customary]?.value;
          return value === undefined ? [] : [{ name, task, value: short(value) }];
        }),
      ),
      siteNames: found?.siteNames ?? [],
      layers: found?.before.length ?? [...infos.values()][0]?.layers.length ?? 0,
      before: found?.before,
      methods: comparison.methods
        .filter(({ artifact }) => artifact !== undefined)
        .map(({ name, blockErrors }) => ({
          ...viewOf(name, infos.get(name), found),
          depth: blockErrors?.map(short),
        })),
    },
  };
}

async function ofArtifact(options: ReportOptions): Promise<PageContent> {
  const { directory, source, backend } = options;
  const info = readQuantizationInfo(directory);
  const name = info.method;
  const found = await look(options, source, [{ name, path: directory }]);
  const view = viewOf(name, info, found);
  const rows = info.layers.map(({ layer, errorRounded, errorInitial, errorFinal, errorPacked }) =>
    [layer, errorRounded, errorInitial, errorFinal, errorPacked].map((x, i) =>
      i === 0 ? String(x) : x?.toPrecision(3),
    ),
  );
  const columns = ["block", "rounded to nearest", "at the start", "calibrated", "packed"];
  return {
    title: `${basename(resolve(directory))}: ${info.source.name} in ${info.scheme} by ${info.method}`,
    subtitle: `preset ${info.preset ?? "none"}, seed ${info.seed}, Planish ${info.planishVersion}`,
    tables: [{ caption: "Mean squared error of each block's output", columns, rows }],
    notes: [
      ...info.fallbacks.map((fallback) => `Fallback: ${fallback}`),
      ...missing(found, source, 1),
    ],
    details: [
      recipeOf(name, info),
      {
        title: "Machine and versions",
        text: `made by Planish ${info.planishVersion}\nreport by Planish ${packageVersion()}\n${cpus()[0]?.model ?? ""}, ${formatBytes(totalmem())}\n${backend.description}\nNode ${process.version}`,
      },
    ],
    data: {
      siteNames: found?.siteNames ?? [],
      layers: info.layers.length,
      before: found?.before,
      methods: [view],
    },
  };
}

async function look(
  { backend, progress = silentProgress, signal }: ReportOptions,
  source: string | undefined,
  artifacts: readonly { name: string; path: string }[],
): Promise<Capture | undefined> {
  if (source === undefined || artifacts.length === 0) return undefined;
  return capture({ backend, source, artifacts, progress, signal });
}

function missing(
  found: Capture | undefined,
  source: string | undefined,
  artifacts: number,
): string[] {
  if (found)
    return [
      `Activations are those of the first ${found.tokens} tokens of WikiText-2's test split; every artifact's block reads the full-precision model's states.`,
    ];
  if (source === undefined)
    return [
      "Channel magnitudes, distributions and errors per site are missing: the full-precision model was not at hand (planish report … --source MODEL).",
    ];
  return artifacts === 0 ? ["No artifacts are left of this comparison to look into."] : [];
}

function viewOf(
  name: string,
  info: QuantizationInfo | undefined,
  found: Capture | undefined,
): MethodView {
  const own = found?.after.get(name);
  const errors = (key: "errorRounded" | "errorFinal"): number[] | undefined => {
    const values = info?.layers.flatMap((layer) => layer[key] ?? []) ?? [];
    return values.length > 0 ? values.map(short) : undefined;
  };
  return {
    name,
    sites: own?.sites,
    siteErrors: own?.siteErrors,
    blockErrors: own?.blockErrors,
    epochLoss: info?.layers.map(({ epochLoss }) => (epochLoss ?? []).map(short)),
    roundedError: errors("errorRounded"),
    finalError: errors("errorFinal"),
  };
}

function recipeOf(name: string, info: QuantizationInfo): { title: string; text: string } {
  const { method, preset, scheme, recipe, seed, source, calibration, fallbacks } = info;
  return {
    title: `Recipe of ${name}`,
    text: JSON.stringify(
      { method, preset, scheme, seed, recipe, calibration, source, fallbacks },
      undefined,
      2,
    ),
  };
}

function machineOf({ machine, planishVersion, model }: Comparison): string {
  return [
    `model ${model.name}, ${formatBytes(model.bytes)}, SHA-256 ${model.hash}`,
    `Planish ${planishVersion} (report by ${packageVersion()}), Node ${machine.node}, ${machine.platform}`,
    `${machine.processor}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)} of memory`,
    machine.backend,
  ].join("\n");
}
