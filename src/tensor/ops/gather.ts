/** Rows of a table (embeddings). Tables are frozen: no gradient by design. */
import { PlanishError } from "../../common/errors.js";
import type { Buffer } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

/** ids: i32 [rows]; out: [rows, cols]. */
export function gatherRows(g: Graph, table: Tensor, ids: Buffer): Tensor {
  if (table.requiresGrad)
    throw new PlanishError("[gatherRows] has no gradient; the table must be frozen");
  const rows = ids.length;
  const out = g.real(rows * table.cols);
  g.kernels.gatherRows({ table: g.values(table), cols: table.cols, ids, rows, out });
  return g.result([rows, table.cols], out, [], () => undefined);
}
