/**
 * Reference scaled dot-product attention with grouped KV heads, and its gradient. Scores of one query at a time,
 * the softmax in two passes. Sources: Vaswani et al. 2017; the backward pass from the saved logsumexp is that of
 * Dao et al. 2022 (FlashAttention), section B.2.
 */

import { headExtent } from "../../contract/extents.js";
import { PlanishError } from "../../../common/errors.js";
import type { AttentionArgs, AttentionBackwardArgs, RealArray } from "../../contract/training.js";
import { optionalReals, reals } from "./views.js";

type Sizes = Omit<AttentionArgs, "out" | "q" | "k" | "v" | "logSumExp">;

/** First and one-past-last key that query t may see. */
function visibleKeys(args: Sizes, t: number): { first: number; end: number } {
  const { keyLength, queryLength } = args;
  const position = t + keyLength - queryLength;
  const end = args.causal ? Math.max(0, Math.min(keyLength, position + 1)) : keyLength;
  const { window = 0, chunk = 0 } = args;
  const inWindow = window > 0 ? Math.max(0, position + 1 - window) : 0;
  const inChunk = chunk > 0 && position > 0 ? position - (position % chunk) : 0;
  const first = Math.max(inWindow, inChunk);
  return { first: Math.min(first, end), end };
}

/** What query t's score of key j gains with head h. */
function lean(args: Sizes, slopes: RealArray | undefined, h: number, t: number, j: number): number {
  return slopes ? slopes[h] * (j - t - args.keyLength + args.queryLength) : 0;
}

function slopesOf(args: Sizes, what: string): RealArray | undefined {
  if (args.slopes && args.softcap !== undefined)
    throw new PlanishError(`${what}: scores have a soft cap or slopes, not both`);
  return optionalReals(args.slopes, args.heads, `${what} slopes`);
}

/** cap·tanh(score/cap), or the score where there is no cap. Its slope is 1 − (result/cap)². */
function capped(score: number, cap: number | undefined): number {
  return cap === undefined ? score : cap * Math.tanh(score / cap);
}

/**
 * Per batch, head h (reading KV head ⌊h·kvHeads/heads⌋) and query t, over the visible keys j:
 * out = Σ_j softmax_j(scale·q_t·k_j)·v_j and logSumExp = log Σ_j exp(scale·q_t·k_j).
 * With a soft cap, scale·q_t·k_j is cap·tanh of itself over the cap; with slopes, slope·(j − position of t) is added.
 * A query that sees no key gets out = 0 and logSumExp = −∞. A window of w reaches from the query's own position
 * back over w keys; without `causal` it does not limit later keys.
 */
export function attention(args: AttentionArgs): void {
  const { batch, heads, kvHeads, headDim, queryLength, keyLength, qLayout, kvLayout, outLayout } =
    args;
  const kvExtent = headExtent(kvLayout, batch, keyLength, kvHeads, headDim);
  const q = reals(args.q, headExtent(qLayout, batch, queryLength, heads, headDim), "attention q");
  const k = reals(args.k, kvExtent, "attention k");
  const v = reals(args.v, kvExtent, "attention v");
  const out = reals(
    args.out,
    headExtent(outLayout, batch, queryLength, heads, headDim),
    "attention out",
  );
  const logSumExp = optionalReals(
    args.logSumExp,
    batch * heads * queryLength,
    "attention logSumExp",
  );
  const slopes = slopesOf(args, "attention");
  const scores = new Float64Array(keyLength);
  const mixed = new Float64Array(headDim);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const kvHead =
        b * kvLayout.batchStride + Math.floor((h * kvHeads) / heads) * kvLayout.headStride;
      for (let t = 0; t < queryLength; t++) {
        const qStart = b * qLayout.batchStride + t * qLayout.timeStride + h * qLayout.headStride;
        const outStart =
          b * outLayout.batchStride + t * outLayout.timeStride + h * outLayout.headStride;
        const { first, end } = visibleKeys(args, t);
        let max = -Infinity;
        for (let j = first; j < end; j++) {
          let dot = 0;
          const kStart = kvHead + j * kvLayout.timeStride;
          for (let d = 0; d < headDim; d++) dot += q[qStart + d] * k[kStart + d];
          scores[j] = capped(dot * args.scale, args.softcap) + lean(args, slopes, h, t, j);
          if (scores[j] > max) max = scores[j];
        }
        let sum = 0;
        mixed.fill(0);
        for (let j = first; j < end; j++) {
          const weight = Math.exp(scores[j] - max);
          const vStart = kvHead + j * kvLayout.timeStride;
          sum += weight;
          for (let d = 0; d < headDim; d++) mixed[d] += weight * v[vStart + d];
        }
        for (let d = 0; d < headDim; d++) out[outStart + d] = sum === 0 ? 0 : mixed[d] / sum;
        if (logSumExp)
          logSumExp[(b * heads + h) * queryLength + t] =
            sum === 0 ? -Infinity : max + Math.log(sum);
      }
    }
  }
}

