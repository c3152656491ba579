/** Bindings of native/kernels/attention.h. */
import type { AttentionArgs, HeadLayout, Kernels } from "../../backend.js";
import { PlanishError } from "../../../common/errors.js";
import type { NativeLibrary } from "../library.js";
import { optionalReal, real } from "./views.js";

const SHAPE =
  "int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim, int64_t queryLength, int64_t keyLength, " +
  "int32_t causal, int64_t window, float scale, const void* q, int64_t qBatch, int64_t qTime, int64_t qHead, " +
  "const void* k, const void* v, int64_t kvBatch, int64_t kvTime, int64_t kvHead";

/** Elements that a tensor in this layout reaches into its buffer. */
function extent(
  layout: HeadLayout,
  batch: number,
  time: number,
  heads: number,
  headDim: number,
): number {
  if (batch * time * heads === 0) return 0;
  const { batchStride, timeStride, headStride } = layout;
  return (batch - 1) * batchStride + (time - 1) * timeStride + (heads - 1) * headStride + headDim;
}

function strides(layout: HeadLayout): [number, number, number] {
  return [layout.batchStride, layout.timeStride, layout.headStride];
}

type Shared = Omit<AttentionArgs, "out" | "logSumExp">;

/** Extents of the three layouts, and the arguments that both directions begin with. */
function leading(args: Shared, what: string) {
  const { batch, heads, kvHeads, headDim, queryLength, keyLength } = args;
  if (kvHeads < 1 || kvHeads > heads) {
    throw new PlanishError(
      `${what}: ${heads} heads cannot share ${kvHeads} KV heads; give 1 … ${heads}`,
    );
  }
  const q = extent(args.qLayout, batch, queryLength, heads, headDim);
  const kv = extent(args.kvLayout, batch, keyLength, kvHeads, headDim);
  const out = extent(args.outLayout, batch, queryLength, heads, headDim);
  const list = [
    batch,
    heads,
    kvHeads,
    headDim,
    queryLength,
    keyLength,
    args.causal ? 1 : 0,
    args.window ?? 0,
    args.scale,
    real(args.q, q, `${what} q`),
    ...strides(args.qLayout),
    real(args.k, kv, `${what} k`),
    real(args.v, kv, `${what} v`),
    ...strides(args.kvLayout),
  ];
  return { extents: { q, kv, out }, list };
}

export function attentionKernels(
  library: NativeLibrary,
): Pick<Kernels, "attention" | "attentionBackward"> {
  const forward = library.kernel(
    `int pl_attention(${SHAPE}, void* out, int64_t outBatch, int64_t outTime, int64_t outHead, void* logSumExp, int32_t half)`,
  );
  const backward = library.kernel(
    `int pl_attention_backward(${SHAPE}, const void* out, const void* grad, int64_t outBatch, int64_t outTime, ` +
      "int64_t outHead, const void* logSumExp, void* gradQ, void* gradK, void* gradV, int32_t half)",
  );
  return {
    attention(args) {
      const { extents, list } = leading(args, "attention");
      forward(
        ...list,
        real(args.out, extents.out, "attention out"),
        ...strides(args.outLayout),
        optionalReal(
          args.logSumExp,
          args.batch * args.heads * args.queryLength,
          "attention logSumExp",
        ),
        args.precision === "bf16" ? 1 : 0,
      );
    },
    attentionBackward(args) {
      const { extents, list } = leading(args, "attentionBackward");
      backward(
        ...list,
        real(args.out, extents.out, "attentionBackward out"),
        real(args.grad, extents.out, "attentionBackward grad"),
        ...strides(args.outLayout),
        real(
          args.logSumExp,
          args.batch * args.heads * args.queryLength,
          "attentionBackward logSumExp",
        ),
        real(args.gradQ, extents.q, "attentionBackward gradQ"),
        real(args.gradK, extents.kv, "attentionBackward gradK"),
        real(args.gradV, extents.kv, "attentionBackward gradV"),
        args.precision === "bf16" ? 1 : 0,
      );
    },
  };
}
