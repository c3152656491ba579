/** Conformance cases of attention, forward and backward. */

import type {
  AttentionArgs,
  HeadLayout,
  Kernels,
  Precision,
} from "../../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import {
  evaluate,
  output,
  Random,
  real,
  U,
  U_BF16,
  type Buffers,
  type CaseGroup,
  type ConformanceCase,
  type Values,
} from "../harness.js";

const truthBackend = createReferenceBackend({ realType: "f64" });

interface Options {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly queryLength: number;
  readonly keyLength: number;
  readonly causal: boolean;
  readonly window?: number;
  /** Order of the stored tensor; `fused` is time-major with a gap after every token. */
  readonly order: "time" | "head" | "fused";
  readonly precision: Precision;
}

const GAP = 5;

function layout(order: Options["order"], heads: number, time: number, headDim: number): HeadLayout {
  if (order === "head") {
    return { batchStride: heads * time * headDim, timeStride: headDim, headStride: time * headDim };
  }
  const timeStride = heads * headDim + (order === "fused" ? GAP : 0);
  return { batchStride: time * timeStride, timeStride, headStride: headDim };
}

function setUp(options: Options, name: string) {
  const {
    batch,
    heads,
    kvHeads,
    headDim,
    queryLength,
    keyLength,
    causal,
    window,
    order,
    precision,
  } = options;
  const random = new Random(name);
  const qLayout = layout(order, heads, queryLength, headDim);
  const kvLayout = layout(order, kvHeads, keyLength, headDim);
  const outLayout = layout(order === "fused" ? "time" : order, heads, queryLength, headDim);
  const lengths = {
    q: batch * qLayout.batchStride,
    kv: batch * kvLayout.batchStride,
    out: batch * outLayout.batchStride,
    lse: batch * heads * queryLength,
  };
  const shape: Omit<AttentionArgs, "q" | "k" | "v" | "out" | "logSumExp"> = {
    ...{ batch, heads, kvHeads, headDim, queryLength, keyLength, causal, window, precision },
    ...{ scale: 1 / Math.sqrt(headDim), qLayout, kvLayout, outLayout },
  };
  const inputs = {
    q: real(random.normals(lengths.q)),
    k: real(random.normals(lengths.kv)),
    v: real(random.normals(lengths.kv)),
  };
  return { random, shape, lengths, inputs };
}

type SetUp = ReturnType<typeof setUp>;

/** Calls `visit` for every query and visible key with the offsets of their vectors. */
function forEachScore(
  { shape }: SetUp,
  visit: (at: { q: number; kv: number; out: number; row: number }) => void,
): void {
  const {
    batch,
    heads,
    kvHeads,
    queryLength,
    keyLength,
    causal,
    window,
    qLayout,
    kvLayout,
    outLayout,
  } = shape;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let t = 0; t < queryLength; t++) {
        const last = causal ? t + keyLength - queryLength : keyLength - 1;
        const first = window ? Math.max(0, last + 1 - window) : 0;
        for (let j = first; j <= last; j++) {
          visit({
            q: b * qLayout.batchStride + t * qLayout.timeStride + h * qLayout.headStride,
            kv:
              b * kvLayout.batchStride +
              j * kvLayout.timeStride +
              Math.floor((h * kvHeads) / heads) * kvLayout.headStride,
            out: b * outLayout.batchStride + t * outLayout.timeStride + h * outLayout.headStride,
            row: (b * heads + h) * queryLength + t,
          });
        }
      }
    }
  }
}

function absoluteDot(
  x: Float64Array,
  xStart: number,
  y: Float64Array,
  yStart: number,
  length: number,
): number {
  let sum = 0;
  for (let d = 0; d < length; d++) sum += Math.abs(x[xStart + d] * y[yStart + d]);
  return sum;
}

/**
 * Per query: a bound on the error of any of its scores (a sum of headDim terms, then the scale), plus what an
 * exponential's argument reduction may add, u·|score − max|.
 */
function scoreErrors(set: SetUp): Float64Array {
  const { headDim, scale } = set.shape;
  const errors = new Float64Array(set.lengths.lse);
  forEachScore(set, ({ q, kv, row }) => {
    const size = scale * absoluteDot(set.inputs.q.data, q, set.inputs.k.data, kv, headDim);
    errors[row] = Math.max(errors[row], (headDim + 2 + 4) * U * size);
  });
  return errors;
}

