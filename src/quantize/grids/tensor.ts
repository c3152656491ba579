/**
 * Static grids with one step for a whole tensor: the weight of a linear and the activation it reads, known before the
 * model runs. With Q = 2^(b−1) − 1 a threshold T gives the step T/Q and codes in [−Q, Q].
 * Source: docs/methods.md, flattenquant, Grids.
 */
import type { ParameterValues } from "../schema/parameters.js";
import { NO_SPLIT, type ChannelSplit } from "../transforms/split.js";

/** Grids of one linear. */
export interface TensorGrid {
  readonly weightBits: number;
  readonly activationBits: number;
  /** Largest magnitude that the weight's, and the activation's, grid holds. */
  readonly weightThreshold: number;
  readonly activationThreshold: number;
  readonly split: ChannelSplit;
}

/** T/Q in single precision: what is kept and run. A tensor of zeros gets the step 1. */
export function gridStep(threshold: number, bits: number): number {
  return Math.fround(Math.fround(threshold) / (2 ** (bits - 1) - 1)) || 1;
}

const parts = ["bits", "thresholds", "channel", "part", "weight_part"] as const;

/** A block's parameters that say a linear's grids: `grid.<path>.<part>`. */
export function gridParameters(path: string, grid: TensorGrid): ParameterValues {
  const { split } = grid;
  const values = new Map<string, { shape: readonly number[]; data: Float64Array }>();
  const put = (part: (typeof parts)[number], data: ArrayLike<number>): void => {
    values.set(`grid.${path}.${part}`, { shape: [data.length], data: Float64Array.from(data) });
  };
  put("bits", [grid.weightBits, grid.activationBits]);
  put("thresholds", [Math.fround(grid.weightThreshold), Math.fround(grid.activationThreshold)]);
  if (split.channel.length > 0) {
    put("channel", split.channel);
    put("part", split.part);
    put("weight_part", split.weightPart);
  }
  return values;
}

/** The grids that a block's parameters give a linear, if any; `read` returns a parameter's values by name. */
export function readTensorGrid(
  path: string,
  read: (name: string) => ArrayLike<number> | undefined,
): TensorGrid | undefined {
  const [bits, thresholds, channel, part, weightPart] = parts.map((name) =>
    read(`grid.${path}.${name}`),
  );
  if (!bits || !thresholds) return undefined;
  return {
    weightBits: bits[0],
    activationBits: bits[1],
    weightThreshold: thresholds[0],
    activationThreshold: thresholds[1],
    split:
      channel && part && weightPart
        ? {
            channel: Int32Array.from(channel),
            part: Int32Array.from(part),
            weightPart: Int32Array.from(weightPart),
          }
        : NO_SPLIT,
  };
}
