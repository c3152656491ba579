/** How far operands reach into their buffers: what every backend checks before a kernel runs. */
import type { HeadLayout } from "./training-kernels.js";

/** One past the last element that a batch of rows×cols matrices touches. */
export function matrixExtent(
  rows: number,
  cols: number,
  offset: number,
  stride: number,
  batch: number,
  batchStride: number,
): number {
  if (rows === 0 || cols === 0 || batch === 0) return 0;
  return offset + (batch - 1) * batchStride + (rows - 1) * stride + cols;
}

/** Elements a tensor in this layout reaches into its buffer. */
export function headExtent(
  layout: HeadLayout,
  batch: number,
  time: number,
  heads: number,
  headDim: number,
): number {
  if (batch * time * heads === 0) return 0;
  return (
    (batch - 1) * layout.batchStride +
    (time - 1) * layout.timeStride +
    (heads - 1) * layout.headStride +
    headDim
  );
}
