/** `planish inspect`: architecture, sites, tensors and sizes, from headers alone. */

import type { Command } from "commander";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { formatBytes, formatCount, formatNumber, formatTable } from "../../common/format.js";
import type { ModelConfig } from "../../models/config.js";
import { inspectModel, type ModelDescription } from "../../models/inspect.js";
import {
  isArtifact,
  readQuantizationInfo,
  type QuantizationInfo,
} from "../../quantize/artifact.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";
import { MODEL_ARGUMENT } from "./shared.js";

interface InspectFlags {
  readonly tensors?: boolean;
}

export function register(program: Command): void {
  const command = program
    .command("inspect")
    .summary("show a model's architecture, sites, tensors and sizes")
    .description("Shows a model's architecture, sites, tensors and sizes, without reading weights.")
    .argument("<model>", MODEL_ARGUMENT)
    .option("--tensors", "list every tensor")
    .action(
      perform<InspectFlags, [string]>(async ({ reporter, signal }, flags, model) => {
        const path = await resolveModel(model, { progress: reporter, signal });
        if (isArtifact(path)) {
          const artifact = describeArtifact(path);
          reporter.result(artifact, () => renderArtifact(artifact));
          return;
        }
        using checkpoint = openCheckpoint(path);
        const description = inspectModel(checkpoint);
        if (description.missing.length > 0) {
          reporter.warn(`tensors are missing: ${abridge(description.missing)}`);
        }
        reporter.result(description, () => render(description, flags.tensors ?? false));
      }),
    );
  addExamples(command, ["planish inspect models/tiny-llama", "planish inspect model.gguf --json"]);
}

function render(model: ModelDescription, listTensors: boolean): string {
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
  return sections.join("\n\n");
}

function summary(model: ModelDescription): [string, string][] {
  const { config } = model;
  return [
    ["format", model.format],
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

function positions({ positions }: ModelConfig): string {
  if (positions.kind === "learned") return "learned";
  const { theta, scaling } = positions;
  const scaled = scaling.type === "default" ? "" : `, ${scaling.type} scaling by ${scaling.factor}`;
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
    ["source", `${q.source.name} (${q.source.format}, ${q.source.hash.slice(0, 16)})`],
    ["scheme", q.scheme],
    ["method", q.preset === undefined ? q.method : `${q.method}, preset ${q.preset}`],
    ["seed", String(q.seed)],
    ["size", `${formatBytes(bytes)} in ${formatNumber(tensors)} tensors`],
    ["made by", `planish ${q.planishVersion}`],
  ];
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
  return sections.join("\n\n");
}

const SHOWN = 5;

function abridge(names: readonly string[]): string {
  const more = names.length - SHOWN;
  return names.slice(0, SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
}
