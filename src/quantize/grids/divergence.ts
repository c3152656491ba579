/**
 * How much of a tensor's distribution a uniform grid loses: the KL divergence between its histogram and that of its
 * quantized self. Source: docs/methods.md, flattenquant, Bits; the comparison bin by bin is that of TensorRT's calibration
 * (Migacz, "8-bit Inference with TensorRT", GTC 2017).
 *
 * A grid knows of a value only its level, so the quantized tensor's mass at a level is spread evenly over the level's
 * non-empty bins. Values that every grid of this range holds exactly (zero, and ±T, where split channels leave most of
 * their copies) are counted apart: both distributions have them alike, and they add nothing.
 */

/** Bins over [−T, T]: sixteen for each level of 8 bits. */
export const HISTOGRAM_BINS = 4096;

export interface GridHistogram {
  /** The range [−threshold, threshold]. */
  readonly threshold: number;
  readonly counts: Float64Array;
  /** Values that are exactly 0, T or −T. */
  exact: number;
}

export function emptyHistogram(threshold: number): GridHistogram {
  return { threshold, counts: new Float64Array(HISTOGRAM_BINS), exact: 0 };
}

/** Counts a value `times` times; beyond the threshold it counts as ±T. */
export function countValue(histogram: GridHistogram, value: number, times: number): void {
  const { threshold, counts } = histogram;
  if (value === 0 || value >= threshold || value <= -threshold) histogram.exact += times;
  else counts[Math.floor(((value / threshold + 1) / 2) * HISTOGRAM_BINS)] += times;
}

/** KL(tensor ‖ tensor on the symmetric grid of `bits` over the same range), nats; 0 for a tensor of exact values only. */
export function gridDivergence({ counts, exact }: GridHistogram, bits: number): number {
  const top = 2 ** (bits - 1) - 1;
  const levels = 2 * top + 1;
  const mass = new Float64Array(levels);
  const filled = new Float64Array(levels);
  const levelOf = (bin: number): number =>
    // The bin's middle in steps, rounded; bins are so narrow that none straddles two levels by more than a half bin.
    Math.round((((bin + 0.5) / HISTOGRAM_BINS) * 2 - 1) * top) + top;
  let total = exact;
  for (let bin = 0; bin < HISTOGRAM_BINS; bin++) {
    if (counts[bin] === 0) continue;
    const level = levelOf(bin);
    mass[level] += counts[bin];
    filled[level]++;
    total += counts[bin];
  }
  if (total === 0) return 0;
  let sum = 0;
  for (let bin = 0; bin < HISTOGRAM_BINS; bin++) {
    if (counts[bin] === 0) continue;
    const level = levelOf(bin);
    sum += counts[bin] * Math.log((counts[bin] * filled[level]) / mass[level]);
  }
  return Math.max(0, sum / total);
}
