/** Reference table lookup. */

import type { GatherRowsArgs } from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { asHostBuffer } from "../../contract/host-memory.js";
import { indices, reals } from "./views.js";

/** out[r,:] = table[ids[r],:]. Throws PlanishError when an id is not a row of the table. */
export function gatherRows(args: GatherRowsArgs): void {
  const { rows, cols } = args;
  const ids = indices(args.ids, rows, "gatherRows ids");
  const tableRows = Math.floor(asHostBuffer(args.table).length / cols);
  const table = reals(args.table, 0, "gatherRows table");
  const out = reals(args.out, rows * cols, "gatherRows out");
  for (let r = 0; r < rows; r++) {
    if (ids[r] < 0 || ids[r] >= tableRows) {
      throw new PlanishError(
        `gatherRows: id ${ids[r]} of row ${r} is not in the table; give 0 … ${tableRows - 1}`,
      );
    }
    out.set(table.subarray(ids[r] * cols, (ids[r] + 1) * cols), r * cols);
  }
}
