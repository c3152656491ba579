/** What FlatQuant would learn in a block, from the model's sizes alone: the shapes that `initialParameters` fills. */
import type { LinearRole, ModelConfig, SiteName } from "../../../models/config.js";
import { linearShape } from "../../../models/weights.js";
import { diagFolds } from "../../fold.js";
import type { BlockPlan, SitePlan } from "../../method.js";
import type { Scheme } from "../../scheme.js";
import { kroneckerFactors, type Side } from "../../transforms/affine.js";
import { activeSites, siteSize } from "./parameters.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** @throws PlanishError for a site whose size has no transform. */
export function planBlock(
  config: ModelConfig,
  paths: Readonly<Partial<Record<LinearRole, string>>>,
  scheme: Scheme,
  recipe: FlatQuantRecipe,
): BlockPlan {
  const transforms: Partial<Record<SiteName, SitePlan>> = {};
  const parameters: Record<string, readonly number[]> = {};
  const matrix = (site: SiteName, side: Side, n: number): void => {
    if (recipe.parametrisation === "direct") parameters[`${site}.p${side}`] = [n, n];
    else {
      parameters[`${site}.u${side}`] = [n, n];
      parameters[`${site}.s${side}`] = [n];
      parameters[`${site}.v${side}`] = [n, n];
    }
  };
  const single = (site: SiteName, n: number): void => {
    transforms[site] = { factors: [n], diag: false };
    matrix(site, "", n);
  };
  const active = activeSites(scheme);
  if (active.linears) {
    for (const site of ["attn_in", "mlp_in", "mlp_down"] as const) {
      const size = siteSize(config, site);
      const [left, right] = kroneckerFactors(size, site);
      const diag = recipe.diag && diagFolds(config, site);
      transforms[site] = { factors: left > 1 ? [left, right] : [right], diag };
      if (left > 1) matrix(site, "_left", left);
      matrix(site, left > 1 ? "_right" : "", right);
      if (diag) parameters[`${site}.diag`] = [size];
    }
    single("attn_out", config.numHeads);
  }
  if (active.keys) single("k_head", config.headDim);
  if (active.values) single("v_head", config.headDim);
  for (const [role, path] of Object.entries(paths) as [LinearRole, string][]) {
    const shape = linearShape(config, role);
    if (recipe.weightClip && scheme.weightBits < 16)
      for (const bound of ["w_max", "w_min"]) parameters[`clip.${path}.${bound}`] = [shape[0], 1];
    if (recipe.activationClip && scheme.activationBits < 16)
      for (const bound of ["a_max", "a_min"]) parameters[`clip.${path}.${bound}`] = [1];
    if (recipe.learnedRounding.enabled && scheme.weightBits < 16)
      parameters[`round.${path}`] = shape;
  }
  if (recipe.kvClip && scheme.kvBits < 16)
    for (const part of ["k", "v"])
      for (const bound of ["a_max", "a_min"]) parameters[`clip.${part}.${bound}`] = [1];
  return { transforms, parameters };
}
