/**
 * FlatQuant's trainable parameters: which exist for a block under a recipe and scheme, how they start, and which
 * learning rate each gets. Names are `<site>.<part>` and `clip.<linear>.<bound>`, `round.<linear>`.
 */
import type { Random } from "../../../common/random.js";
import type { LinearRole, LinearSite, ModelConfig } from "../../../models/config.js";
import { LINEAR_SITES } from "../../../models/config.js";
import { linearShape, type HostBlock, type HostLinear } from "../../../models/weights.js";
import { diagFolds } from "../../fold.js";
import type { Scheme } from "../../scheme.js";
import { initMatrix, kroneckerFactors, type InitialValues } from "../../transforms/affine.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** Largest |activation| per channel at each linear site over the calibration set. */
export type SiteMaxima = Readonly<Record<LinearSite, Float64Array>>;

/** Which transforms a scheme needs. */
export function activeSites(scheme: Scheme): { linears: boolean; keys: boolean; values: boolean } {
  const linears = scheme.weightBits < 16 || scheme.activationBits < 16;
  const queries = (scheme.queryBits ?? 16) < 16;
  return { linears, keys: scheme.kvBits < 16 || queries, values: linears || scheme.kvBits < 16 };
}

const KRONECKER_SITES = ["attn_in", "mlp_in", "mlp_down"] as const;

/** Starting values of every parameter of a block. */
export function initialParameters(
  block: HostBlock,
  config: ModelConfig,
  scheme: Scheme,
  recipe: FlatQuantRecipe,
  maxima: SiteMaxima | undefined,
  random: Random,
): InitialValues {
  const values: InitialValues = new Map();
  const active = activeSites(scheme);
  if (active.linears)
    for (const site of KRONECKER_SITES) {
      const size = siteSize(config, site);
      const [left, right] = kroneckerFactors(size, site);
      if (left > 1) initMatrix(values, site, "_left", left, recipe.parametrisation, random);
      initMatrix(values, site, left > 1 ? "_right" : "", right, recipe.parametrisation, random);
      if (recipe.diag && maxima && diagFolds(config, site))
        values.set(`${site}.diag`, {
          shape: [size],
          data: initialDiag(linearsAt(block, site), maxima[site], recipe.diagAlpha),
        });
    }
  if (active.linears)
    initMatrix(values, "attn_out", "", config.numHeads, recipe.parametrisation, random);
  if (active.keys) initMatrix(values, "k_head", "", config.headDim, recipe.parametrisation, random);
  if (active.values)
    initMatrix(values, "v_head", "", config.headDim, recipe.parametrisation, random);
  const scalar = () => ({ shape: [1], data: Float64Array.of(recipe.clipInit) });
  for (const linear of Object.values(block.linears)) {
    const out = linear.weight.shape[0];
    if (recipe.weightClip && scheme.weightBits < 16)
      for (const bound of ["w_max", "w_min"])
        values.set(`clip.${linear.path}.${bound}`, {
          shape: [out, 1],
          data: new Float64Array(out).fill(recipe.clipInit),
        });
    if (recipe.activationClip && scheme.activationBits < 16)
      for (const bound of ["a_max", "a_min"]) values.set(`clip.${linear.path}.${bound}`, scalar());
    if (recipe.learnedRounding.enabled && scheme.weightBits < 16)
      values.set(`round.${linear.path}`, {
        shape: linear.weight.shape,
        data: new Float64Array(linear.weight.data.length),
      });
  }
  if (recipe.kvClip && scheme.kvBits < 16)
    for (const part of ["k", "v"])
      for (const bound of ["a_max", "a_min"]) values.set(`clip.${part}.${bound}`, scalar());
  return values;
}

/** Width of the activation at a linear site. */
export function siteSize(config: ModelConfig, site: LinearSite): number {
  const role = ({ attn_in: "q", attn_out: "o", mlp_in: "up", mlp_down: "down" } as const)[site];
  return linearShape(config, role)[1];
}

export function linearsAt(block: HostBlock, site: LinearSite): HostLinear[] {
  return LINEAR_SITES[site].flatMap((role: LinearRole) => block.linears[role] ?? []);
}

/** d_j = max_n|W[n,j]|^(1−α) / max_t|X[t,j]|^α, floor 1e-5 (spec/flatquant.md, Diag initialisation). */
export function initialDiag(
  linears: readonly HostLinear[],
  activationMax: Float64Array,
  alpha: number,
): Float64Array {
  const cols = activationMax.length;
  const weightMax = new Float64Array(cols);
  for (const { weight } of linears)
    for (let i = 0; i < weight.data.length; i++) {
      const value = Math.abs(weight.data[i]);
      const j = i % cols;
      if (value > weightMax[j]) weightMax[j] = value;
    }
  return Float64Array.from(weightMax, (w, j) =>
    Math.max(Math.max(w, 1e-5) ** (1 - alpha) / Math.max(activationMax[j], 1e-5) ** alpha, 1e-5),
  );
}
