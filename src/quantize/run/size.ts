/** What an artifact will take on disk, counted before it is made. */
import type { BlockProgram } from "../../backend/contract/program.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { biasedPaths } from "../../models/weights.js";
import {
  blockTensors,
  describedBytes,
  endLayerTensors,
  layoutOfParameters,
  tableOffsetName,
  tableScaleName,
  type TensorDescription,
} from "../artifact/tensors.js";
import type { AnyMethod } from "../methods/index.js";
import type { BlockPlan } from "../schema/method.js";

/** What a method would do to each block; nothing, where it has no parameters. */
export function plansOf(
  method: AnyMethod,
  programs: readonly BlockProgram[],
  scheme: Scheme,
  recipe: Record<string, unknown>,
): BlockPlan[] {
  return programs.map(
    (program) => method.plan?.(program, scheme, recipe) ?? { transforms: {}, parameters: {} },
  );
}

/** Counted tensor by tensor as the artifact has them. */
export function artifactBytes(
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
      ? [name, tableScaleName(name), tableOffsetName(name)]
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
