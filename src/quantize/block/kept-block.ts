/** A block whose weights stay on the source's own grids, with the rotations that its cache gains by. */
import type { KeyBalance, PackedBlock } from "../../backend/contract/packed.js";
import { cacheOf } from "../../backend/contract/program.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import { floatToHalfBits } from "../../common/half.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { readKeptBlock } from "../../models/kept.js";
import { powerOfTwoPart, sylvesterHadamard } from "../transforms/hadamard.js";
import { invertMatrix } from "../transforms/matrix.js";

/** A cache of at most so many bits gains by turned keys. */
export const TURNED_BITS = 4;

/**
 * The Hadamard matrix that turns keys and queries, [headDim, headDim]: scores stay what they are, and a channel that is
 * large in every key is spread over all. Undefined where the cache gains nothing, or there is no such matrix.
 */
export function keyTurn(headDim: number, kvBits: number): Float32Array | undefined {
  return kvBits > TURNED_BITS || powerOfTwoPart(headDim) !== headDim
    ? undefined
    : storedHadamard(headDim);
}

/**
 * A block as the source has it, ready to run; keys are balanced where it is said how. `checkpoint` and `config`: of a source that `keptScheme` can keep.
 * @throws PlanishError when a tensor is missing or damaged.
 */
export function keptBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  { kvBits }: Scheme,
  layer: number,
  balance?: KeyBalance,
): PackedBlock {
  const block = readKeptBlock(checkpoint, architecture, config, layer);
  const headDim = cacheOf(blockProgram(config, layer))?.headDim;
  const matrix = headDim === undefined ? undefined : keyTurn(headDim, kvBits);
  if (!matrix) return block;
  const inverseT = Float32Array.from(invertMatrix(matrix, { transpose: true }));
  return { ...block, keyTransform: { matrix, inverseT, balance } };
}

/** With entries as artifacts hold them, in 16 bits, so that both ways to the engine have the same numbers. */
function storedHadamard(size: number): Float32Array {
  const entry = halfFloats()[floatToHalfBits(1 / Math.sqrt(size))];
  return Float32Array.from(sylvesterHadamard(size), (sign) => sign * entry);
}
