/** What an export is made from: an artifact, opened with everything that its tensors need to get other names. */
import type { HostNorm, PackedBlock } from "../backend/contract/packed.js";
import type {
  BlockProgram,
  LinearName,
  LinearPlace,
  NormPlace,
} from "../backend/contract/program.js";
import type { TensorEntry } from "../checkpoint/safetensors.js";
import { floatsToHalfBytes } from "../common/half.js";
import { PlanishError, UsageError } from "../common/errors.js";
import { blockProgram } from "../models/architectures/index.js";
import { openArtifact, type OpenArtifact } from "../quantize/artifact/artifact.js";
import { endLayerTensors } from "../quantize/artifact/tensors.js";

/** Parts of an artifact that a layout may have no place for, and that a model can be used without. */
export const DROPPABLE = ["clips", "cache"] as const;
export type Droppable = (typeof DROPPABLE)[number];

/**
 * A block with the names that its architecture gives it. Its tensors are read when `block` is asked for, and kept until
 * another block of the artifact is: whoever writes asks again when it is a tensor's turn, and holds nothing.
 */
export interface NamedBlock {
  readonly layer: number;
  readonly prefix: string;
  readonly program: BlockProgram;
  readonly block: PackedBlock;
}

/**
 * Opens an artifact to export it; the caller disposes it.
 * @param can whether the target holds embedding and head of fewer than 16 bits
 * @throws PlanishError when its architecture keeps linears in other tensors than the artifact does.
 */
export function openForExport(
  path: string,
  target: string,
  can: { readonly tables?: boolean } = {},
): OpenArtifact {
  const artifact = openArtifact(path);
  try {
    const { architecture, config, scheme } = artifact;
    for (let layer = 0; layer < config.numLayers; layer++) {
      const { linears, norms, kept } = blockProgram(config, layer);
      const [tensor] = Object.values(kept);
      if (tensor)
        throw new PlanishError(
          `${path}: block ${layer} of ${architecture.name} has ${tensor.path} beside its linears (experts, or heads of their own kind); export to ${target} writes dense blocks only`,
        );
      const other = [...Object.values(linears), ...Object.values(norms)].find(isStoredOtherwise);
      if (other)
        throw new PlanishError(
          `${path}: ${architecture.name} keeps ${other.path} in a tensor with others, or scaled, in its own form; export to ${target} writes architectures whose linears are stored one by one, such as llama, mistral, qwen2 and qwen3`,
        );
    }
    if (scheme.blocks ?? scheme.tables)
      throw new PlanishError(
        `${path}: single linears have grids of their own (planish inspect shows them), and export to ${target} writes one grid for all; export an artifact of another method`,
      );
    if (scheme.tableBits !== undefined && !can.tables)
      throw new PlanishError(
        `${path}: embedding and head have ${scheme.tableBits} bits, which ${target} has no place for; quantize again without "h${scheme.tableBits}"`,
      );
    return artifact;
  } catch (error) {
    artifact[Symbol.dispose]();
    throw error;
  }
}

function isStoredOtherwise(place: LinearPlace | NormPlace): boolean {
  return place.stored !== undefined || ("factor" in place && (place.factor ?? 1) !== 1);
}

export function namedBlocks(artifact: OpenArtifact): NamedBlock[] {
  const { architecture, config } = artifact;
  let last: { layer: number; block: PackedBlock } | undefined;
  return Array.from({ length: config.numLayers }, (_, layer) => ({
    layer,
    prefix: architecture.names.blockPrefix(layer),
    program: blockProgram(config, layer),
    get block() {
      if (last?.layer !== layer) last = { layer, block: artifact.block(layer) };
      return last.block;
    },
  }));
}

/**
 * Refuses what a layout cannot hold, unless `drop` says that it may be left out.
 * @throws UsageError naming each part, and how to leave it out.
 */
export function checkDropped(
  target: string,
  lost: Readonly<Partial<Record<Droppable, string>>>,
  drop: readonly Droppable[],
): void {
  const kept = DROPPABLE.filter((part) => lost[part] !== undefined && !drop.includes(part));
  if (kept.length === 0) return;
  throw new UsageError(
    `${target} has no place for ${kept.map((part) => lost[part]).join(", nor for ")}; to leave out what it cannot hold, give --drop ${kept.join(",")}`,
  );
}

/** A tensor as halves. */
export function halves(
  name: string,
  shape: readonly number[],
  values: () => ArrayLike<number>,
): TensorEntry {
  return { name, type: "F16", shape, data: () => floatsToHalfBytes(values(), name) };
}

/** A block's norms as the architecture stores them, its offset taken off again. */
export function normEntries(named: NamedBlock): TensorEntry[] {
  const { prefix, program } = named;
  return Object.entries(named.block.norms).flatMap(([role, { path, gain, bias }]) => {
    const offset = program.norms[role].offset ?? 0;
    const norm = (): HostNorm => named.block.norms[role];
    const stored = (): Float32Array => Float32Array.from(norm().gain.data, (w) => w - offset);
    return [
      halves(`${prefix}${path}.weight`, gain.shape, stored),
      ...(bias ? [halves(`${prefix}${path}.bias`, bias.shape, () => norm().bias?.data ?? [])] : []),
    ];
  });
}

/** A linear's bias, where it has one. */
export function biasEntries(named: NamedBlock, role: LinearName): TensorEntry[] {
  const { path, shape, bias } = named.block.linears[role];
  const values = (): ArrayLike<number> => named.block.linears[role].bias ?? [];
  return bias ? [halves(`${named.prefix}${path}.bias`, [shape[0]], values)] : [];
}

/** What surrounds the blocks, as the artifact stores it. */
export function endEntries({ architecture, config, checkpoint }: OpenArtifact): TensorEntry[] {
  return endLayerTensors(architecture, config).flatMap(({ name }): TensorEntry[] => {
    const stored = checkpoint.tensors.get(name);
    if (!stored) return [];
    return [
      {
        name,
        type: stored.type as TensorEntry["type"],
        shape: stored.shape,
        data: () => checkpoint.readBytes(name),
      },
    ];
  });
}
