/** What a checkpoint holds, from its configuration and file headers alone: no weight is read. */

import type { Checkpoint, StoredTensor } from "../checkpoint/checkpoint.js";
import { blockPrograms, parseModelConfig } from "./architectures/index.js";
import { expectedNames } from "./source.js";
import type { ModelConfig } from "./config.js";
import { sitesOf, type LinearSite } from "../backend/contract/program.js";

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
  /** How weights are stored that are quantized in the source. */
  readonly quantized?: Checkpoint["quantized"];
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
  const sites = describeSites(config);
  const types = byType(tensors, checkpoint.quantized);
  const linears = blockPrograms(config).flatMap((program) => Object.values(program.linears));
  return {
    path: checkpoint.path,
    format: checkpoint.format,
    quantized: checkpoint.quantized,
    config,
    parameters: sum(tensors.map(elements)),
    linearParameters: sum(linears.map(({ shape }) => shape[0] * shape[1])),
    bytes: sum(types.map(({ bytes }) => bytes)),
    sites,
    types,
    tensors,
    missing: required.filter((name) => !checkpoint.tensors.has(name)),
    unused: tensors.map(({ name }) => name).filter((name) => !known.has(name)),
  };
}

/** Of the first block that has each. */
function describeSites(config: ModelConfig): SiteDescription[] {
  const sites = new Map<string, SiteDescription>();
  for (const program of blockPrograms(config))
    for (const { site, width, linears } of sitesOf(program))
      if (!sites.has(site))
        sites.set(site, {
          site,
          channels: width,
          linears: linears.map((name) => program.linears[name]),
        });
  return [...sites.values()];
}

function elements({ shape }: StoredTensor): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** What is stored as codes and scales counts as one type, named after its format, with the bytes that it takes. */
function byType(
  tensors: readonly StoredTensor[],
  quantized: Checkpoint["quantized"],
): ModelDescription["types"] {
  const types = new Map<string, { type: string; tensors: number; bytes: number }>();
  const coded = new Set(quantized?.tensors);
  for (const { name, type, bytes } of tensors) {
    if (coded.has(name)) continue;
    const entry = types.get(type) ?? { type, tensors: 0, bytes: 0 };
    types.set(type, { type, tensors: entry.tensors + 1, bytes: entry.bytes + bytes });
  }
  if (quantized)
    types.set(quantized.method, {
      type: quantized.method,
      tensors: coded.size,
      bytes: quantized.bytes,
    });
  return [...types.values()].sort((a, b) => b.bytes - a.bytes);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
