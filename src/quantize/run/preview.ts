/** What a run would do, without doing it: transforms, parameters, operations, time, memory, size. */

import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { blockProgram, blockPrograms } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import {
  blockTensors,
  describedBytes,
  layoutOfParameters,
  endLayerTensors,
  tableScaleName,
  type TensorDescription,
} from "../artifact/tensors.js";
import { biasedPaths } from "../../models/weights.js";
import { estimateRun, type RunEstimate } from "./estimate.js";
import { limitedNeed, resolveRecipe, schemeFor } from "./pipeline.js";
import { checkGroups } from "../grids/groups.js";
import type { BlockPlan, CalibrationNeed } from "../schema/method.js";
import { findMethod } from "../methods/index.js";
import { formatScheme, type Scheme } from "../../backend/contract/scheme.js";
import { parameterGroup } from "../schema/parameters.js";

export interface PlanOptions {
  /** Its speed is measured for the estimate of time. */
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly method: string;
  /** Default: w4a4kv4; of methods that keep a source's grids none is taken. */
  readonly scheme?: Scheme;
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
export function planRun({ backend, source, ...options }: PlanOptions): RunPlan {
  const method = findMethod(options.method);
  const { preset, recipe } = resolveRecipe(method, options.preset);
  const { architecture, config } = parseSource(source);
  const { scheme } = schemeFor(method, { source, architecture, config }, recipe, options);
  const programs = blockPrograms(config);
  checkGroups(programs, config, scheme);
  method.check?.(programs, scheme, recipe);
  const calibration = limitedNeed(method.calibration(recipe), config, recipe);
  const blocks = programs.map(
    (program): BlockPlan =>
      method.plan?.(program, scheme, recipe) ?? { transforms: {}, parameters: {} },
  );
  const [block] = blocks;
  const counts: Record<string, number> = {};
  for (const [name, shape] of Object.entries(block.parameters)) {
    const group = parameterGroup(name);
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
    artifactBytes: artifactBytes(source, architecture, config, scheme, blocks),
  };
}

/** Counted tensor by tensor as the artifact has them. */
function artifactBytes(
  source: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  blocks: readonly BlockPlan[],
): number {
  const sum = (described: readonly TensorDescription[]): number =>
    described.reduce((bytes, tensor) => bytes + describedBytes(tensor), 0);
  const stored = endLayerTensors(architecture, config).flatMap(({ name }) =>
    source.tensors.has(name) && !(config.tiedEmbeddings && name === architecture.names.lmHead)
      ? [name, tableScaleName(name)]
      : [],
  );
  const outside = endLayerTensors(architecture, config, scheme).filter(({ name }) =>
    stored.includes(name),
  );
  const inside = blocks.map(({ parameters }, layer) => {
    const program = blockProgram(config, layer);
    // Which module has a bias is the source's to say.
    const biases = biasedPaths(source, architecture, config, layer);
    const layout = layoutOfParameters(program, parameters, () => scheme.weightBits, biases);
    return sum(blockTensors(architecture, config, scheme, layer, layout));
  });
  return inside.reduce((bytes, block) => bytes + block, sum(outside));
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}
