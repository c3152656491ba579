/** What a checkpoint holds, from its configuration and file headers alone: no weight is read. */

import { PlanishError } from "../common/errors.js";
import type { Checkpoint, StoredTensor } from "../checkpoint/checkpoint.js";
import { parseModelConfig } from "./architectures/index.js";
import {
  LINEAR_SITES,
  type Architecture,
  type LinearRole,
  type LinearSite,
  type ModelConfig,
} from "./config.js";
import { linearShape } from "./weights.js";

/** A place where one activation feeds linears, alike in every block. */
export interface SiteDescription {
  readonly site: LinearSite;
  /** Channels of the activation. */
  readonly channels: number;
  /** The linears it feeds: path inside the block, and [out, in]. */
  readonly linears: readonly { readonly path: string; readonly shape: readonly [number, number] }[];
}

export interface ModelDescription {
  readonly path: string;
  readonly format: Checkpoint["format"];
  readonly config: ModelConfig;
  /** Numbers in all tensors; a tied embedding counts once. */
  readonly parameters: number;
  /** Of these, weights of the blocks' linears: what is quantized. */
  readonly linearParameters: number;
  /** Bytes of all tensors as stored. */
  readonly bytes: number;
  readonly sites: readonly SiteDescription[];
  /** Tensors and bytes by stored type, largest first. */
  readonly types: readonly {
    readonly type: string;
    readonly tensors: number;
    readonly bytes: number;
  }[];
  readonly tensors: readonly StoredTensor[];
  /** Names that the architecture needs and the checkpoint lacks. */
  readonly missing: readonly string[];
  /** Names in the checkpoint that the architecture does not use. */
  readonly unused: readonly string[];
}

/**
 * Describes a checkpoint of an unquantized model.
 * @throws PlanishError when the architecture is not supported or `config.json` lacks a key.
 */
export function inspectModel(checkpoint: Checkpoint): ModelDescription {
  const { architecture, config } = parseModelConfig(checkpoint.config);
  const tensors = [...checkpoint.tensors.values()];
  const { required, optional } = expectedNames(architecture, config);
  const known = new Set([...required, ...optional]);
  const sites = describeSites(architecture, config);
  const perBlock = sites.flatMap(({ linears }) => linears.map(({ shape }) => shape[0] * shape[1]));
  return {
    path: checkpoint.path,
    format: checkpoint.format,
    config,
    parameters: sum(tensors.map(elements)),
    linearParameters: config.numLayers * sum(perBlock),
    bytes: sum(tensors.map(({ bytes }) => bytes)),
    sites,
    types: byType(tensors),
    tensors,
    missing: required.filter((name) => !checkpoint.tensors.has(name)),
    unused: tensors.map(({ name }) => name).filter((name) => !known.has(name)),
  };
}

function describeSites(architecture: Architecture, config: ModelConfig): SiteDescription[] {
  const paths = architecture.names.linears;
  return (Object.entries(LINEAR_SITES) as [LinearSite, readonly LinearRole[]][]).map(
    ([site, roles]) => {
      const linears = roles.flatMap((role) => {
        const path = paths[role];
        return path === undefined ? [] : [{ path, shape: linearShape(config, role) }];
      });
      if (linears.length === 0) {
        throw new PlanishError(`architecture ${architecture.name} names no linear at site ${site}`);
      }
      return { site, channels: linears[0].shape[1], linears };
    },
  );
}

/** Every tensor name the loader may ask for. */
function expectedNames(
  { names }: Architecture,
  config: ModelConfig,
): { required: string[]; optional: string[] } {
  const required = [names.embedding];
  if (config.finalNorm !== false) required.push(names.finalNorm);
  if (config.embeddingSize !== undefined && names.projectIn && names.projectOut)
    required.push(names.projectIn, names.projectOut);
  // Without a head of its own a model uses its embedding.
  const optional = [names.lmHead];
  if (config.finalNorm !== false) optional.push(biasOf(names.finalNorm));
  if (config.positions.kind === "learned" && names.positions) required.push(names.positions);
  const modules = [...Object.values(names.linears), ...Object.values(names.norms)];
  for (let layer = 0; layer < config.numLayers; layer++) {
    for (const path of modules) {
      const weight = `${names.blockPrefix(layer)}${path}.weight`;
      required.push(weight);
      optional.push(biasOf(weight));
    }
  }
  return { required, optional };
}

function biasOf(weight: string): string {
  return weight.replace(/\.weight$/, ".bias");
}

function elements({ shape }: StoredTensor): number {
  return shape.reduce((product, size) => product * size, 1);
}

function byType(tensors: readonly StoredTensor[]): ModelDescription["types"] {
  const types = new Map<string, { type: string; tensors: number; bytes: number }>();
  for (const { type, bytes } of tensors) {
    const entry = types.get(type) ?? { type, tensors: 0, bytes: 0 };
    types.set(type, { type, tensors: entry.tensors + 1, bytes: entry.bytes + bytes });
  }
  return [...types.values()].sort((a, b) => b.bytes - a.bytes);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
