/** Matrix products: `linear` for the large ones of a model, `matmul` for small matrices of parameters. */
import { PlanishError } from "../../common/errors.js";
import type { Buffer, MatmulOperand } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

/**
 * y[t,n] = Σ_k x[t,k]·w[n,k] (+ bias[n]). x: [..., K], w: [N, K], y: [..., N].
 *
 * When both sides carry integer codes with a scale per row the forward product is an exact integer product times scales
 * (DESIGN decision 4); codes also feed the backward products, where small integers are exact in 16 bits.
 */
export function linear(g: Graph, x: Tensor, w: Tensor, bias?: Tensor): Tensor {
  const [n, k] = w.shape;
  if (x.cols !== k || w.shape.length !== 2)
    throw new PlanishError(
      `[linear] x has ${x.cols} columns, weight is [${w.shape.join(", ")}]; they must agree`,
    );
  const rows = x.rows;
  const out = g.real(rows * n);
  const biasBuffer = bias && g.values(bias);
  if (x.codes && w.codes && !x.codes.group && !w.codes.group) {
    g.kernels.intMatmul({
      m: rows,
      n,
      k,
      a: x.codes.codes,
      aScale: x.codes.scale,
      b: w.codes.codes,
      bScale: w.codes.scale,
      bias: biasBuffer,
      out,
    });
  } else {
    g.kernels.matmul({
      m: rows,
      n,
      k,
      a: { buffer: g.values(x) },
      b: { ...stored(g, w), transposed: true },
      nScale: rowScale(w),
      bias: biasBuffer,
      out: { buffer: out },
      precision: g.precision,
    });
  }
  return g.result([...x.shape.slice(0, -1), n], out, [x, w, bias], (grad) => {
    const gradX = g.gradientFor(x);
    if (gradX)
      g.kernels.matmul({
        m: rows,
        n: k,
        k: n,
        a: { buffer: grad },
        b: stored(g, w),
        kScale: rowScale(w),
        out: { buffer: gradX },
        precision: g.precision,
      });
    g.accumulate(x, gradX);
    const gradW = g.gradientFor(w);
    if (gradW)
      g.kernels.matmul({
        m: n,
        n: k,
        k: rows,
        a: { buffer: grad, transposed: true },
        b: stored(g, x),
        kScale: rowScale(x),
        out: { buffer: gradW },
        precision: g.precision,
      });
    g.accumulate(w, gradW);
    const gradBias = g.gradientFor(bias);
    if (gradBias)
      g.kernels.reduce({ rows, cols: n, x: grad, keep: "row", alpha: 1, out: gradBias });
    g.accumulate(bias, gradBias);
  });
}

/**
 * A tensor with a scale per row enters products as codes (the scale is applied along the contraction or per column); one
 * with a scale per group as values.
 */
function stored(g: Graph, tensor: Tensor): MatmulOperand {
  return {
    buffer: rowScale(tensor) ? (tensor.codes?.codes ?? g.values(tensor)) : g.values(tensor),
  };
}

function rowScale({ codes }: Tensor): Buffer | undefined {
  return codes?.group === undefined ? codes?.scale : undefined;
}

/** out = A·B with either side transposed; 2-D, always in full precision: meant for small matrices. */
export function matmul(
  g: Graph,
  a: Tensor,
  b: Tensor,
  options: { transposeA?: boolean; transposeB?: boolean } = {},
): Tensor {
  const ta = options.transposeA ?? false;
  const tb = options.transposeB ?? false;
  const [m, k] = ta ? [a.shape[1], a.shape[0]] : [a.shape[0], a.shape[1]];
  const [kb, n] = tb ? [b.shape[1], b.shape[0]] : [b.shape[0], b.shape[1]];
  if (k !== kb)
    throw new PlanishError(
      `[matmul] inner sizes differ: [${a.shape.join(", ")}]${ta ? "ᵀ" : ""} · [${b.shape.join(", ")}]${tb ? "ᵀ" : ""}`,
    );
  const out = g.real(m * n);
  const A = g.values(a);
  const B = g.values(b);
  g.kernels.matmul({
    m,
    n,
    k,
    a: { buffer: A, transposed: ta },
    b: { buffer: B, transposed: tb },
    out: { buffer: out },
    precision: "f32",
  });
  return g.result([m, n], out, [a, b], (grad) => {
    const gradA = g.gradientFor(a);
    // dA = G·Bᵀ, or (G·Bᵀ)ᵀ = B·Gᵀ when A is stored transposed.
    if (gradA)
      g.kernels.matmul(
        ta
          ? {
              m: k,
              n: m,
              k: n,
              a: { buffer: B, transposed: tb },
              b: { buffer: grad, transposed: true },
              out: { buffer: gradA },
              precision: "f32",
            }
          : {
              m,
              n: k,
              k: n,
              a: { buffer: grad },
              b: { buffer: B, transposed: !tb },
              out: { buffer: gradA },
              precision: "f32",
            },
      );
    g.accumulate(a, gradA);
    const gradB = g.gradientFor(b);
    if (gradB)
      g.kernels.matmul(
        tb
          ? {
              m: n,
              n: k,
              k: m,
              a: { buffer: grad, transposed: true },
              b: { buffer: A, transposed: ta },
              out: { buffer: gradB },
              precision: "f32",
            }
          : {
              m: k,
              n,
              k: m,
              a: { buffer: A, transposed: !ta },
              b: { buffer: grad },
              out: { buffer: gradB },
              precision: "f32",
            },
      );
    g.accumulate(b, gradB);
  });
}
