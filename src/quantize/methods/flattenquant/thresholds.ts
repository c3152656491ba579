/**
 * Truncation thresholds and the expansion they cause. Source: docs/methods.md, flattenquant, Threshold and Flattening: drop Tukey's outliers
 * from the channel maxima, T = β · mean of the rest, one T for the activation and one for the weight; where K'/K would
 * exceed its cap, both are raised by a common factor until it holds.
 */
import {
  columnsNeeded,
  copiesNeeded,
  splitChannels,
  type ChannelSplit,
} from "../../transforms/split.js";

export interface Flattening {
  readonly activationThreshold: number;
  readonly weightThreshold: number;
  readonly split: ChannelSplit;
  /** Channels with more than one copy on each side. */
  readonly splitActivations: number;
  readonly splitWeights: number;
  /** K'/K. */
  readonly expansion: number;
  /** What the cap multiplied both thresholds with; 1 where it did nothing. */
  readonly capFactor: number;
}

/** Largest value that is no outlier to Tukey: Q3 + 1.5·IQR, quartiles interpolated linearly. */
export function tukeyFence(values: Float64Array): number {
  const sorted = Float64Array.from(values).sort();
  const quantile = (q: number): number => {
    const at = q * (sorted.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
  };
  const [first, third] = [quantile(0.25), quantile(0.75)];
  return third + 1.5 * (third - first);
}

/** How many values are outliers to Tukey. */
export function countOutliers(values: Float64Array): number {
  const fence = tukeyFence(values);
  return values.reduce((count, value) => count + (value > fence ? 1 : 0), 0);
}

/** β times the mean of the channel maxima without outliers; no more than the largest, which needs no splitting. */
export function truncationThreshold(maxima: Float64Array, beta: number): number {
  const fence = tukeyFence(maxima);
  const rest = maxima.filter((max) => max <= fence);
  const mean = rest.reduce((sum, max) => sum + max, 0) / rest.length;
  const largest = maxima.reduce((a, b) => Math.max(a, b), 0);
  // Channels that are all zero but for outliers would ask for endless copies; the cap decides then.
  return mean > 0 ? Math.min(beta * mean, largest) : largest;
}

/** A float32 no smaller than the value: rounded down, the largest channel would ask for one more copy of nothing. */
function floatAbove(value: number): number {
  const nearest = Math.fround(value);
  return nearest >= value ? nearest : Math.fround(value * (1 + 2 ** -23));
}

/** Both sides' thresholds and the columns that follow from them. */
export function flatten(
  activation: Float64Array,
  weight: Float64Array,
  { beta, maxExpansion }: { readonly beta: number; readonly maxExpansion: number },
): Flattening {
  const most = (values: Float64Array) => values.reduce((a, b) => Math.max(a, b), 0);
  const [startX, startW] = [
    truncationThreshold(activation, beta),
    truncationThreshold(weight, beta),
  ];
  const channels = activation.length;
  const at = (factor: number) => {
    // Zero maxima have zero thresholds: any positive one serves.
    const x = floatAbove(Math.min(startX * factor, most(activation)) || 1);
    const w = floatAbove(Math.min(startW * factor, most(weight)) || 1);
    return { x, w, copiesX: copiesNeeded(activation, x), copiesW: copiesNeeded(weight, w) };
  };
  const fits = (factor: number): boolean => {
    const { copiesX, copiesW } = at(factor);
    return columnsNeeded(copiesX, copiesW) <= maxExpansion * channels;
  };
  let capFactor = 1;
  if (!fits(1)) {
    // No channel is split at the largest maximum, so there the cap holds whatever it is.
    let low = 1;
    let high = Math.max(most(activation) / (startX || 1), most(weight) / (startW || 1), 1);
    while (high / low > 1 + 1e-4) {
      const middle = Math.sqrt(low * high);
      if (fits(middle)) high = middle;
      else low = middle;
    }
    capFactor = high;
  }
  const { x, w, copiesX, copiesW } = at(capFactor);
  const split = splitChannels(copiesX, copiesW);
  const several = (copies: Int32Array) => copies.reduce((sum, m) => sum + (m > 1 ? 1 : 0), 0);
  return {
    activationThreshold: x,
    weightThreshold: w,
    split,
    splitActivations: several(copiesX),
    splitWeights: several(copiesW),
    expansion: 1 + split.channel.length / channels,
    capFactor,
  };
}
