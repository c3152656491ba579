/** Windows of calibration text, and activations that travel from block to block. */
import { PlanishError } from "../../common/errors.js";
import { Random } from "../../common/random.js";

/** Token windows, row-major [samples, time]. */
export interface TokenWindows {
  readonly ids: Int32Array;
  readonly samples: number;
  readonly time: number;
}

/**
 * Random windows of a tokenized text: starts are drawn uniformly, the same for the same seed.
 * @throws PlanishError when the text is shorter than two windows: random windows of it would all be the same.
 */
export function randomWindows(
  tokens: Int32Array,
  samples: number,
  time: number,
  seed: number,
): TokenWindows {
  if (tokens.length < 2 * time)
    throw new PlanishError(
      `calibration text is too short: ${tokens.length} tokens, but windows of ${time} need at least ${2 * time}; give a longer text or a smaller --seq-len`,
    );
  const random = Random.for(seed, "windows");
  const ids = new Int32Array(samples * time);
  for (let s = 0; s < samples; s++) {
    const start = random.below(tokens.length - time);
    ids.set(tokens.subarray(start, start + time), s * time);
  }
  return { ids, samples, time };
}

/** Hidden states of the calibration set on the host, [samples, time, hidden]. */
export interface Activations {
  readonly data: Float32Array;
  readonly samples: number;
  readonly time: number;
  readonly hidden: number;
  /** Of states that several runs share and that never change: what was found out about them, by name. */
  readonly statistics?: Map<string, Readonly<Record<string, Float64Array>>>;
}

/** A range of samples, as a view. */
export function sampleRange(a: Activations, first: number, count: number): Float32Array {
  const size = a.time * a.hidden;
  return a.data.subarray(first * size, (first + count) * size);
}
