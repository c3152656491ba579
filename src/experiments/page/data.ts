/** What the page of a report draws: one JSON document inside the HTML file, read by assets/report/page.js. */

/** Channel magnitudes of a tensor, largest first. */
export interface Magnitudes {
  /** Multiples of the mean, at `CURVE_POINTS` places that lie dense at the beginning (`curvePlace`). */
  readonly curve: readonly number[];
  /** Number of channels. */
  readonly channels: number;
  /** How far the curve is from its mean: root mean square of the distance over the mean; 0 is flat. */
  readonly flatness: number;
}

/** How values spread over the levels of their grid. */
export interface Distribution {
  readonly bits: number;
  /** Share of all values in each bin; bins are equally wide. */
  readonly shares: readonly number[];
  /** Where the first bin begins and the last ends, in steps of the grid. */
  readonly range: readonly [number, number];
}

export interface SiteView {
  readonly activations: Magnitudes;
  readonly weights: Magnitudes;
  /** Absent where the scheme keeps 16 bits. */
  readonly activationGrid?: Distribution;
  readonly weightGrid?: Distribution;
}

export interface MethodView {
  readonly name: string;
  /** After the method's transform, by layer and site; absent without artifact or source. */
  readonly sites?: readonly (readonly SiteView[])[];
  /** Relative error of each site's outputs where the block reads full-precision states, by layer and site. */
  readonly siteErrors?: readonly (readonly number[])[];
  /** The same of each block's output. */
  readonly blockErrors?: readonly number[];
  /** Relative error of states through the whole model, after each block. */
  readonly depth?: readonly number[];
  /** Mean loss of each epoch, by block; empty for methods that learn nothing. */
  readonly epochLoss?: readonly (readonly number[])[];
  /** By block: mean squared error rounded to nearest, and at the end. */
  readonly roundedError?: readonly number[];
  readonly finalError?: readonly number[];
}

/** A method on the plane of divergence against size and speed; the model as it is has none of either. */
export interface PlaneView {
  readonly name: string;
  readonly kl: number;
  readonly perplexity?: number;
  readonly bytes: number;
  readonly decode?: number;
  readonly best: readonly ("size" | "speed")[];
}

/** A task's customary metric for one method. */
export interface TaskView {
  readonly name: string;
  readonly task: string;
  readonly value: number;
}

export interface PageData {
  readonly plane?: readonly PlaneView[];
  readonly tasks?: readonly TaskView[];
  readonly siteNames: readonly string[];
  readonly layers: number;
  /** Of the model as it is, by layer and site, with plain grids. */
  readonly before?: readonly (readonly SiteView[])[];
  readonly methods: readonly MethodView[];
}

export const CURVE_POINTS = 64;

/** Which of `channels` sorted values stands at a point of a curve. */
export function curvePlace(point: number, channels: number): number {
  return Math.round((point / (CURVE_POINTS - 1)) ** 2 * (channels - 1));
}
