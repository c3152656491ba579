/**
 * Which layers run at 4 bits. Source: docs/methods.md, flattenquant, Bits: KL divergence between the histogram of the flattened
 * tensor and of its quantized self, at 4 and at 8 bits, for activation and weight; 4 bits where KL₄/KL₈ of the worse side
 * is below γ.
 */
import {
  countValue,
  emptyHistogram,
  gridDivergence,
  type GridHistogram,
} from "../../grids/divergence.js";
import { copiesOf } from "../../transforms/split.js";
import type { Flattening } from "./thresholds.js";

export interface SideDivergence {
  readonly kl4: number;
  readonly kl8: number;
}

/**
 * How much worse 4 bits are than 8. "ratio": KL₄/KL₈, infinite where 8 bits lose nothing and 4 bits do, 0 where neither
 * does. "excess": KL₄ − KL₈, in which the sampling noise that both histograms share cancels.
 */
export function compareBits({ kl4, kl8 }: SideDivergence, criterion: "ratio" | "excess"): number {
  if (criterion === "excess") return kl4 - kl8;
  return kl4 === 0 ? 0 : kl4 / kl8;
}

/** How a linear's bits are chosen by its block alone; criterion "model" needs all blocks (choose.ts). */
export type Criterion = "ratio" | "excess" | "output";

/** Counts rows of one side's tensor as its flattened self: every copy, once for each copy of the other side. */
export class FlattenedHistogram {
  private readonly histogram: GridHistogram;
  private readonly copies: Int32Array;
  private readonly times: Int32Array;

  constructor(
    private readonly channels: number,
    { split, activationThreshold, weightThreshold }: Flattening,
    side: "activation" | "weight",
  ) {
    const { channel, part, weightPart } = split;
    const [own, other] = side === "activation" ? [part, weightPart] : [weightPart, part];
    this.copies = copiesOf(channels, channel, own);
    this.times = copiesOf(channels, channel, other);
    this.histogram = emptyHistogram(side === "activation" ? activationThreshold : weightThreshold);
  }

  /** `x`: rows of `channels` values, of which one in `every` is counted; `factor` multiplies each channel first. */
  add(x: ArrayLike<number>, factor?: ArrayLike<number>, every = 1): void {
    const { channels, copies, times, histogram } = this;
    const { threshold } = histogram;
    for (let i = 0, j = 0; i < x.length; i++) {
      const value = factor ? x[i] * factor[j] : x[i];
      if (copies[j] === 1) countValue(histogram, value, times[j]);
      else
        for (let p = 0; p < copies[j]; p++) {
          const size = Math.min(Math.max(Math.abs(value) - p * threshold, 0), threshold);
          countValue(histogram, value < 0 ? -size : size, times[j]);
        }
      if (++j < channels) continue;
      j = 0;
      i += (every - 1) * channels;
    }
  }

  divergence(): SideDivergence {
    return { kl4: gridDivergence(this.histogram, 4), kl8: gridDivergence(this.histogram, 8) };
  }
}

export interface BitChoice {
  readonly bits: 4 | 8;
  /** In words: what decided. */
  readonly rule: string;
}

/** `added`: what the layer at 4 bits adds to its block's relative error, for the criterion that asks. */
export function chooseBits(
  activation: SideDivergence,
  weight: SideDivergence,
  added: () => number,
  { criterion, gamma }: { readonly criterion: Criterion; readonly gamma: number },
): BitChoice {
  const [name, value] = judge(activation, weight, added, criterion);
  const rule = `${name} ${value.toPrecision(3)}`;
  return value < gamma
    ? { bits: 4, rule: `${rule} < ${gamma}` }
    : { bits: 8, rule: `${rule} ≥ ${gamma}` };
}

function judge(
  activation: SideDivergence,
  weight: SideDivergence,
  added: () => number,
  criterion: Criterion,
): [string, number] {
  if (criterion === "output") return ["output", added()];
  const [x, w] = [compareBits(activation, criterion), compareBits(weight, criterion)];
  return x >= w ? [`${criterion} of X`, x] : [`${criterion} of W`, w];
}
