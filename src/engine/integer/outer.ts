/** What surrounds the blocks: embedding and head in 16 bits, in one copy where they are tied; positions; final norm. */
import type { RealArray } from "../../backend/backend.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { readTensor } from "../../models/weights.js";
import type { EngineMemory } from "./memory.js";
import type { MatrixPacker, PackedMatrix } from "./packed-matrix.js";

export interface PlacedOuter {
  /** [vocab, embedding]. */
  readonly embedding: PackedMatrix;
  readonly head: PackedMatrix;
  /** [hidden, embedding] and back, where the embedding has a width of its own. */
  readonly projectIn?: PackedMatrix;
  readonly projectOut?: PackedMatrix;
  /** Learned positions, f32 [rows, hidden]. */
  readonly positions?: { readonly address: bigint; readonly rows: number };
  readonly finalNorm?: { readonly gain: bigint; readonly bias: bigint };
}

/** As f32, without a copy of what is f32 already: an embedding is a model's largest matrix. */
export function singles(values: RealArray): Float32Array {
  return values instanceof Float32Array ? values : Float32Array.from(values);
}

export function placeOuter(
  memory: EngineMemory,
  packer: MatrixPacker,
  checkpoint: Checkpoint,
  { names }: Architecture,
  config: ModelConfig,
): PlacedOuter {
  const { hiddenSize, embeddingSize, vocabSize } = config;
  const width = embeddingSize ?? hiddenSize;
  // Products with f32 activations: what the checkpoint stores in 16 bits is exact.
  const matrix = (name: string, shape: readonly [number, number]): PackedMatrix => {
    const kind = checkpoint.tensors.get(name)?.type === "BF16" ? "bf16F32" : "halfF32";
    return packer.packed(kind, shape, {
      values: singles(readTensor(checkpoint, name, shape).data),
    });
  };
  const projection = (name: string | undefined, shape: readonly [number, number]) =>
    embeddingSize === undefined || name === undefined ? undefined : matrix(name, shape);
  const floats = (name: string, shape: readonly number[]): bigint =>
    memory.floats(readTensor(checkpoint, name, shape).data).address;

  const embedding = matrix(names.embedding, [vocabSize, width]);
  const tied = config.tiedEmbeddings || !checkpoint.tensors.has(names.lmHead);
  const finalBias = names.finalNorm.replace(/\.weight$/, ".bias");
  const learned =
    config.positions.kind === "learned" ? config.maxPositions + config.positions.offset : 0;
  return {
    embedding,
    head: tied ? embedding : matrix(names.lmHead, [vocabSize, width]),
    projectIn: projection(names.projectIn, [hiddenSize, width]),
    projectOut: projection(names.projectOut, [width, hiddenSize]),
    positions:
      learned > 0 && names.positions !== undefined
        ? { address: floats(names.positions, [learned, hiddenSize]), rows: learned }
        : undefined,
    finalNorm:
      config.finalNorm === false
        ? undefined
        : {
            gain: floats(names.finalNorm, [hiddenSize]),
            bias: checkpoint.tensors.has(finalBias) ? floats(finalBias, [hiddenSize]) : 0n,
          },
  };
}