/**
 * With p_tj = exp(scale·q_t·k_j − logSumExp_t), g the gradient and δ_t = g_t·out_t:
 * dV_j = Σ_t p_tj·g_t, ds_tj = p_tj·(g_t·v_j − δ_t)·scale (times the cap's slope), dQ_t = Σ_j ds_tj·k_j, dK_j = Σ_t ds_tj·q_t,
 * where the sums of dK and dV run over all query heads of the group. Overwrites gradQ, gradK and gradV, and only
 * elements that their layouts address.
 */
export function attentionBackward(args: AttentionBackwardArgs): void {
  const { batch, heads, kvHeads, headDim, queryLength, keyLength, qLayout, kvLayout, outLayout } =
    args;
  const qExtent = headExtent(qLayout, batch, queryLength, heads, headDim);
  const kvExtent = headExtent(kvLayout, batch, keyLength, kvHeads, headDim);
  const outExtent = headExtent(outLayout, batch, queryLength, heads, headDim);
  const q = reals(args.q, qExtent, "attentionBackward q");
  const k = reals(args.k, kvExtent, "attentionBackward k");
  const v = reals(args.v, kvExtent, "attentionBackward v");
  const out = reals(args.out, outExtent, "attentionBackward out");
  const grad = reals(args.grad, outExtent, "attentionBackward grad");
  const gradQ = reals(args.gradQ, qExtent, "attentionBackward gradQ");
  const gradK = reals(args.gradK, kvExtent, "attentionBackward gradK");
  const gradV = reals(args.gradV, kvExtent, "attentionBackward gradV");
  const logSumExp = reals(
    args.logSumExp,
    batch * heads * queryLength,
    "attentionBackward logSumExp",
  );
  const slopes = slopesOf(args, "attentionBackward");
  const dQ = new Float64Array(headDim);
  // Sums over a group's query heads stay in float64 until the group is done.
  const dK = new Float64Array(keyLength * headDim);
  const dV = new Float64Array(keyLength * headDim);
  for (let b = 0; b < batch; b++) {
    for (let group = 0; group < kvHeads; group++) {
      const kvHead = b * kvLayout.batchStride + group * kvLayout.headStride;
      dK.fill(0);
      dV.fill(0);
      for (let h = 0; h < heads; h++) {
        if (Math.floor((h * kvHeads) / heads) !== group) continue;
        for (let t = 0; t < queryLength; t++) {
          const qStart = b * qLayout.batchStride + t * qLayout.timeStride + h * qLayout.headStride;
          const outStart =
            b * outLayout.batchStride + t * outLayout.timeStride + h * outLayout.headStride;
          const lse = logSumExp[(b * heads + h) * queryLength + t];
          const { first, end } = visibleKeys(args, t);
          let delta = 0;
          for (let d = 0; d < headDim; d++) delta += grad[outStart + d] * out[outStart + d];
          dQ.fill(0);
          for (let j = first; j < end; j++) {
            const kvStart = kvHead + j * kvLayout.timeStride;
            let score = 0;
            let gradWeight = 0;
            for (let d = 0; d < headDim; d++) {
              score += q[qStart + d] * k[kvStart + d];
              gradWeight += grad[outStart + d] * v[kvStart + d];
            }
            const seen = capped(score * args.scale, args.softcap);
            const weight = Math.exp(seen + lean(args, slopes, h, t, j) - lse);
            const slope = args.softcap === undefined ? 1 : 1 - (seen / args.softcap) ** 2;
            const gradScore = weight * (gradWeight - delta) * slope * args.scale;
            for (let d = 0; d < headDim; d++) {
              dQ[d] += gradScore * k[kvStart + d];
              dK[j * headDim + d] += gradScore * q[qStart + d];
              dV[j * headDim + d] += weight * grad[outStart + d];
            }
          }
          gradQ.set(dQ, qStart);
        }
      }
      for (let j = 0; j < keyLength; j++) {
        gradK.set(dK.subarray(j * headDim, (j + 1) * headDim), kvHead + j * kvLayout.timeStride);
        gradV.set(dV.subarray(j * headDim, (j + 1) * headDim), kvHead + j * kvLayout.timeStride);
      }
    }
  }
}
