/**
 * Attention: on tensor cores (native/cuda/attention_mma.cu) in bf16 for heads up to 128, else in f32
 * (native/cuda/attention.cu), which is also within the bounds of bf16.
 */
import { headExtent } from "../../../contract/extents.js";
import type {
  AttentionArgs,
  AttentionBackwardArgs,
  Buffer,
  HeadLayout,
  Kernels,
} from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import { blocksFor, launch, optionalReal, real, type CudaContext } from "../../context.js";

/** Sizes of the kernels' tiles and blocks. */
const TILE = 64;
const MMA_THREADS = 128;
const LARGEST_MMA_HEAD = 128;
const F32_WARPS = 8;
const F32_THREADS = F32_WARPS * 32;
const F32_KEYS = 32;
const LARGEST_HEAD = 256;
/** The struct Shape: sizes, then three layouts. */

type Sizes = Omit<AttentionArgs, "out" | "q" | "k" | "v" | "logSumExp">;

function shapeOf(args: Sizes): number[] {
  if (args.softcap !== undefined)
    throw new PlanishError(
      `attention: scores with a soft cap (${args.softcap}) have no CUDA kernel; run this model with --device cpu`,
    );
  if (args.slopes !== undefined || args.chunk !== undefined)
    throw new PlanishError(
      `attention: ${args.slopes ? "scores that lean with distance" : `positions in chunks of ${args.chunk}`} have no CUDA kernel; run this model with --device cpu`,
    );
  const { qLayout, kvLayout, outLayout } = args;
  return [
    ...[args.heads, args.kvHeads, args.headDim, args.queryLength, args.keyLength],
    ...[args.causal ? 1 : 0, args.window ?? 0],
    ...[qLayout, kvLayout, outLayout].flatMap((layout) => [
      layout.batchStride,
      layout.timeStride,
      layout.headStride,
    ]),
  ];
}

function extents({ batch, heads, kvHeads, headDim, queryLength, keyLength, ...layouts }: Sizes) {
  return {
    q: headExtent(layouts.qLayout, batch, queryLength, heads, headDim),
    kv: headExtent(layouts.kvLayout, batch, keyLength, kvHeads, headDim),
    out: headExtent(layouts.outLayout, batch, queryLength, heads, headDim),
    rows: batch * heads * queryLength,
  };
}

