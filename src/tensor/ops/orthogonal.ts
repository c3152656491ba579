/** Cayley map and inverse of small matrices, computed in float64 on every backend. */
import type { Graph, Tensor } from "../tensor.js";

/** Orthogonal Q from a free square seed: A = tril(X) − tril(X)ᵀ, Q = (I − A/2)⁻¹(I + A/2). docs/methods.md, flatquant. */
export function cayley(g: Graph, seed: Tensor): Tensor {
  const n = seed.shape[0];
  const input = g.values(seed);
  const out = g.real(n * n);
  g.kernels.cayley({ seed: input, n, out });
  return g.result([n, n], out, [seed], (grad) => {
    const gradSeed = g.real(n * n);
    g.kernels.cayleyBackward({ seed: input, n, out, grad, gradSeed });
    g.accumulate(seed, gradSeed);
  });
}

/** X⁻¹; its gradient is −X⁻ᵀ·G·X⁻ᵀ. */
export function inverse(g: Graph, x: Tensor): Tensor {
  const n = x.shape[0];
  const out = g.real(n * n);
  g.kernels.inverse({ x: g.values(x), n, out });
  return g.result([n, n], out, [x], (grad) => {
    const half = g.real(n * n);
    const gradX = g.real(n * n);
    const inverseT = { buffer: out, transposed: true };
    g.kernels.matmul({
      m: n,
      n,
      k: n,
      a: inverseT,
      b: { buffer: grad },
      out: { buffer: half },
      precision: "f32",
    });
    g.kernels.matmul({
      m: n,
      n,
      k: n,
      a: { buffer: half },
      b: inverseT,
      out: { buffer: gradX },
      alpha: -1,
      precision: "f32",
    });
    g.accumulate(x, gradX);
  });
}
