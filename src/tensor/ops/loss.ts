/** Losses: mean squared error with a tape, token negative log-likelihood without. */
import { PlanishError } from "../../common/errors.js";
import type { Buffer } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

/** mean (a − b)²; gradient flows to a. */
export function meanSquaredError(g: Graph, a: Tensor, b: Tensor): Tensor {
  if (a.size !== b.size) throw new PlanishError(`[mse] sizes differ: ${a.size} and ${b.size}`);
  const A = g.values(a);
  const B = g.values(b);
  const out = g.real(1);
  g.kernels.mse({ a: A, b: B, length: a.size, loss: out });
  return g.result([1], out, [a], (grad) => {
    const gradA = g.real(a.size);
    g.kernels.binary({
      op: "sub",
      rows: a.rows,
      cols: a.cols,
      a: A,
      b: B,
      broadcast: "full",
      out: gradA,
    });
    g.kernels.binary({
      op: "mul",
      rows: a.rows,
      cols: a.cols,
      a: gradA,
      b: grad,
      broadcast: "scalar",
      out: gradA,
    });
    g.kernels.scale({ x: gradA, length: a.size, alpha: 2 / a.size, accumulate: false, out: gradA });
    g.accumulate(a, gradA);
  });
}

/** Negative log-likelihood per row (not differentiable: "no gradient" by design, it only scores). targets: i32 [rows]. */
export function negativeLogLikelihood(g: Graph, logits: Tensor, targets: Buffer): Tensor {
  const out = g.real(logits.rows);
  g.kernels.nll({
    logits: g.values(logits),
    rows: logits.rows,
    cols: logits.cols,
    targets,
    nll: out,
  });
  return g.result([logits.rows], out, [], () => {
    throw new PlanishError("[nll] has no gradient");
  });
}
