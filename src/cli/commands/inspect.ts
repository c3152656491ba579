/** `planish inspect`: architecture, sites, tensors and sizes, from headers alone; and what a recipe would do. */

import { Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { UsageError } from "../../common/errors.js";
import {
  formatBytes,
  formatCount,
  formatDuration,
  formatNumber,
  formatTable,
} from "../../common/format.js";
import type { ModelConfig } from "../../models/config.js";
import { inspectModel, type ModelDescription } from "../../models/inspect.js";
import {
  isArtifact,
  readQuantizationInfo,
  type QuantizationInfo,
} from "../../quantize/artifact/artifact.js";
import { verifyArtifact, type VerifiedArtifact } from "../../quantize/artifact/verify.js";
import { METHODS } from "../../quantize/methods/index.js";
import { planRun, type RunPlan } from "../../quantize/run/preview.js";
import { parseScheme } from "../../backend/contract/scheme.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";
import { linearSections, ownGridSections } from "./linear-table.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";

interface InspectFlags extends DeviceFlags {
  readonly tensors?: boolean;
  readonly verify?: boolean;
  readonly method?: string;
  readonly preset?: string;
  readonly scheme?: string;
}

export function register(program: Command): void {
  const command = program
    .command("inspect")
    .summary("show a model's architecture, sites, tensors and sizes, and what a recipe would do")
    .description(
      "Shows a model's architecture, sites, tensors and sizes, without reading weights. With --method, --preset or " +
        "--scheme also what `planish quantize` would do with it: transforms, parameters, time, memory, size.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .option("--tensors", "list every tensor")
    .option("--verify", "read an artifact whole: hashes of its files, every tensor and its values")
    .addOption(
      new Option("--method <name>", "plan a run of this method (default: flatquant)").choices(
        METHODS.map(({ name }) => name),
      ),
    )
    .option("--preset <name>", "plan a run with this preset (default: the method's)")
    .option("--scheme <scheme>", "plan a run to this scheme (default: w4a4kv4)")
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<InspectFlags, [string]>(async ({ reporter, signal }, flags, model) => {
        const { method, preset, scheme } = flags;
        const planned = (method ?? preset ?? scheme) !== undefined;
        const bits = scheme === undefined ? undefined : parseScheme(scheme);
        const path = await resolveModel(model, { progress: reporter, signal });
        if (isArtifact(path)) {
          if (planned)
            throw new UsageError(
              `${model} is quantized already; give --method, --preset and --scheme with the original`,
            );
          if (flags.verify) {
            const verified = verifyArtifact(path);
            if (verified.unrecorded)
              reporter.warn(
                `${model} was made by planish ${verified.planishVersion}, which kept no hashes: only its tensors are checked`,
              );
            reporter.result(verified, () => renderVerified(verified));
            return;
          }
          const artifact = describeArtifact(path);
          reporter.result(artifact, () => renderArtifact(artifact));
          return;
        }
        if (flags.verify)
          throw new UsageError(
            `${model} is no artifact of planish quantize, and holds no hashes to verify; give an artifact's directory`,
          );
        using checkpoint = openCheckpoint(path);
        const description = inspectModel(checkpoint);
        if (description.missing.length > 0) {
          reporter.warn(`tensors are missing: ${abridge(description.missing)}`);
        }
        let plan: RunPlan | undefined;
        if (planned) {
          using backend = openBackend({ ...flags, progress: reporter });
          const options = { method: method ?? "flatquant", preset, scheme: bits };
          plan = planRun({ backend, source: checkpoint, ...options });
        }
        reporter.result({ ...description, plan }, () =>
          render(description, flags.tensors ?? false, plan),
        );
      }),
    );
  addExamples(command, [
    "planish inspect models/tiny-llama",
    "planish inspect smollm2-135m-instruct --method flatquant --preset paper",
    "planish inspect model.gguf --json",
    "planish inspect tiny-w4a4kv4 --verify",
  ]);
}

function render(model: ModelDescription, listTensors: boolean, plan?: RunPlan): string {
  const sections = [
    formatTable(["model", model.path], summary(model)),
    formatTable(
      ["site", "channels", "feeds"],
      model.sites.map(({ site, channels, linears }) => [
        site,
        channels,
        linears.map(({ path, shape }) => `${path} ${shape.join("×")}`).join(", "),
      ]),
    ),
    formatTable(
      ["type", "tensors", "size"],
      model.types.map(({ type, tensors, bytes }) => [type, tensors, formatBytes(bytes)]),
    ),
  ];
  if (model.unused.length > 0) sections.push(`not used: ${abridge(model.unused)}`);
  if (listTensors) {
    sections.push(
      formatTable(
        ["tensor", "type", "shape", "size"],
        model.tensors.map((t) => [t.name, t.type, t.shape.join("×"), formatBytes(t.bytes)]),
      ),
    );
  }
  if (plan) sections.push(...renderPlan(plan, model));
  return sections.join("\n\n");
}

function renderPlan(plan: RunPlan, { bytes, config }: ModelDescription): string[] {
  const { calibration, estimate, parameterCounts: counts } = plan;
  const rows: [string, string][] = [];
  if (calibration) {
    const { samples, seqLen, stepsPerBlock, batch, refineSteps } = calibration;
    rows.push(["calibration", `${samples} × ${seqLen} tokens`]);
    if (stepsPerBlock > 0) rows.push(["steps per block", `${stepsPerBlock} of ${batch} windows`]);
    if (refineSteps > 0) rows.push(["end-to-end steps", formatNumber(refineSteps)]);
  }
  rows.push(
    ["parameters per block", formatCount(plan.parametersPerBlock)],
    ["parameters in all", formatCount(plan.parametersPerBlock * config.numLayers)],
    ["operations", `${estimate.operations.toExponential(2)} (two per multiply-add)`],
    ["time", `about ${formatDuration(estimate.seconds)} on this machine`],
    ["memory", `about ${formatBytes(estimate.memoryBytes)}`],
    ["disk", `about ${formatBytes(estimate.diskBytes)} while it runs`],
    [
      "artifact",
      `${formatBytes(plan.artifactBytes)} (${((100 * plan.artifactBytes) / bytes).toFixed(0)}% of ${formatBytes(bytes)})`,
    ],
  );
  const others = Object.keys(plan.transforms).filter(
    (site) => !ALL_SITES.includes(site) && !site.startsWith("experts."),
  );
  const sites = [...ALL_SITES, ...others].map((site) => [
    site,
    transformText(plan, site),
    counts[site] ?? 0,
  ]);
  for (const [group, title] of [
    ["clip", "clipping"],
    ["round", "rounding"],
  ])
    if (counts[group] !== undefined) sites.push([title, "-", counts[group]]);
  const title = `${plan.method}, preset ${plan.preset}, ${plan.scheme}`;
  return [
    formatTable(["would do", title], rows),
    formatTable(["site", "transform", "parameters per block"], sites),
  ];
}

function renderVerified({ path, files, tensors, bytes }: VerifiedArtifact): string {
  const hashed = `${formatNumber(files)} files hold the bytes that were written`;
  const checked = `${formatNumber(tensors)} tensors (${formatBytes(bytes)}) are as described`;
  return `${path}: ${files > 0 ? `${hashed}, ` : ""}${checked}`;
}

/** Of the usual block, whether or not something stands there. */
const ALL_SITES: readonly string[] = [
  ...["attn_in", "k_head", "v_head", "attn_out", "mlp_in", "mlp_down"],
];

/** `16×16 Kronecker + diag`, `8×8 over heads`, … */
function transformText({ transforms }: RunPlan, site: string): string {
  const plan = transforms[site];
  if (!plan) return "none";
  if (plan.factors.length === 0) return "diag";
  const [left, right] = plan.factors;
  const diag = plan.diag ? " + diag" : "";
  // Factors multiply to the site's width; each is a square matrix.
  if (right !== undefined) return `${left}×${right} Kronecker${diag}`;
  if (site === "attn_out") return `${left}×${left} over heads`;
  if (site === "k_head" || site === "v_head") return `${left}×${left} in each head`;
  return `${left}×${left} dense${diag}`;
}

function summary(model: ModelDescription): [string, string][] {
  const { config } = model;
  return [
    ["format", formatOf(model)],
    ["use", USES],
    ["architecture", config.architecture],
    [
      "parameters",
      `${formatCount(model.parameters)} (${formatCount(model.linearParameters)} in linears)`,
    ],
    ["size", formatBytes(model.bytes)],
    ["blocks", formatNumber(config.numLayers)],
    ["hidden, intermediate", `${config.hiddenSize}, ${config.intermediateSize}`],
    ["heads, KV heads × size", `${config.numHeads}, ${config.numKvHeads} × ${config.headDim}`],
    ["vocabulary", formatNumber(config.vocabSize) + (config.tiedEmbeddings ? ", tied" : "")],
    ["positions", `${formatNumber(config.maxPositions)}, ${positions(config)}`],
  ];
}

/** What can be done with an original, whatever its format. */
const USES = "as an original: quantize, eval, generate, chat, serve, compare, sweep, bench";

function formatOf({ format, quantized }: ModelDescription): string {
  if (!quantized) return format;
  const { method, grid, tensors, notes } = quantized;
  const dropped = notes.length > 0 ? `; not followed: ${notes.join(", ")}` : "";
  return `${format}, ${method}: ${formatNumber(tensors.length)} weights at ${grid}, read as they dequantize${dropped}`;
}

function positions({ positions }: ModelConfig): string {
  if (positions.kind === "learned") return "learned";
  if (positions.kind === "none") return "none but a bias of scores with distance";
  const { theta, scaling } = positions;
  const by = "factor" in scaling ? ` by ${scaling.factor}` : "";
  const scaled = scaling.type === "default" ? "" : `, ${scaling.type} scaling${by}`;
  return `rotary with base ${formatNumber(theta)}${scaled}`;
}

interface ArtifactDescription {
  readonly path: string;
  readonly bytes: number;
  readonly tensors: number;
  readonly quantization: QuantizationInfo;
}

function describeArtifact(path: string): ArtifactDescription {
  const quantization = readQuantizationInfo(path);
  using checkpoint = openCheckpoint(path);
  const tensors = [...checkpoint.tensors.values()];
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  return { path, bytes, tensors: tensors.length, quantization };
}

function renderArtifact({ path, bytes, tensors, quantization: q }: ArtifactDescription): string {
  const rows: [string, string][] = [
    ["format", "artifact of planish quantize"],
    ["use", "eval, generate, chat, serve, bench, report, inspect --verify"],
    ["source", `${q.source.name} (${q.source.format}, ${q.source.hash.slice(0, 16)})`],
    ["scheme", q.scheme],
    ["method", q.preset === undefined ? q.method : `${q.method}, preset ${q.preset}`],
    ["seed", String(q.seed)],
    ["size", `${formatBytes(bytes)} in ${formatNumber(tensors)} tensors`],
    ["made by", `planish ${q.planishVersion}`],
  ];
  const weights = counted(q.layers.flatMap(({ grids }) => Object.values(grids ?? {})));
  if (weights) rows.push(["grids of linears", weights]);
  const activations = counted(
    q.layers.flatMap(({ activationBits }) => Object.values(activationBits ?? {})),
  );
  if (activations) rows.push(["bits of sites", activations]);
  for (const [name, grid] of Object.entries(q.tables ?? {})) rows.push([name, grid]);
  if (q.budget) {
    const { predictedKl, uniformKl } = q.budget;
    rows.push([
      "bits chosen",
      `rounded to nearest KL ${predictedKl.toPrecision(3)}, with the scheme's bits everywhere ${uniformKl.toPrecision(3)}`,
    ]);
  }
  if (q.calibration) {
    const { text, samples, seqLen } = q.calibration;
    rows.push(["calibration", `${samples} × ${seqLen} tokens of ${text}`]);
  }
  for (const fallback of q.fallbacks) rows.push(["fallback", fallback]);
  const layers = q.layers.filter((layer) => layer.errorFinal !== undefined);
  const sections = [formatTable(["artifact", path], rows)];
  if (layers.length > 0) {
    sections.push(
      formatTable(
        ["block", "error rounded", "error calibrated"],
        layers.map((l) => [l.layer, l.errorRounded?.toPrecision(3), l.errorFinal?.toPrecision(3)]),
      ),
    );
  }
  sections.push(...linearSections(q.layers), ...ownGridSections(q.layers));
  return sections.join("\n\n");
}

/** `4g32o × 180, 6g16 × 30`, the most frequent first. */
function counted(values: readonly (string | number)[]): string {
  const counts = new Map<string | number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts]
    .sort(([, a], [, b]) => b - a)
    .map(([value, count]) => `${value} × ${count}`)
    .join(", ");
}

const SHOWN = 5;

function abridge(names: readonly string[]): string {
  const more = names.length - SHOWN;
  return names.slice(0, SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
}
