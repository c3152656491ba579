/**
 * What surrounds the blocks: embedding and head in 16 bits or as codes with a scale per group, in one copy where they are
 * tied; positions; final norm.
 */
import type { EndLayerSource, StoredMatrix } from "../../contract/inference.js";
import { DEFAULT_TABLE_GROUP } from "../../contract/scheme.js";
import type { EngineMemory } from "./memory.js";
import type { MatrixPacker, PackedMatrix } from "./packed-matrix.js";

export interface PlacedEndLayers {
  /** [vocab, embedding]; with groups: the product is one of 8-bit codes. */
  readonly embedding: PackedMatrix;
  readonly head: PackedMatrix;
  /** [hidden, embedding] and back, where the embedding has a width of its own. */
  readonly projectIn?: PackedMatrix;
  readonly projectOut?: PackedMatrix;
  /** Learned positions, f32 [rows, hidden]: position p is row p + offset. */
  readonly positions?: {
    readonly address: bigint;
    readonly rows: number;
    readonly offset: number;
  };
  /** A second table of embeddings, and what multiplies its rows. */
  readonly side?: { readonly table: PackedMatrix; readonly scale: number };
  readonly finalNorm?: {
    readonly kind: "rms" | "layer";
    readonly epsilon: number;
    readonly gain: bigint;
    readonly bias: bigint;
  };
  readonly embeddingScale?: number;
  readonly logitSoftcap?: number;
}

export function placeEndLayers(
  memory: EngineMemory,
  packer: MatrixPacker,
  endLayers: EndLayerSource,
  /** Of tables that do not say their own. */
  tableBits = 8,
): PlacedEndLayers {
  // Products with f32 activations: what the checkpoint stores in 16 bits is exact.
  const matrix = (stored: StoredMatrix): PackedMatrix => {
    const kind = stored.type === "BF16" ? "bf16F32" : "halfF32";
    return packer.packed(kind, stored.shape, { values: stored.values() });
  };
  const table = (what: string, stored: StoredMatrix): PackedMatrix => {
    const quantized = stored.quantized?.();
    if (!quantized) return matrix(stored);
    // The head's rows of activations have a scale for as many channels: one for all would cost more than the codes do.
    const group = quantized.group ?? DEFAULT_TABLE_GROUP;
    return packer.grouped(what, stored.shape, quantized, quantized.bits ?? tableBits, group);
  };
  const { positions, side, finalNorm, embeddingScale, logitSoftcap } = endLayers;
  const embedding = table("the embedding", endLayers.embedding);
  return {
    embedding,
    head: endLayers.head ? table("the head", endLayers.head) : embedding,
    projectIn: endLayers.projectIn && matrix(endLayers.projectIn),
    projectOut: endLayers.projectOut && matrix(endLayers.projectOut),
    positions: positions && {
      address: memory.floats(positions.data).address,
      rows: positions.rows,
      offset: positions.offset,
    },
    side: side && { table: matrix(side.table), scale: side.scale },
    finalNorm: finalNorm && {
      kind: finalNorm.kind,
      epsilon: finalNorm.epsilon,
      gain: memory.floats(finalNorm.gain.data).address,
      bias: finalNorm.bias ? memory.floats(finalNorm.bias.data).address : 0n,
    },
    embeddingScale,
    logitSoftcap,
  };
}
