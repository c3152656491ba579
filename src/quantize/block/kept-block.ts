/** A block whose weights stay on the source's own grids, with the rotations that its cache gains by. */
import type { PackedBlock } from "../../backend/contract/packed.js";
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

/** A cache of at most so many bits gains by rotations. */
const ROTATED_BITS = 4;

/**
 * A block as the source has it, ready to run. `checkpoint` and `config`: of a source that `keptScheme` can keep.
 * @throws PlanishError when a tensor is missing or damaged.
 */
export function keptBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  { kvBits }: Scheme,
  layer: number,
): PackedBlock {
  const block = readKeptBlock(checkpoint, architecture, config, layer);
  const headDim = cacheOf(blockProgram(config, layer))?.headDim;
  if (headDim === undefined || kvBits > ROTATED_BITS || powerOfTwoPart(headDim) !== headDim)
    return block;
  // Keys and queries are turned by one Hadamard matrix: scores stay what they are, and a channel that is large in every
  // key is spread over all.
  const matrix = storedHadamard(headDim);
  const inverseT = Float32Array.from(invertMatrix(matrix, { transpose: true }));
  return { ...block, keyTransform: { matrix, inverseT } };
}

/** With entries as artifacts hold them, in 16 bits, so that both ways to the engine have the same numbers. */
function storedHadamard(size: number): Float32Array {
  const entry = halfFloats()[floatToHalfBits(1 / Math.sqrt(size))];
  return Float32Array.from(sylvesterHadamard(size), (sign) => sign * entry);
}
