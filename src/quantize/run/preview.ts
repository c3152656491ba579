/** What a run would do, without doing it: transforms, parameters, operations, time, memory, size. */

import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { blockPrograms } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import { artifactBytes, plansOf } from "./size.js";
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
  /** Fields that replace the preset's. */
  readonly recipe?: Readonly<Record<string, unknown>>;
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
  const { preset, recipe } = resolveRecipe(method, options.preset, options.recipe);
  const { architecture, config } = parseSource(source);
  const { scheme } = schemeFor(method, { source, architecture, config }, recipe, options);
  const programs = blockPrograms(config);
  checkGroups(programs, config, scheme);
  method.check?.(programs, scheme, recipe);
  const calibration = limitedNeed(method.calibration(recipe), config, recipe);
  const blocks = plansOf(method, programs, scheme, recipe);
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

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}
