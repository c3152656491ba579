/** A static grid with one step for the whole tensor, large channels split over several columns. */
import type { Buffer } from "../../backend/contract/training.js";
import { PlanishError } from "../../common/errors.js";
import type { Graph, Tensor } from "../tensor.js";

export interface FlattenOptions {
  readonly bits: number;
  readonly step: number;
  /** Multiplies each channel first. */
  readonly factor?: Tensor;
  /** i32, one each per column beyond the channels' own. */
  readonly channel?: Buffer;
  readonly part?: Buffer;
  /** Counts values beyond the reach of their copies: `copies` (i32, one per channel) says how far that is. */
  readonly count?: { readonly copies: Buffer; readonly add: (clipped: number) => void };
}

/**
 * x [..., K] as codes [..., K + extras], value `step · code`. Source: docs/methods.md, flattenquant, Flattening. It is not
 * trained through: thresholds and splits are found from statistics.
 */
export function flattenRows(g: Graph, x: Tensor, options: FlattenOptions): Tensor {
  const { bits, step, factor, channel, part, count } = options;
  const { rows, cols } = x;
  const extras = channel?.length ?? 0;
  const stride = cols + extras;
  const codes = g.bytes(rows * stride);
  const scale = g.real(rows);
  const clipped = count && g.indices(new Int32Array(rows));
  g.kernels.flattenRows({
    x: g.values(x),
    rows,
    cols,
    bits,
    step,
    factor: factor && g.values(factor),
    extras,
    channel,
    part,
    stride,
    codes,
    scale,
    copies: count?.copies,
    clipped,
  });
  if (count && clipped) {
    let sum = 0;
    for (const value of g.backend.read(clipped)) sum += value;
    count.add(sum);
  }
  const noGradient = (): void => {
    throw new PlanishError("[flattenRows] has no gradient: static grids are found, not learned");
  };
  return g.result([...x.shape.slice(0, -1), stride], undefined, [x, factor], noGradient, {
    codes,
    scale,
    bits,
  });
}
