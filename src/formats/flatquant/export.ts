/** An artifact in FlatQuant's published layout, as its own `save_quantized_weights_with_safetensors` writes it. */
import type { ClipLogits, PackedBlock } from "../../backend/contract/packed.js";
import { sitesOf, type SitePlace } from "../../backend/contract/program.js";
import type { TensorEntry } from "../../checkpoint/safetensors.js";
import { PlanishError } from "../../common/errors.js";
import type { OpenArtifact } from "../../quantize/artifact/artifact.js";
import { packCodes } from "../../quantize/artifact/packed-codes.js";
import { transformModule } from "../../quantize/artifact/tensors.js";
import { writeModelDirectory } from "../directory.js";
import type { ExportOptions, ExportResult } from "../export-options.js";
import {
  biasEntries,
  endEntries,
  halves,
  namedBlocks,
  normEntries,
  openForExport,
  type NamedBlock,
} from "../source.js";
import { factorSizes, FORMAT, LINEARS, NIBBLES, NO_CLIP, SETTINGS_FILE } from "./layout.js";

const TARGET = "flatquant";

/**
 * Writes an artifact with 4-bit weights in FlatQuant's layout.
 * @throws PlanishError naming what the layout or its loader cannot hold.
 */
export async function exportFlatQuant(
  path: string,
  { out, signal }: ExportOptions,
): Promise<ExportResult> {
  using artifact = openForExport(path, TARGET);
  const { scheme, checkpoint, config } = artifact;
  if (scheme.weightBits !== 4 || scheme.weightGroup || scheme.activationGroup)
    throw new PlanishError(
      `${path}: grids are those of ${artifact.info.scheme}, where ${TARGET} packs 4 bits with a scale for each row, beside activations by token; quantize to w4a4kv4 or the like`,
    );
  const blocks = namedBlocks(artifact);
  const tensors = [
    ...endEntries(artifact),
    ...blocks.flatMap((named) => blockEntries(path, artifact, named)),
  ];
  const settings = {
    w_bits: 4,
    model_name: artifact.info.source.name,
    symmetric: true,
    format: FORMAT,
    sharded: false,
  };
  const { bytes } = await writeModelDirectory({
    ...{ out, checkpoint, tensors, signal },
    config: checkpoint.config,
    files: { [SETTINGS_FILE]: settings },
  });
  const { activationBits: a, kvBits: kv } = scheme;
  const notes = [
    `the layout does not say widths of activations and cache: here ${a} and ${kv}; FlatQuant's kernels have 4 and 4`,
  ];
  if (config.numHeads * config.headDim !== config.hiddenSize)
    notes.push(
      "FlatQuant's loader takes the hidden width over the heads for their size, which differs here",
    );
  return { out, format: `${TARGET}, ${FORMAT}`, bytes, dropped: [], notes };
}

function blockEntries(path: string, artifact: OpenArtifact, named: NamedBlock): TensorEntry[] {
  const { program, prefix, block } = named;
  if (block.keyTransform?.balance)
    throw new PlanishError(
      `${path}: ${prefix}self_attn shifts and scales keys before their matrix, which the layout of ${TARGET} has no place for; export an artifact made with the recipe {"keyBalance": false}`,
    );
  const entries = normEntries(named);
  for (const [role, linear] of Object.entries(block.linears)) {
    const { path: name, shape, quantized, grid } = linear;
    if (!Object.hasOwn(LINEARS, name) || !quantized || grid)
      throw new PlanishError(
        `${path}: ${prefix}${name} ${quantized && !grid ? "has no name in" : "is on no grid of"} the layout of ${TARGET} (its linears are ${Object.keys(LINEARS).join(", ")}, each of 4 bits by row)`,
      );
    const [rows, columns] = shape;
    const module = `${prefix}${name}.linear`;
    const codes = () => {
      const { codes: now } = named.block.linears[role].quantized ?? quantized;
      return packCodes(now, rows, columns, NIBBLES);
    };
    entries.push(
      { name: `${module}.weight`, type: "U8", shape: [rows, columns / 2], data: codes },
      ...biasEntries(named, role).map((bias) => ({ ...bias, name: `${module}.bias` })),
      {
        name: `quantizer.${module}.scale`,
        type: "F32",
        shape: [rows, 1],
        data: () => named.block.linears[role].quantized?.scale ?? new Float32Array(rows),
      },
      {
        name: `quantizer.${module}.zero`,
        type: "F32",
        shape: [rows, 1],
        data: () => new Float32Array(rows),
      },
      {
        name: `quantizer.${module}.maxq`,
        type: "I64",
        shape: [],
        data: () => BigInt64Array.of(7n),
      },
      ...clipEntries(`${prefix}${name}.act_quantizer`, linear.activationClip),
    );
  }
  for (const place of sitesOf(program)) entries.push(...siteEntries(path, named, place));
  entries.push(...keyEntries(artifact, prefix, block));
  return entries;
}

function clipEntries(module: string, clip: ClipLogits | undefined): TensorEntry[] {
  return [
    halves(`${module}.clip_factor_a_max`, [1], () => [clip?.max ?? NO_CLIP]),
    halves(`${module}.clip_factor_a_min`, [1], () => [clip?.min ?? NO_CLIP]),
  ];
}

/** The transform of a site: its factors, or identities of the sizes that the loader expects. */
function siteEntries(path: string, named: NamedBlock, place: SitePlace): TensorEntry[] {
  const module = `${named.prefix}${transformModule(place.site)}`;
  const stored = named.block.transforms[place.site];
  const size = (side: Float32Array | undefined) => side && Math.sqrt(side.length);
  const square = (name: string, extent: number, side: "left" | "right") =>
    halves(
      `${module}.${name}`,
      [extent, extent],
      () => named.block.transforms[place.site]?.[side] ?? identity(extent),
    );
  if (place.attention) return [square("matrix", place.attention.heads, "left")];
  const [left, right] = factorSizes(place.width);
  if (stored && (size(stored.left) !== left || size(stored.right) !== right))
    throw new PlanishError(
      `${path}: the transform of ${module} is ${size(stored.left) ?? 1}×${size(stored.right) ?? 1}, where ${TARGET}'s loader expects ${left}×${right}; export an artifact made with that split, or with a method without it`,
    );
  return [square("matrix_left", left, "left"), square("matrix_right", right, "right")];
}

/** The transform of cached keys and its inverse for queries, and the clips of the cache. */
function keyEntries({ config }: OpenArtifact, prefix: string, block: PackedBlock): TensorEntry[] {
  const size = config.headDim;
  const matrix = (name: string, values: Float32Array | undefined) =>
    halves(`${prefix}self_attn.kcache_trans.${name}`, [size, size], () => values ?? identity(size));
  return [
    matrix("matrix", block.keyTransform?.matrix),
    matrix("matrix_inv_t", block.keyTransform?.inverseT),
    ...clipEntries(`${prefix}self_attn.k_cache_quantizer`, block.keyClip),
    ...clipEntries(`${prefix}self_attn.v_cache_quantizer`, block.valueClip),
  ];
}

function identity(size: number): Float32Array {
  return Float32Array.from({ length: size * size }, (_, i) => (i % (size + 1) === 0 ? 1 : 0));
}
