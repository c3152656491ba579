/**
 * The parameters of a block: what each is, and what it is called. Journals, kept parameters and `quantization.json` list
 * them by these names; everything else asks for the record.
 */
import type { RealArray } from "../../backend/contract/training.js";
import { PlanishError } from "../../common/errors.js";

/** Values on the host, by name. */
export type ParameterValues = ReadonlyMap<
  string,
  { readonly shape: readonly number[]; readonly data: RealArray }
>;

/** One of a Kronecker pair's matrices, or the only one. */
export type Side = "" | "_left" | "_right";

/**
 * What a matrix is held by: P itself (`p`), the seeds and singular values of U·diag(s)·Vᵀ (`u`, `s`, `v`), or a fixed start
 * and the seed of an orthogonal matrix (`r`, `q`).
 */
export type MatrixPart = "p" | "u" | "s" | "v" | "r" | "q";

export type Parameter =
  | {
      readonly kind: "matrix";
      readonly site: string;
      readonly part: MatrixPart;
      readonly side: Side;
    }
  /**
   * Per channel of a site's activation: a factor that folds (`diag`; of keys, one that runs) or that static grids apply
   * (`factor`), or what is taken off before (`shift`, of keys).
   */
  | { readonly kind: "diag" | "factor" | "shift"; readonly site: string }
  /** A clipping logit of a linear's weight or activation, or of the cache's keys ("k") and values ("v"). */
  | {
      readonly kind: "clip";
      readonly of: string;
      readonly target: "w" | "a";
      readonly bound: "max" | "min";
    }
  /** Rounding offsets of a linear, by its path. */
  | { readonly kind: "round"; readonly of: string }
  /** A part of a linear's static grids, by its path. */
  | { readonly kind: "grid"; readonly of: string; readonly part: string };

const MATRIX = /^(.+)\.([pusvrq])(|_left|_right)$/;
const CHANNELS = /^(.+)\.(diag|factor|shift)$/;
const CLIP = /^clip\.(.+)\.([wa])_(max|min)$/;
const GRID = /^grid\.(.+)\.([a-z_]+)$/;

/** @throws PlanishError for a name that no parameter has. */
export function parameterOf(name: string): Parameter {
  const clip = CLIP.exec(name);
  if (clip)
    return {
      kind: "clip",
      of: clip[1],
      target: clip[2] as "w" | "a",
      bound: clip[3] as "max" | "min",
    };
  const grid = GRID.exec(name);
  if (grid) return { kind: "grid", of: grid[1], part: grid[2] };
  if (name.startsWith("round.")) return { kind: "round", of: name.slice("round.".length) };
  const channels = CHANNELS.exec(name);
  if (channels) return { kind: channels[2] as "diag" | "factor" | "shift", site: channels[1] };
  const matrix = MATRIX.exec(name);
  // "clip.q" is an incomplete clip, not a matrix.
  if (matrix && !/^(clip|grid)(\.|$)/.test(matrix[1]))
    return {
      kind: "matrix",
      site: matrix[1],
      part: matrix[2] as MatrixPart,
      side: matrix[3] as Side,
    };
  throw new PlanishError(
    `"${name}" is no parameter; names are <site>.<p|u|s|v|r|q>[_left|_right], <site>.diag, <site>.factor, <site>.shift, clip.<path>.<w|a>_<max|min>, round.<path> and grid.<path>.<part>`,
  );
}

/** The inverse of `parameterOf`. */
export function parameterName(parameter: Parameter): string {
  switch (parameter.kind) {
    case "matrix":
      return `${parameter.site}.${parameter.part}${parameter.side}`;
    case "diag":
    case "factor":
    case "shift":
      return `${parameter.site}.${parameter.kind}`;
    case "clip":
      return `clip.${parameter.of}.${parameter.target}_${parameter.bound}`;
    case "round":
      return `round.${parameter.of}`;
    case "grid":
      return `grid.${parameter.of}.${parameter.part}`;
  }
}

/** What reports count parameters under: their site, "clip", "round" or "grid". */
export function parameterGroup(name: string): string {
  const parameter = parameterOf(name);
  return "site" in parameter ? parameter.site : parameter.kind;
}