const titleOf = (o: Options) =>
  Object.entries(o)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${String(value)}`)
    .join(", ");

function attentionCase(options: Options, keepLogSumExp: boolean): ConformanceCase {
  const title = titleOf(options);
  const set = setUp(options, `attention ${title}`);
  const { headDim, keyLength } = set.shape;
  const buffers = {
    ...set.inputs,
    out: output(set.lengths.out),
    ...(keepLogSumExp ? { logSumExp: output(set.lengths.lse) } : {}),
  };
  const run = (kernels: Kernels, b: Buffers) =>
    kernels.attention({ ...set.shape, q: b.q, k: b.k, v: b.v, out: b.out, logSumExp: b.logSumExp });
  const bf16 = options.precision === "bf16";
  return {
    ...{ kernel: "attention", title, buffers, outputs: ["out", "logSumExp"], run },
    bounds: (truth: Values) => {
      const errors = scoreErrors(set);
      const v = { ...set.inputs.v, data: set.inputs.v.data.map(Math.abs) };
      const mixed = evaluate(truthBackend, { ...buffers, v }, run).out;
      const out = new Float64Array(set.lengths.out);
      const logSumExp = new Float64Array(set.lengths.lse);
      forEachScore(set, ({ out: start, row }) => {
        // Weights are ratios of exponentials: twice the score's error, and a sum of keyLength of them.
        const relative = 2 * errors[row] + (2 * keyLength + 16) * U;
        for (let d = 0; d < headDim; d++) out[start + d] = relative * mixed[start + d];
        if (keepLogSumExp) {
          logSumExp[row] =
            errors[row] + (keyLength + 8) * U + 4 * U * Math.abs(truth.logSumExp[row]);
        }
      });
      if (!bf16) return { out, logSumExp };
      // With 16-bit factors only the norm is bounded closely; elements by the worst case of four roundings.
      const coarse = U_BF16 / ((headDim + 6) * U);
      forEachScore(set, ({ out: start, row }) => {
        const relative = 2 * (2 * errors[row] * coarse) + 2 * U_BF16 + (2 * keyLength + 16) * U;
        for (let d = 0; d < headDim; d++) out[start + d] = relative * mixed[start + d];
        logSumExp[row] = 2 * errors[row] * coarse + U_BF16;
      });
      return { out, logSumExp };
    },
    norms: bf16 ? { out: 4 * U_BF16 } : undefined,
  };
}

function attentionBackwardCase(options: Options): ConformanceCase {
  const title = titleOf(options);
  const set = setUp(options, `attentionBackward ${title}`);
  const { headDim, keyLength, queryLength, scale } = set.shape;
  const forward = evaluate(
    truthBackend,
    { ...set.inputs, out: output(set.lengths.out), logSumExp: output(set.lengths.lse) },
    (kernels, b) =>
      kernels.attention({
        ...set.shape,
        q: b.q,
        k: b.k,
        v: b.v,
        out: b.out,
        logSumExp: b.logSumExp,
      }),
  );
  const grad = set.random.normals(set.lengths.out);
  const [out, lse] = [forward.out.map(Math.fround), forward.logSumExp.map(Math.fround)];
  // Gaps between tokens must keep what they held.
  const keep = (length: number) => real(set.random.normals(length));
  const bf16 = options.precision === "bf16";
  return {
    kernel: "attentionBackward",
    title,
    buffers: {
      ...{ ...set.inputs, out: real(out), logSumExp: real(lse), grad: real(grad) },
      ...{ gradQ: keep(set.lengths.q), gradK: keep(set.lengths.kv), gradV: keep(set.lengths.kv) },
    },
    outputs: ["gradQ", "gradK", "gradV"],
    run: (kernels, b) => kernels.attentionBackward({ ...set.shape, ...b } as never),
    bounds: () => {
      const { q, k, v } = { q: set.inputs.q.data, k: set.inputs.k.data, v: set.inputs.v.data };
      const bounds = {
        gradQ: new Float64Array(set.lengths.q),
        gradK: new Float64Array(set.lengths.kv),
        gradV: new Float64Array(set.lengths.kv),
      };
      const sums = headDim + keyLength + (queryLength * set.shape.heads) / set.shape.kvHeads;
      const groups = 2 * sums * U + 24 * U;
      forEachScore(set, ({ q: qStart, kv, out: outStart, row }) => {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += q[qStart + d] * k[kv + d];
        const weight = Math.exp(dot * scale - lse[row]);
        const size = scale * absoluteDot(q, qStart, k, kv, headDim);
        const weightError = ((headDim + 6) * size + 4 * Math.abs(lse[row])) * U + groups;
        const terms =
          scale *
          weight *
          (absoluteDot(grad, outStart, v, kv, headDim) +
            absoluteDot(grad, outStart, out, outStart, headDim));
        const relative = bf16 ? 2 * U_BF16 * (size + 4) + weightError : weightError;
        for (let d = 0; d < headDim; d++) {
          bounds.gradQ[qStart + d] += relative * terms * Math.abs(k[kv + d]);
          bounds.gradK[kv + d] += relative * terms * Math.abs(q[qStart + d]);
          bounds.gradV[kv + d] += relative * weight * Math.abs(grad[outStart + d]);
        }
      });
      return bounds;
    },
  };
}

const base = { causal: true, precision: "f32" } as const;
const OPTIONS: readonly Options[] = [
  {
    ...base,
    batch: 1,
    heads: 1,
    kvHeads: 1,
    headDim: 8,
    queryLength: 1,
    keyLength: 1,
    order: "time",
  },
  {
    ...base,
    batch: 2,
    heads: 6,
    kvHeads: 2,
    headDim: 8,
    queryLength: 7,
    keyLength: 7,
    order: "head",
  },
  {
    ...base,
    batch: 2,
    heads: 4,
    kvHeads: 4,
    headDim: 20,
    queryLength: 19,
    keyLength: 19,
    order: "time",
  },
  {
    ...base,
    batch: 1,
    heads: 9,
    kvHeads: 3,
    headDim: 64,
    queryLength: 70,
    keyLength: 70,
    order: "time",
  },
  {
    ...base,
    batch: 3,
    heads: 4,
    kvHeads: 1,
    headDim: 16,
    queryLength: 1,
    keyLength: 37,
    order: "time",
  },
  {
    ...base,
    batch: 1,
    heads: 2,
    kvHeads: 2,
    headDim: 128,
    queryLength: 33,
    keyLength: 50,
    order: "fused",
  },
  {
    ...base,
    batch: 2,
    heads: 4,
    kvHeads: 2,
    headDim: 32,
    queryLength: 45,
    keyLength: 45,
    window: 8,
    order: "fused",
  },
  {
    ...base,
    batch: 1,
    heads: 3,
    kvHeads: 3,
    headDim: 12,
    queryLength: 5,
    keyLength: 23,
    causal: false,
    order: "head",
  },
  {
    ...base,
    batch: 1,
    heads: 2,
    kvHeads: 1,
    headDim: 80,
    queryLength: 16,
    keyLength: 130,
    window: 100,
    order: "time",
  },
];
const BF16_OPTIONS = OPTIONS.map((options) => ({ ...options, precision: "bf16" as const }));

export const attentionGroups: CaseGroup[] = [
  {
    bound:
      "attention f32: with ε the largest score error (headDim+6)·u·scale·Σ|q·k|: out within 2ε + (2·keys+16)·u of Σp|v|, logSumExp within ε + (keys+8)·u + 4u·|lse|",
    cases: OPTIONS.map((options, i) => attentionCase(options, i % 2 === 1)),
  },
  {
    bound:
      "attention bf16: worst case of rounded q, k, p, v per element; 4·2⁻⁸ in norm for scores of unit size",
    cases: BF16_OPTIONS.map((options, i) => attentionCase(options, i % 2 === 1)),
  },
  {
    bound:
      "attentionBackward f32: weights' error plus 2·(headDim + keys + queries of the group)·u, of the sums of absolute terms (|g·v| + |g·out|)",
    cases: OPTIONS.map(attentionBackwardCase),
  },
  {
    bound: "attentionBackward bf16: as f32 with two roundings per score and four more to bf16",
    cases: BF16_OPTIONS.map(attentionBackwardCase),
  },
];
