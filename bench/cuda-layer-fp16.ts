/**
 * The FP16 layer that cuda-layer.ts compares with: cuBLASLt with fused q/k/v and gate/up, the residual added by cuBLASLt,
 * and the engine's attention kernels on a cache of halves.
 */
import type { DevicePointer } from "../src/backend/cuda/driver.js";
import type { EngineKernels } from "../src/backend/cuda/infer/kernels.js";
import { pageLayout } from "../src/backend/cuda/infer/layout.js";
import {
  EPSILON,
  HEADS,
  HEAD_DIM,
  HIDDEN,
  INTERMEDIATE,
  SHAPE,
  blas,
  clips,
  halfOnes,
  random,
  type Calls,
  type Space,
  type Step,
  tablesOf,
} from "./cuda-layer-setup.js";

export interface HalfLayer {
  readonly gain: DevicePointer;
  readonly qkv: DevicePointer;
  readonly o: DevicePointer;
  readonly gateUp: DevicePointer;
  readonly down: DevicePointer;
}

const spread = (columns: number) => 0.5 / Math.sqrt(columns);
export const halfLayer = (): HalfLayer => ({
  gain: halfOnes,
  qkv: random("halves", 3 * HIDDEN * HIDDEN, spread(HIDDEN)),
  o: random("halves", HIDDEN * HIDDEN, spread(HIDDEN)),
  gateUp: random("halves", 2 * INTERMEDIATE * HIDDEN, spread(HIDDEN)),
  down: random("halves", HIDDEN * INTERMEDIATE, spread(INTERMEDIATE)),
});

/** The calls of one FP16 layer, by name. */
export function halfCalls(
  k: EngineKernels,
  layer: HalfLayer,
  cache: DevicePointer,
  step: Step,
  space: Space,
): Calls {
  const { rows } = step;
  const { x, buffers } = space;
  const { a, b, q, codes: normed, partial } = buffers;
  const decoding = rows === step.sequences;
  const splits = decoding ? k.splitsFor({ ...SHAPE, kept: 16 }, step.sequences, step.pagesEach) : 1;
  const pageBytes = HEADS * pageLayout(HEAD_DIM, 16).bytes;
  const scale = 1 / Math.sqrt(SHAPE.headDim);
  const common = {
    ...SHAPE,
    kept: 16 as const,
    pages: step.pages,
    window: 0,
    scale,
    cache,
    pageBytes,
  };
  const product = (
    from: DevicePointer,
    columns: number,
    weights: DevicePointer,
    features: number,
    out: DevicePointer,
    beta: number,
  ) =>
    blas.gemm({
      m: rows,
      n: features,
      k: columns,
      batch: 1,
      type: "f16",
      outType: "f16",
      a: { pointer: from, stride: columns, transposed: false, batchStride: 0 },
      b: { pointer: weights, stride: columns, transposed: true, batchStride: 0 },
      c: { pointer: out, stride: features, batchStride: 0 },
      alpha: 1,
      beta,
    });
  return [
    ["norm", () => k.halfNorm(x, rows, HIDDEN, layer.gain, EPSILON, normed)],
    ["gemm qkv", () => product(normed, HIDDEN, layer.qkv, 3 * HIDDEN, a, 0)],
    [
      "heads",
      () =>
        k.queriesKeysValues({
          ...SHAPE,
          kept: 16,
          ...tablesOf(step),
          q: a,
          qStride: 3 * HIDDEN,
          k: a + HIDDEN * 2,
          v: a + 2 * HIDDEN * 2,
          kvStride: 3 * HIDDEN,
          halves: true,
          cosine: step.cosine,
          sine: step.sine,
          factors: clips,
          levels: 15,
          out: q,
          outHalves: !decoding,
          cache,
          pageBytes,
        }),
    ],
    [
      "attention",
      () => {
        if (decoding) {
          k.attendDecode({
            ...common,
            q,
            sequences: step.table,
            count: step.sequences,
            splits,
            partial,
          });
          k.joinSplits({
            partial,
            rows,
            heads: HEADS,
            headDim: HEAD_DIM,
            splits,
            out: b,
            halves: true,
          });
        } else
          k.attendPrefill({
            ...common,
            q,
            blocks: step.blocks,
            blockCount: step.blockCount,
            out: b,
            outHalves: true,
          });
      },
    ],
    ["gemm o", () => product(b, HIDDEN, layer.o, HIDDEN, x, 1)],
    ["norm", () => k.halfNorm(x, rows, HIDDEN, layer.gain, EPSILON, normed)],
    ["gemm gate_up", () => product(normed, HIDDEN, layer.gateUp, 2 * INTERMEDIATE, a, 0)],
    ["gated", () => k.halfGated(a, rows, INTERMEDIATE, b)],
    ["gemm down", () => product(b, INTERMEDIATE, layer.down, HIDDEN, x, 1)],
  ];
}
