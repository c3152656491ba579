/** A block of random weights for the benches of a training step. */
import type { BlockProgram } from "../src/backend/contract/program.js";
import { mapValues } from "../src/common/records.js";
import type { HostBlock } from "../src/models/weights.js";

/** Weights of deviation 1 / √columns from `noise`, gains of 1, no biases. */
export function randomBlock(
  { linears, norms }: BlockProgram,
  noise: (length: number, deviation: number) => Float32Array,
): HostBlock {
  return {
    norms: mapValues(norms, ({ path, width }) => ({
      path,
      gain: { shape: [width], data: new Float32Array(width).fill(1) },
    })),
    linears: mapValues(linears, ({ path, shape }) => ({
      path,
      weight: { shape, data: noise(shape[0] * shape[1], 1 / Math.sqrt(shape[1])) },
    })),
    kept: {},
  };
}
