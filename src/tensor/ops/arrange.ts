/** Heads made of parts, or of some of their channels: products with matrices of zeros and ones, which are exact. */
import { matmul } from "./matmul.js";
import { add, reshape } from "./elementwise.js";
import type { Graph, Tensor } from "../tensor.js";

export interface ArrangedPart {
  /** [rows, heads·dim]. */
  readonly x: Tensor;
  /** As many as come out, or one for all of them. */
  readonly heads: number;
  readonly dim: number;
}

/**
 * Channel c of every head is channel order[c] of what lies side by side in the parts; below zero: 0.
 * Returns [rows, heads·headDim].
 */
export function arrange(
  g: Graph,
  parts: readonly ArrangedPart[],
  {
    heads,
    headDim,
    order,
  }: { readonly heads: number; readonly headDim: number; readonly order: readonly number[] },
): Tensor {
  let before = 0;
  const placed = parts.map(({ x, heads: own, dim }) => {
    const { rows } = x;
    const copies = own === heads ? 1 : heads;
    const matrix = new Float64Array(copies * headDim * dim);
    for (let copy = 0; copy < copies; copy++)
      order.forEach((from, c) => {
        const channel = from - before;
        if (channel >= 0 && channel < dim) matrix[(copy * headDim + c) * dim + channel] = 1;
      });
    before += dim;
    const lines = reshape(g, x, [rows * own, dim]);
    const chosen = matmul(g, lines, g.constant([copies * headDim, dim], matrix), {
      transposeB: true,
    });
    return reshape(g, chosen, [rows, heads * headDim]);
  });
  return placed.reduce((sum, part) => add(g, sum, part));
}
