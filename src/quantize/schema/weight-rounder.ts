/** What folding a block asks of whoever rounds its weights. */
import type { RealArray } from "../../backend/contract/buffer.js";
import type { LinearName } from "../../backend/contract/program.js";

/**
 * Chooses the codes of one linear's weight, [rows, cols], as it is folded and clipped, on the grid with this scale per row.
 */
export type WeightRounder = (
  role: LinearName,
  weight: RealArray,
  shape: readonly number[],
  scale: RealArray,
  bits: number,
) => Int8Array;
