/**
 * An artifact as compressed-tensors, the layout that vLLM and transformers load: integer weights with a scale for each
 * row or group, dynamic symmetric activations by token or group, run-time transforms in `transform_config`.
 */
import type { PackedBlock, PackedLinear, QuantizedMatrix } from "../../backend/contract/packed.js";
import type { LinearName } from "../../backend/contract/program.js";
import type { TensorEntry } from "../../checkpoint/safetensors.js";
import { PlanishError } from "../../common/errors.js";
import { mapValues } from "../../common/records.js";
import type { OpenArtifact } from "../../quantize/artifact/artifact.js";
import { writeModelDirectory } from "../directory.js";
import type { ExportOptions, ExportResult } from "../export-options.js";
import {
  biasEntries,
  checkDropped,
  endEntries,
  halves,
  namedBlocks,
  normEntries,
  openForExport,
  type Droppable,
  type NamedBlock,
} from "../source.js";
import { packWords } from "./pack.js";
import { transformGroups } from "./transforms.js";

const TARGET = "compressed-tensors";

/** The version of the package that the layout was held against. */
const VERSION = "0.20.1";

/**
 * Writes an artifact as a compressed-tensors directory.
 * @throws PlanishError, or UsageError where --drop would do, naming what the layout cannot hold.
 */
export async function exportCompressedTensors(
  path: string,
  { out, drop = [], signal }: ExportOptions,
): Promise<ExportResult> {
  using artifact = openForExport(path, TARGET);
  const blocks = namedBlocks(artifact);
  refuseOffsets(path, artifact);
  for (const block of blocks) refuseStatic(path, block);
  const lost = lostParts(artifact, blocks);
  checkDropped(TARGET, lost, drop);
  const transforms = blocks.flatMap(transformGroups);
  const tensors: TensorEntry[] = [
    ...endEntries(artifact),
    ...blocks.flatMap((named) => [
      ...normEntries(named),
      ...Object.keys(named.block.linears).flatMap((role) => linearEntries(artifact, named, role)),
    ]),
    ...transforms.flatMap((group) => group.tensors),
  ];
  const quantization = {
    quant_method: TARGET,
    format: formatOf(artifact),
    quantization_status: "compressed",
    global_compression_ratio: null,
    config_groups: configGroups(artifact, blocks),
    ignore: ignoredModules(artifact, blocks),
    kv_cache_scheme: null,
    sparsity_config: {},
    transform_config:
      transforms.length === 0
        ? {}
        : { config_groups: Object.fromEntries(transforms.map((g) => [g.name, g.scheme])) },
    version: VERSION,
  };
  const { checkpoint } = artifact;
  const config = { ...checkpoint.config, quantization_config: quantization };
  const { bytes } = await writeModelDirectory({ out, checkpoint, config, tensors, signal });
  return {
    out,
    format: `${TARGET}, ${quantization.format}`,
    bytes,
    dropped: Object.values(lost),
    notes: notesOf(
      artifact,
      blocks,
      transforms.reduce((sum, g) => sum + g.operations, 0),
    ),
  };
}

/** Static grids and split channels have no counterpart. */
function refuseStatic(path: string, { layer, block }: NamedBlock): void {
  const bound = Object.values(block.linears).find(({ grid }) => grid !== undefined);
  if (bound)
    throw new PlanishError(
      `${path}: block ${layer} has a static grid with split channels at ${bound.path} (flattenquant), which ${TARGET} cannot say; export an artifact of another method`,
    );
  const offset = Object.values(block.linears).find(({ quantized }) => quantized?.offset);
  if (offset)
    throw new PlanishError(
      `${path}: block ${layer} has groups with 16-bit offsets at ${offset.path}, where ${TARGET} has integer zero points; quantize to a scheme without "o"`,
    );
}

/** Activations with 16-bit offsets: what is dynamic has integer zero points there. */
function refuseOffsets(path: string, { scheme }: OpenArtifact): void {
  if (scheme.activationOffset)
    throw new PlanishError(
      `${path}: activations have 16-bit offsets, where ${TARGET} has integer zero points; quantize to a scheme without "o"`,
    );
}

function lostParts(
  { scheme }: OpenArtifact,
  blocks: readonly NamedBlock[],
): Partial<Record<Droppable, string>> {
  const clipped = blocks.some(({ block }) =>
    Object.values(block.linears).some(({ activationClip }) => activationClip !== undefined),
  );
  return {
    ...(clipped && scheme.activationBits < 16
      ? { clips: "learned clipping of activations (it takes each token's whole range)" }
      : {}),
    ...(scheme.kvBits < 16 ? { cache: `a cache of ${scheme.kvBits} bits and its transform` } : {}),
  };
}

/** Whether codes are packed: alone or beside activations of other widths; vLLM wants 8 bits beside 8 bits plain. */
function formatOf({ scheme }: OpenArtifact): "pack-quantized" | "int-quantized" {
  return scheme.weightBits === 8 && scheme.activationBits === 8 && !scheme.weightGroup
    ? "int-quantized"
    : "pack-quantized";
}

const bitsOf = ({ quantized }: PackedLinear, { scheme }: OpenArtifact): number =>
  quantized?.bits ?? scheme.weightBits;

