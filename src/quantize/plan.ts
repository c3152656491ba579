/** What a run would do, without doing it: transforms, parameters, operations, time, memory, size. */

import type { Backend } from "../backend/backend.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { parseModelConfig } from "../models/architectures/index.js";
import type { Architecture, LinearRole, ModelConfig } from "../models/config.js";
import { inspectModel } from "../models/inspect.js";
import { linearShape } from "../models/weights.js";
import { estimateRun, type RunEstimate } from "./estimate.js";
import { limitedNeed, resolveRecipe } from "./index.js";
import type { BlockPlan, CalibrationNeed } from "./method.js";
import { findMethod } from "./methods/index.js";
import { packedRowBytes } from "./pack.js";
import { formatScheme, type Scheme } from "./scheme.js";

export interface PlanOptions {
  /** Its speed is measured for the estimate of time. */
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly method: string;
  readonly scheme: Scheme;
  readonly preset?: string;
}

export interface RunPlan extends BlockPlan {
  readonly method: string;
  readonly preset: string;
  readonly scheme: string;
  readonly recipe: Readonly<Record<string, unknown>>;
  /** Absent: the method reads no text. */
  readonly calibration?: CalibrationNeed;
  /** Numbers that the parameters of one block hold: by site, "clip" and "round", and in all. */
  readonly parameterCounts: Readonly<Record<string, number>>;
  readonly parametersPerBlock: number;
  readonly estimate: RunEstimate;
  /** Bytes of the artifact's tensors. */
  readonly artifactBytes: number;
}

/** @throws UsageError for an unknown method or preset, PlanishError when the method cannot serve the model. */
export function planRun({ backend, source, scheme, ...options }: PlanOptions): RunPlan {
  const method = findMethod(options.method);
  const { preset, recipe } = resolveRecipe(method, options.preset);
  const { architecture, config } = parseModelConfig(source.config);
  method.check?.(config, scheme, recipe);
  const calibration = limitedNeed(method.calibration(recipe), config, recipe);
  const block = method.plan?.(config, architecture.names.linears, scheme, recipe) ?? {
    transforms: {},
    parameters: {},
  };
  const counts: Record<string, number> = {};
  for (const [name, shape] of Object.entries(block.parameters)) {
    const group = name.slice(0, name.indexOf("."));
    counts[group] = (counts[group] ?? 0) + elements(shape);
  }
  return {
    method: method.name,
    preset,
    scheme: formatScheme(scheme),
    recipe,
    calibration,
    ...block,
    parameterCounts: counts,
    parametersPerBlock: Object.values(counts).reduce((a, b) => a + b, 0),
    estimate: estimateRun(backend, config, scheme, calibration),
    artifactBytes: artifactBytes(source, architecture, config, scheme, block),
  };
}

/** Counted tensor by tensor as `packedEntries` and `writeArtifact` write them (docs/formats.md). */
function artifactBytes(
  source: Checkpoint,
  { names }: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  { transforms, parameters }: BlockPlan,
): number {
  const { unused } = inspectModel(source);
  const skipped = new Set(config.tiedEmbeddings ? [...unused, names.lmHead] : unused);
  const linears = new Set<string>();
  let perBlock = 0;
  for (const [role, path] of Object.entries(names.linears) as [LinearRole, string][]) {
    for (let layer = 0; layer < config.numLayers; layer++)
      linears.add(`${names.blockPrefix(layer)}${path}.weight`);
    const [rows, cols] = linearShape(config, role);
    if (scheme.weightBits >= 16) perBlock += 2 * rows * cols;
    else perBlock += rows * (4 + (scheme.weightBits <= 4 ? packedRowBytes(cols) : cols));
  }
  for (const [site, { factors }] of Object.entries(transforms))
    // P_v lives in the weights alone.
    if (site !== "v_head") for (const n of factors) perBlock += 2 * n * n;
  for (const name of Object.keys(parameters))
    if (/^clip\..*\.a_(max|min)$/.test(name)) perBlock += 2;
  let outside = 0;
  for (const { name, shape } of source.tensors.values())
    if (!skipped.has(name) && !linears.has(name)) outside += 2 * elements(shape);
  return outside + config.numLayers * perBlock;
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}
