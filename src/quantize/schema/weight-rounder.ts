/** What folding a block asks of whoever rounds its weights. */
import type { RealArray } from "../../backend/contract/buffer.js";
import type { LinearName } from "../../backend/contract/program.js";
import type { GridSteps } from "../grids/groups.js";

/** Chooses the codes of one linear's weight, [rows, cols], as it is folded and clipped, on the grid with these steps. */
export type WeightRounder = (
  role: LinearName,
  weight: RealArray,
  shape: readonly number[],
  steps: GridSteps,
) => Int8Array;
