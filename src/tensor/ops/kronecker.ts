/** The Kronecker transform: per row, leftᵀ·(x ⊙ diag)·right, that is (x ⊙ diag)(left ⊗ right). */
import { PlanishError } from "../../common/errors.js";
import type { Graph, Tensor } from "../tensor.js";

export interface KroneckerFactors {
  /** n_l × n_l; absent means the identity (then nLeft must be given). */
  readonly left?: Tensor;
  /** n_r × n_r; absent means the identity (then nRight must be given). */
  readonly right?: Tensor;
  /** One number per channel, applied first. */
  readonly diag?: Tensor;
  readonly nLeft?: number;
  readonly nRight?: number;
}

/**
 * x: rows of n_l·n_r values (any shape whose size is a multiple of it). Same shape out.
 * Source: docs/methods.md, Kronecker transform (paper section 3.2).
 */
export function kronecker(g: Graph, x: Tensor, factors: KroneckerFactors): Tensor {
  const { left, right, diag } = factors;
  const nLeft = left?.shape[0] ?? factors.nLeft ?? 1;
  const nRight = right?.shape[0] ?? factors.nRight ?? 1;
  const rows = x.size / (nLeft * nRight);
  if (!Number.isInteger(rows))
    throw new PlanishError(
      `[kronecker] ${x.size} values do not split into rows of ${nLeft}×${nRight}`,
    );
  if (diag && diag.size !== nLeft * nRight)
    throw new PlanishError(
      `[kronecker] diag has ${diag.size} values, channels are ${nLeft * nRight}`,
    );
  const out = g.real(x.size);
  const shared = {
    x: g.values(x),
    rows,
    nLeft,
    nRight,
    left: left && g.values(left),
    right: right && g.values(right),
    diag: diag && g.values(diag),
    precision: g.precision,
  };
  g.kernels.kronecker({ ...shared, out });
  return g.result(x.shape, out, [x, left, right, diag], (grad) => {
    const gradX = g.gradientFor(x);
    const gradLeft = g.gradientFor(left);
    const gradRight = g.gradientFor(right);
    const gradDiag = g.gradientFor(diag);
    g.kernels.kroneckerBackward({ ...shared, grad, gradX, gradLeft, gradRight, gradDiag });
    g.accumulate(x, gradX);
    g.accumulate(left, gradLeft);
    g.accumulate(right, gradRight);
    g.accumulate(diag, gradDiag);
  });
}