export function attentionKernels(
  ctx: CudaContext,
): Pick<Kernels, "attention" | "attentionBackward"> {
  const { modules, scratch } = ctx;

  function checkHead(headDim: number): void {
    if (headDim > LARGEST_HEAD)
      throw new PlanishError(
        `cuda backend: attention heads of ${headDim} are larger than the ${LARGEST_HEAD} its kernels take; use --device cpu`,
      );
  }

  const onTensorCores = (args: Sizes) =>
    args.precision === "bf16" && args.headDim <= LARGEST_MMA_HEAD;

  /** A tensor as bf16 [batch][heads][time][padded headDim]. */
  function packed(
    pointer: number,
    args: Sizes,
    heads: number,
    time: number,
    layout: HeadLayout,
  ): number {
    const padded = Math.ceil(args.headDim / 16) * 16;
    const out = scratch.take(args.batch * heads * time * padded * 2);
    launch(
      ctx,
      modules.get("attention", "pack_heads"),
      [blocksFor(ctx, (args.batch * heads * time * padded) / 8, 256)],
      256,
      [
        pointer,
        args.batch,
        heads,
        time,
        args.headDim,
        layout.batchStride,
        layout.timeStride,
        layout.headStride,
        padded,
        out,
      ],
    );
    return out;
  }

  const mma = (args: Sizes, name: string) =>
    modules.get("attention_mma", name, [`HEAD_DIM=${Math.ceil(args.headDim / 16) * 16}`]);
  const tileBytes = (args: Sizes) => TILE * (Math.ceil(args.headDim / 16) * 16 + 8) * 2;
  const vectorBytes = (args: Sizes, own: number) =>
    4 * (F32_WARPS * own * args.headDim + 2 * F32_KEYS * (args.headDim + 1));

  return {
    attention(args) {
      checkHead(args.headDim);
      const sizes = extents(args);
      const { batch, heads, kvHeads, queryLength, keyLength, scale } = args;
      const q = real(args.q, sizes.q, "attention q");
      const k = real(args.k, sizes.kv, "attention k");
      const v = real(args.v, sizes.kv, "attention v");
      const out = real(args.out, sizes.out, "attention out");
      const logSumExp = optionalReal(args.logSumExp, sizes.rows, "attention logSumExp");
      if (onTensorCores(args)) {
        launch(
          ctx,
          mma(args, "attention_forward"),
          [Math.ceil(queryLength / TILE), heads, batch],
          MMA_THREADS,
          [
            packed(q, args, heads, queryLength, args.qLayout),
            packed(k, args, kvHeads, keyLength, args.kvLayout),
            packed(v, args, kvHeads, keyLength, args.kvLayout),
            ...[out, logSumExp, scale, ...shapeOf(args)],
          ],
          5 * tileBytes(args),
        );
        return;
      }
      launch(
        ctx,
        modules.get("attention", "attention"),
        [Math.ceil(queryLength / F32_WARPS), heads, batch],
        F32_THREADS,
        [q, k, v, out, logSumExp, scale, ...shapeOf(args)],
        vectorBytes(args, 1),
      );
    },

    attentionBackward(args: AttentionBackwardArgs) {
      checkHead(args.headDim);
      const sizes = extents(args);
      const { batch, heads, kvHeads, queryLength, keyLength, scale } = args;
      const what = (buffer: Buffer, length: number, name: string) =>
        real(buffer, length, `attentionBackward ${name}`);
      const q = what(args.q, sizes.q, "q");
      const k = what(args.k, sizes.kv, "k");
      const v = what(args.v, sizes.kv, "v");
      const out = what(args.out, sizes.out, "out");
      const grad = what(args.grad, sizes.out, "grad");
      const logSumExp = what(args.logSumExp, sizes.rows, "logSumExp");
      const gradQ = what(args.gradQ, sizes.q, "gradQ");
      const gradK = what(args.gradK, sizes.kv, "gradK");
      const gradV = what(args.gradV, sizes.kv, "gradV");
      const shape = shapeOf(args);
      const delta = scratch.take(sizes.rows * 4);
      launch(ctx, modules.get("attention", "attention_delta"), [Math.ceil(sizes.rows / 8)], 256, [
        grad,
        out,
        batch,
        delta,
        ...shape,
      ]);
      if (onTensorCores(args)) {
        const operands = [
          packed(q, args, heads, queryLength, args.qLayout),
          packed(k, args, kvHeads, keyLength, args.kvLayout),
          packed(v, args, kvHeads, keyLength, args.kvLayout),
          packed(grad, args, heads, queryLength, args.outLayout),
          logSumExp,
          delta,
        ];
        launch(
          ctx,
          mma(args, "attention_backward_kv"),
          [Math.ceil(keyLength / TILE), kvHeads, batch],
          MMA_THREADS,
          [...operands, gradK, gradV, scale, ...shape],
          6 * tileBytes(args) + 4 * TILE * 4,
        );
        launch(
          ctx,
          mma(args, "attention_backward_q"),
          [Math.ceil(queryLength / TILE), heads, batch],
          MMA_THREADS,
          [...operands, gradQ, scale, ...shape],
          6 * tileBytes(args),
        );
        return;
      }
      const operands = [q, k, v, grad, logSumExp, delta];
      launch(
        ctx,
        modules.get("attention", "attention_grad_q"),
        [Math.ceil(queryLength / F32_WARPS), heads, batch],
        F32_THREADS,
        [...operands, gradQ, scale, ...shape],
        vectorBytes(args, 2),
      );
      launch(
        ctx,
        modules.get("attention", "attention_grad_kv"),
        [Math.ceil(keyLength / F32_WARPS), kvHeads, batch],
        F32_THREADS,
        [...operands, gradK, gradV, scale, ...shape],
        vectorBytes(args, 2),
      );
    },
  };
}
