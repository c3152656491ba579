/** Rotary position embedding ("rotate half"). */
import type { Buffer } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

export interface RopeTables {
  /** Real [period, headDim/2]. */
  readonly cos: Buffer;
  readonly sin: Buffer;
  /** Row r of x is at position r mod period of the tables. */
  readonly period: number;
}

/** x: [rows, heads·headDim]. A rotation, so its gradient is the inverse rotation. */
export function rope(g: Graph, x: Tensor, headDim: number, tables: RopeTables): Tensor {
  const heads = x.cols / headDim;
  const shared = { rows: x.rows, heads, headDim, ...tables };
  const out = g.real(x.size);
  g.kernels.rope({ ...shared, x: g.values(x), inverse: false, out });
  return g.result(x.shape, out, [x], (grad) => {
    const gradX = g.real(x.size);
    g.kernels.rope({ ...shared, x: grad, inverse: true, out: gradX });
    g.accumulate(x, gradX);
  });
}