function linearEntries(artifact: OpenArtifact, named: NamedBlock, role: LinearName): TensorEntry[] {
  const linear = named.block.linears[role];
  const { path, shape, quantized } = linear;
  const module = named.prefix + path;
  const bias = biasEntries(named, role);
  if (!quantized)
    return [
      halves(`${module}.weight`, shape, () => named.block.linears[role].weight ?? []),
      ...bias,
    ];
  const [rows, columns] = shape;
  const { group } = quantized;
  const stored = (): QuantizedMatrix => {
    const { quantized: now } = named.block.linears[role];
    if (!now) throw new PlanishError(`${module} changed while it was exported`);
    return now;
  };
  const scale: TensorEntry = {
    name: `${module}.weight_scale`,
    type: "F32",
    shape: [rows, group === undefined ? 1 : columns / group],
    data: () => stored().scale,
  };
  if (formatOf(artifact) === "int-quantized")
    return [
      { name: `${module}.weight`, type: "I8", shape, data: () => stored().codes },
      scale,
      ...bias,
    ];
  const bits = bitsOf(linear, artifact);
  return [
    {
      name: `${module}.weight_packed`,
      type: "I32",
      shape: [rows, Math.ceil((columns * bits) / 32)],
      data: () => packWords(stored().codes, rows, columns, bits),
    },
    {
      name: `${module}.weight_shape`,
      type: "I64",
      shape: [2],
      data: () => BigInt64Array.from(shape, BigInt),
    },
    scale,
    ...bias,
  ];
}

/** One group for each kind of grid; the commonest is for every linear that no other group names. */
function configGroups(
  artifact: OpenArtifact,
  blocks: readonly NamedBlock[],
): Record<string, unknown> {
  const { scheme } = artifact;
  const kinds = new Map<string, { bits: number; group?: number; modules: string[] }>();
  for (const { prefix, block } of blocks)
    for (const linear of Object.values(block.linears)) {
      if (!linear.quantized) continue;
      const bits = bitsOf(linear, artifact);
      const { group } = linear.quantized;
      const key = `${bits} ${group ?? ""}`;
      const kind = kinds.get(key) ?? { bits, group, modules: [] };
      kind.modules.push(prefix + linear.path);
      kinds.set(key, kind);
    }
  if (kinds.size === 0)
    throw new PlanishError(
      `no weight has fewer than 16 bits: there is nothing to export to ${TARGET}`,
    );
  const ordered = [...kinds.values()].sort((a, b) => b.modules.length - a.modules.length);
  const grid = (bits: number, spans: Readonly<Record<string, unknown>>) => ({
    num_bits: bits,
    type: "int",
    symmetric: true,
    group_size: null,
    ...spans,
  });
  const { activationBits, activationGroup } = scheme;
  const inputs =
    activationBits === 16
      ? null
      : grid(activationBits, {
          dynamic: true,
          ...(activationGroup
            ? { strategy: "group", group_size: activationGroup }
            : { strategy: "token" }),
        });
  return Object.fromEntries(
    ordered.map(({ bits, group, modules }, i) => [
      `group_${i}`,
      {
        targets: i === 0 ? ["Linear"] : modules,
        weights: grid(bits, {
          dynamic: false,
          ...(group ? { strategy: "group", group_size: group } : { strategy: "channel" }),
        }),
        input_activations: inputs,
        output_activations: null,
        format: formatOf(artifact),
      },
    ]),
  );
}

function ignoredModules({ architecture }: OpenArtifact, blocks: readonly NamedBlock[]): string[] {
  const whole = blocks.flatMap(({ prefix, block }) =>
    Object.values(block.linears).flatMap(({ path, quantized }) =>
      quantized ? [] : [prefix + path],
    ),
  );
  const { lmHead, projectIn, projectOut } = architecture.names;
  const outer = [lmHead, projectIn, projectOut].filter((name) => name !== undefined);
  return [...outer.map((name) => name.replace(/\.weight$/, "")), ...whole];
}

function notesOf(
  { scheme, config }: OpenArtifact,
  blocks: readonly NamedBlock[],
  operations: number,
): string[] {
  const notes: string[] = [];
  if (operations > 0) {
    const own = config.numLayers * linearSize(blocks[0].block);
    const share = ((100 * operations) / own).toFixed(0);
    notes.push(
      `transforms are stored as dense matrices and multiply each token's activations: ${share}% beside the blocks' own linears`,
    );
    if (blocks.some(({ block }) => Object.values(block.linears).some(({ bias }) => bias)))
      notes.push(
        "vLLM refuses linears that have both a bias and a transform; transformers takes them",
      );
  }
  if (scheme.activationBits < 16)
    notes.push(
      `activations: compressed-tensors divides by the largest magnitude over ${gridReach(scheme.activationBits)}, planish by it over ${2 ** (scheme.activationBits - 1) - 1}`,
    );
  return notes;
}

function linearSize({ linears }: PackedBlock): number {
  return Object.values(linears).reduce((sum, { shape }) => sum + shape[0] * shape[1], 0);
}

/** What compressed-tensors divides the largest magnitude by: half of its grid's whole range. */
function gridReach(bits: number): number {
  return (2 ** bits - 1) / 2;
}

/**
 * A block as programs compute that load the exported form: activations take each token's whole range over the steps of
 * compressed-tensors, and the cache stays in 16 bits. A step of `max/reach` is one of ours with the range clipped to
 * `(2^(b−1) − 1)/reach` of it.
 */
export function asCompressedTensors(block: PackedBlock, activationBits: number): PackedBlock {
  const ratio = (2 ** (activationBits - 1) - 1) / gridReach(activationBits);
  const logit = Math.log(ratio / (1 - ratio));
  const activationClip = activationBits < 16 ? { max: logit, min: logit } : undefined;
  return {
    norms: block.norms,
    linears: mapValues(block.linears, (linear) => ({ ...linear, activationClip })),
    kept: block.kept,
    transforms: block.transforms,
  };
}
