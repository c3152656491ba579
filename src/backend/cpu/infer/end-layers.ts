/** What surrounds the blocks: embedding and head in 16 bits, in one copy where they are tied; positions; final norm. */
import type { EndLayerSource, StoredMatrix } from "../../contract/inference.js";
import type { EngineMemory } from "./memory.js";
import type { MatrixPacker, PackedMatrix } from "./packed-matrix.js";

export interface PlacedEndLayers {
  /** [vocab, embedding]. */
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
): PlacedEndLayers {
  // Products with f32 activations: what the checkpoint stores in 16 bits is exact.
  const matrix = (stored: StoredMatrix): PackedMatrix => {
    const kind = stored.type === "BF16" ? "bf16F32" : "halfF32";
    return packer.packed(kind, stored.shape, { values: stored.values() });
  };
  const { positions, finalNorm, embeddingScale, logitSoftcap } = endLayers;
  const embedding = matrix(endLayers.embedding);
  return {
    embedding,
    head: endLayers.head ? matrix(endLayers.head) : embedding,
    projectIn: endLayers.projectIn && matrix(endLayers.projectIn),
    projectOut: endLayers.projectOut && matrix(endLayers.projectOut),
    positions: positions && {
      address: memory.floats(positions.data).address,
      rows: positions.rows,
      offset: positions.offset,
    },
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
