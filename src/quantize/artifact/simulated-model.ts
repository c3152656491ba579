/**
 * The quantized model before packing: original weights, a method's parameters, grids computed on the fly. Slower
 * than the artifact and equal to it up to the rounding of what the artifact keeps in 16 bits; it exists to check that.
 */
import { join } from "node:path";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { openSafetensors, writeSafetensors } from "../../checkpoint/safetensors.js";
import { PlanishError } from "../../common/errors.js";
import { existsSync } from "node:fs";
import { blockProgram } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import type { BlockHooks, BlockWeights } from "../../models/interpret.js";
import { LanguageModel, loadEndLayers } from "../../models/language-model.js";
import { readBlock, uploadBlock } from "../../models/weights.js";
import { frozen, type Graph, type Tensor } from "../../tensor/tensor.js";
import { tableReader } from "./tables.js";
import type { ParameterValues } from "../schema/parameters.js";
import { schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import {
  bindSimulated,
  type BlockDescription,
  type SimulatedBlock,
} from "../block/simulated-block.js";

/** `parameters`: one map per block; none for methods without parameters (plain rounding). */
export function simulatedModel(
  backend: Backend,
  source: Checkpoint,
  scheme: Scheme,
  parameters?: readonly ParameterValues[],
): LanguageModel {
  const { architecture, config } = parseSource(source);
  const layers = Array.from({ length: config.numLayers }, (_, layer) => {
    const host = readBlock(source, architecture, config, layer);
    const weights = uploadBlock(backend, host);
    const params = new Map<string, Tensor>();
    for (const [name, { shape, data }] of parameters?.[layer] ?? [])
      params.set(name, frozen(backend, shape, data));
    return {
      weights,
      hooks: simulatedHooks(
        { program: blockProgram(config, layer), scheme: schemeOfBlock(scheme, layer) },
        weights,
        params,
      ),
    };
  });
  return new LanguageModel(
    backend,
    architecture,
    config,
    loadEndLayers(
      backend,
      source,
      architecture,
      config,
      tableReader(source, architecture, config, scheme),
    ),
    layers,
  );
}

/** Hooks that bind the block's parameters afresh for every graph they meet. */
export function simulatedHooks(
  description: BlockDescription,
  weights: BlockWeights,
  params: ReadonlyMap<string, Tensor>,
): BlockHooks {
  const bound = new WeakMap<Graph, SimulatedBlock>();
  const on = (g: Graph): SimulatedBlock => {
    let block = bound.get(g);
    if (!block) bound.set(g, (block = bindSimulated(g, description, weights, params)));
    return block;
  };
  return {
    transform: (g, site, x) => on(g).transform(g, site, x),
    linears: (g, site, x, roles) => on(g).linears(g, site, x, roles),
    queries: (g, q, heads) => on(g).queries?.(g, q, heads) ?? q,
    keys: (g, k, heads) => on(g).keys?.(g, k, heads) ?? k,
    values: (g, v, heads) => on(g).values?.(g, v, heads) ?? v,
  };
}

export const PARAMETERS_FILE = "parameters.safetensors";

/** Writes every block's learned parameters beside an artifact, as `<layer>/<name>` in float32. */
export async function writeParameters(
  directory: string,
  parameters: readonly ParameterValues[],
): Promise<void> {
  const entries = parameters.flatMap((values, layer) =>
    [...values].map(([name, { shape, data }]) => ({
      name: `${layer}/${name}`,
      type: "F32" as const,
      shape,
      data: () => Float32Array.from(data),
    })),
  );
  await writeSafetensors(join(directory, PARAMETERS_FILE), entries);
}

/** @throws PlanishError when the artifact was made without `--keep-parameters`. */
export function readKeptParameters(directory: string): ParameterValues[] {
  const path = join(directory, PARAMETERS_FILE);
  if (!existsSync(path))
    throw new PlanishError(
      `${directory} holds no ${PARAMETERS_FILE}; quantize with --keep-parameters to simulate it`,
    );
  using store = openSafetensors(path).store;
  const blocks: Map<string, { shape: readonly number[]; data: Float32Array }>[] = [];
  for (const [key, { shape }] of store.tensors) {
    const slash = key.indexOf("/");
    const layer = Number(key.slice(0, slash));
    (blocks[layer] ??= new Map()).set(key.slice(slash + 1), { shape, data: store.read(key) });
  }
  return blocks;
}
