/** What folding a block asks of whoever rounds its weights. */
import type { RealArray } from "../../backend/contract/buffer.js";
import type { LinearName } from "../../backend/contract/program.js";

/** Scales (and offsets) of a weight, [rows, columns / group] row-major. */
export interface GridSteps {
  readonly bits: number;
  readonly group?: number;
  readonly scale: Float32Array;
  readonly offset?: Float32Array;
}

/** Chooses the codes of one linear's weight, [rows, cols], as it is folded and clipped, on the grid with these steps. */
export type WeightRounder = (
  role: LinearName,
  weight: RealArray,
  shape: readonly number[],
  steps: GridSteps,
) => Int8Array;
