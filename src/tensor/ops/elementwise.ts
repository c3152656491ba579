/** Elementwise functions, broadcasts and the gated activation. */
import type { BinaryArgs, BinaryOp, UnaryOp } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

export function unary(g: Graph, op: UnaryOp, x: Tensor): Tensor {
  const input = g.values(x);
  const out = g.real(x.size);
  g.kernels.unary({ op, x: input, length: x.size, out });
  return g.result(x.shape, out, [x], (grad) => {
    const gradX = g.real(x.size);
    g.kernels.unaryBackward({ op, x: input, length: x.size, grad, gradX });
    g.accumulate(x, gradX);
  });
}

/**
 * a ∘ b with b broadcast: "full" (same shape), "row" (one value per column of a), "column" (one per row), "scalar".
 */
export function binary(
  g: Graph,
  op: BinaryOp,
  a: Tensor,
  b: Tensor,
  broadcast: BinaryArgs["broadcast"] = "full",
): Tensor {
  const { rows, cols } = a;
  const A = g.values(a);
  const B = g.values(b);
  const out = g.real(a.size);
  g.kernels.binary({ op, rows, cols, a: A, b: B, broadcast, out });
  return g.result(a.shape, out, [a, b], (grad) => {
    if (g.needs(a)) {
      const gradA = op === "mul" ? g.real(a.size) : grad;
      if (op === "mul") g.kernels.binary({ op, rows, cols, a: grad, b: B, broadcast, out: gradA });
      g.accumulate(a, gradA);
    }
    if (g.needs(b)) {
      const gradB = g.real(b.size);
      if (broadcast === "full") {
        if (op === "mul")
          g.kernels.binary({ op, rows, cols, a: grad, b: A, broadcast, out: gradB });
        else if (op === "add") {
          g.accumulate(b, grad);
          return;
        } else
          g.kernels.scale({ x: grad, length: b.size, alpha: -1, accumulate: false, out: gradB });
      } else {
        const alpha = op === "sub" ? -1 : 1;
        g.kernels.reduce({
          rows,
          cols,
          x: grad,
          y: op === "mul" ? A : undefined,
          keep: broadcast,
          alpha,
          out: gradB,
        });
      }
      g.accumulate(b, gradB);
    }
  });
}

export const add = (g: Graph, a: Tensor, b: Tensor) => binary(g, "add", a, b);

/** alpha·x. */
export function scale(g: Graph, x: Tensor, alpha: number): Tensor {
  const out = g.real(x.size);
  g.kernels.scale({ x: g.values(x), length: x.size, alpha, accumulate: false, out });
  return g.result(x.shape, out, [x], (grad) => {
    const gradX = g.real(x.size);
    g.kernels.scale({ x: grad, length: x.size, alpha, accumulate: false, out: gradX });
    g.accumulate(x, gradX);
  });
}

/** cap·tanh(x/cap), as cap·(2σ(2x/cap) − 1). */
export function softcap(g: Graph, x: Tensor, cap: number): Tensor {
  const steps = scale(g, unary(g, "sigmoid", scale(g, x, 2 / cap)), 2 * cap);
  return binary(g, "sub", steps, g.constant([1], Float64Array.of(cap)), "scalar");
}

/** silu(gate)·up. */
export function siluMul(g: Graph, gate: Tensor, up: Tensor): Tensor {
  const shared = { gate: g.values(gate), up: g.values(up), length: gate.size };
  const out = g.real(gate.size);
  g.kernels.siluMul({ ...shared, out });
  return g.result(gate.shape, out, [gate, up], (grad) => {
    const gradGate = g.real(gate.size);
    const gradUp = g.real(up.size);
    g.kernels.siluMulBackward({ ...shared, grad, gradGate, gradUp });
    g.accumulate(gate, gradGate);
    g.accumulate(up, gradUp);
  });
}

/** (up + 1)·gate·σ(alpha·gate), with gate at most `limit` and up within ±limit. */
export function clampedGate(
  g: Graph,
  gate: Tensor,
  up: Tensor,
  { alpha, limit }: { readonly alpha: number; readonly limit: number },
): Tensor {
  const number = (value: number): Tensor => g.constant([1], Float64Array.of(value));
  const plus = (x: Tensor, value: number): Tensor => binary(g, "add", x, number(value), "scalar");
  const positive = (x: Tensor): Tensor => unary(g, "relu", x);
  // limit − relu(limit − x) is the smaller of the two.
  const below = (x: Tensor): Tensor =>
    plus(scale(g, positive(plus(scale(g, x, -1), limit)), -1), limit);
  const low = below(gate);
  const within = plus(positive(plus(below(up), limit)), 1 - limit);
  const swish = binary(g, "mul", low, unary(g, "sigmoid", scale(g, low, alpha)));
  return binary(g, "mul", within, swish);
}

/** The same values under another shape. */
export function reshape(g: Graph, x: Tensor, shape: readonly number[]): Tensor {
  return g.result(shape, g.values(x), [x], (grad) => {
    g.accumulate(x, grad);
  });
}
