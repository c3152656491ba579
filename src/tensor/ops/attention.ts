/** Causal scaled dot-product attention with grouped KV heads; keeps no T×T matrix. */
import type { AttentionArgs, Buffer, RealArray } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

export interface AttentionOptions {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly window?: number;
  /** Queries see keys from the last multiple of it on. */
  readonly chunk?: number;
  /** Of each head: what a score gains with every position that its key stands later. */
  readonly slopes?: readonly number[];
  readonly scale?: number;
  /** Scores s become cap·tanh(s/cap). */
  readonly softcap?: number;
  /** Of each head a score that takes part in softmax and mixes nothing, [heads]; it is not learned. */
  readonly sinks?: Tensor;
}

/** q: [batch·Tq, heads·headDim], k and v: [batch·Tk, kvHeads·headDim]; out like q. Queries are the last Tq positions. */
export function attention(
  g: Graph,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions,
): Tensor {
  const { batch, heads, kvHeads, headDim } = options;
  const queryLength = q.size / (batch * heads * headDim);
  const keyLength = k.size / (batch * kvHeads * headDim);
  const qLayout = {
    batchStride: queryLength * heads * headDim,
    timeStride: heads * headDim,
    headStride: headDim,
  };
  const kvLayout = {
    batchStride: keyLength * kvHeads * headDim,
    timeStride: kvHeads * headDim,
    headStride: headDim,
  };
  const out = g.real(q.size);
  const logSumExp = g.real(batch * heads * queryLength);
  const shared: AttentionArgs = {
    batch,
    heads,
    kvHeads,
    headDim,
    queryLength,
    keyLength,
    causal: true,
    window: options.window,
    chunk: options.chunk,
    scale: options.scale ?? 1 / Math.sqrt(headDim),
    softcap: options.softcap,
    slopes: options.slopes && g.values(g.constant([heads], Float64Array.from(options.slopes))),
    precision: g.precision,
    q: g.values(q),
    qLayout,
    k: g.values(k),
    v: g.values(v),
    kvLayout,
    out,
    outLayout: qLayout,
    logSumExp,
  };
  g.kernels.attention(shared);
  if (options.sinks)
    addSinks(g, g.read(options.sinks), out, logSumExp, { ...options, queryLength });
  return g.result(q.shape, out, [q, k, v], (grad) => {
    const gradQ = g.real(q.size);
    const gradK = g.real(k.size);
    const gradV = g.real(v.size);
    g.kernels.attentionBackward({ ...shared, logSumExp, grad, gradQ, gradK, gradV });
    g.accumulate(q, gradQ);
    g.accumulate(k, gradK);
    g.accumulate(v, gradV);
  });
}

/**
 * Mixed values and logSumExp of [batch, time, heads, headDim] as they are where every softmax has one more score, which has
 * no value: with l' = log(eˡ + eˢ) what was mixed counts e^(l − l'). The backward pass needs nothing else.
 */
function addSinks(
  g: Graph,
  sinks: ArrayLike<number>,
  out: Buffer,
  logSumExp: Buffer,
  { batch, heads, headDim, queryLength }: AttentionOptions & { readonly queryLength: number },
): void {
  const mixed = g.backend.read(out) as RealArray;
  const sums = g.backend.read(logSumExp) as RealArray;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let t = 0; t < queryLength; t++) {
        const at = (b * heads + h) * queryLength + t;
        const share = 1 / (1 + Math.exp(sinks[h] - sums[at]));
        const first = ((b * queryLength + t) * heads + h) * headDim;
        for (let d = first; d < first + headDim; d++) mixed[d] *= share;
        sums[at] -= Math.log(share);
      }
  g.backend.write(out, mixed);
  g.backend.write(logSumExp, sums);
}
