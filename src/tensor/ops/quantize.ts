/** Fake quantization: symmetric rows and groups, groups with offsets (activations, weights), asymmetric rows (KV cache), learned row clipping. */
import { PlanishError } from "../../common/errors.js";
import type { Graph, Tensor } from "../tensor.js";

/** A pair of clipping logits; the factor is σ(logit). */
export interface ClipPair {
  readonly max: Tensor;
  readonly min: Tensor;
}

export interface QuantizeRowsOptions {
  readonly bits: number;
  /** Consecutive columns that share a scale (default: the row). */
  readonly group?: number;
  /** Scalar clipping logits (activations). */
  readonly clip?: ClipPair;
  /** Smallest scale; 0 means "a zero row gets scale 1". */
  readonly scaleFloor?: number;
  /** Learned rounding offset in [−½, ½], same shape as x. */
  readonly offset?: Tensor;
}

/**
 * Symmetric grid with one scale per row or group; the result carries codes. Bits ≤ 8.
 * Source: docs/methods.md, Grids (paper section 3.3).
 */
export function quantizeRows(g: Graph, x: Tensor, options: QuantizeRowsOptions): Tensor {
  const { bits, clip, offset, group } = options;
  if (bits > 8 || bits < 2)
    throw new PlanishError(`[quantizeRows] ${bits} bits; integer codes hold 2 to 8`);
  const { rows, cols } = groupRows(x, group, "quantizeRows");
  const scaleFloor = options.scaleFloor ?? 0;
  const input = g.values(x);
  const codes = g.bytes(rows * cols);
  const scale = g.real(rows);
  const shared = {
    x: input,
    rows,
    cols,
    bits,
    clipMax: clip && g.values(clip.max),
    clipMin: clip && g.values(clip.min),
    scaleFloor,
    offset: offset && g.values(offset),
    codes,
    scale,
  };
  g.kernels.quantizeRows(shared);
  return g.result(
    x.shape,
    undefined,
    [x, clip?.max, clip?.min, offset],
    (grad) => {
      const gradX = g.gradientFor(x);
      const gradClipMax = g.gradientFor(clip?.max);
      const gradClipMin = g.gradientFor(clip?.min);
      const gradOffset = g.gradientFor(offset);
      g.kernels.quantizeRowsBackward({
        ...shared,
        grad,
        gradX,
        gradClipMax,
        gradClipMin,
        gradOffset,
      });
      g.accumulate(x, gradX);
      g.accumulate(clip?.max, gradClipMax);
      g.accumulate(clip?.min, gradClipMin);
      g.accumulate(offset, gradOffset);
    },
    { codes, scale, bits, group },
  );
}

/** Groups of a tensor's rows as rows of their own, which they are in memory. @throws PlanishError where they don't fit. */
function groupRows(
  { rows, cols }: Tensor,
  group: number | undefined,
  what: string,
): { rows: number; cols: number } {
  if (group === undefined) return { rows, cols };
  if (cols % group !== 0)
    throw new PlanishError(`[${what}] groups of ${group} do not divide rows of ${cols}`);
  return { rows: (rows * cols) / group, cols: group };
}

export interface QuantizeOffsetOptions {
  readonly bits: number;
  /** Consecutive columns that share a scale and an offset (default: the row). */
  readonly group?: number;
  readonly clip?: ClipPair;
  /** Learned rounding, same shape as x. */
  readonly shift?: Tensor;
}

/** Grid with a scale and a real offset per row or group. Source: docs/methods.md, Grids. */
export function quantizeOffset(g: Graph, x: Tensor, options: QuantizeOffsetOptions): Tensor {
  const { bits, group, clip, shift } = options;
  const out = g.real(x.size);
  const shared = {
    x: g.values(x),
    ...groupRows(x, group, "quantizeOffset"),
    bits,
    clipMax: clip && g.values(clip.max),
    clipMin: clip && g.values(clip.min),
    shift: shift && g.values(shift),
  };
  g.kernels.fakeQuantizeOffset({ ...shared, out });
  return g.result(x.shape, out, [x, clip?.max, clip?.min, shift], (grad) => {
    const gradX = g.gradientFor(x) ?? g.real(x.size);
    const gradClipMax = g.gradientFor(clip?.max);
    const gradClipMin = g.gradientFor(clip?.min);
    const gradShift = g.gradientFor(shift);
    g.kernels.fakeQuantizeOffsetBackward({
      ...shared,
      grad,
      gradX,
      gradClipMax,
      gradClipMin,
      gradShift,
    });
    g.accumulate(x, gradX);
    g.accumulate(clip?.max, gradClipMax);
    g.accumulate(clip?.min, gradClipMin);
    g.accumulate(shift, gradShift);
  });
}

/** Asymmetric grid, one scale and zero per row of `cols` values (token × KV head). */
export function fakeQuantizeAsym(
  g: Graph,
  x: Tensor,
  options: { bits: number; cols?: number; clip?: ClipPair },
): Tensor {
  const { bits, clip } = options;
  const cols = options.cols ?? x.cols;
  const rows = x.size / cols;
  const out = g.real(x.size);
  const shared = {
    x: g.values(x),
    rows,
    cols,
    bits,
    clipMax: clip && g.values(clip.max),
    clipMin: clip && g.values(clip.min),
  };
  g.kernels.fakeQuantizeAsym({ ...shared, out });
  return g.result(x.shape, out, [x, clip?.max, clip?.min], (grad) => {
    const gradX = g.gradientFor(x) ?? g.real(x.size);
    const gradClipMax = g.gradientFor(clip?.max);
    const gradClipMin = g.gradientFor(clip?.min);
    g.kernels.fakeQuantizeAsymBackward({ ...shared, grad, gradX, gradClipMax, gradClipMin });
    g.accumulate(x, gradX);
    g.accumulate(clip?.max, gradClipMax);
    g.accumulate(clip?.min, gradClipMin);
  });
}

/**
 * Clamps each row, or each group of its columns, to [min·σ(c_min), max·σ(c_max)] of its own; there are as many logits as
 * rows or groups.
 */
export function clipRows(g: Graph, x: Tensor, clip: ClipPair, group?: number): Tensor {
  const { rows, cols } = groupRows(x, group, "clipRows");
  if (clip.max.size !== rows || clip.min.size !== rows)
    throw new PlanishError(
      `[clipRows] ${rows} rows need as many logits, got ${clip.max.size} and ${clip.min.size}`,
    );
  const out = g.real(x.size);
  const shared = {
    x: g.values(x),
    rows,
    cols,
    clipMax: g.values(clip.max),
    clipMin: g.values(clip.min),
  };
  g.kernels.clipRows({ ...shared, out });
  return g.result(x.shape, out, [x, clip.max, clip.min], (grad) => {
    const gradX = g.gradientFor(x) ?? g.real(x.size);
    const gradClipMax = g.gradientFor(clip.max);
    const gradClipMin = g.gradientFor(clip.min);
    g.kernels.clipRowsBackward({ ...shared, grad, gradX, gradClipMax, gradClipMin });
    g.accumulate(x, gradX);
    g.accumulate(clip.max, gradClipMax);
    g.accumulate(clip.min, gradClipMin);
  });
}
