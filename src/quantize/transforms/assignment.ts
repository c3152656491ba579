/** A block's transforms from sizes alone: what `planish inspect` shows before any run. */
import { siteNamed, type BlockProgram, type SiteName } from "../../backend/contract/program.js";
import { diagFolds } from "./stored-precision.js";
import type { BlockPlan, SitePlan } from "../schema/method.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import type { Parametrisation } from "./affine.js";
import { activeSites, kroneckerSites, matrixPlaces } from "./sites.js";

export interface TransformKinds {
  /** How the matrices at every place are held; absent: there are none. */
  readonly matrices?: Parametrisation | "orthogonal";
  /** Channels that one matrix serves, run by run (default: Kronecker pairs over all). */
  readonly blockSize?: number;
  /** A factor per channel at every site where it folds. */
  readonly diag?: boolean;
}

/** Transforms and their parameters, by the names that `bindTransform` reads. @throws PlanishError as `matrixPlaces` */
export function planTransforms(
  program: BlockProgram,
  scheme: Scheme,
  { matrices, blockSize, diag }: TransformKinds,
): BlockPlan {
  const transforms: Partial<Record<SiteName, SitePlan>> = {};
  const parameters: Record<string, readonly number[]> = {};
  for (const { site, side, size } of matrices ? matrixPlaces(program, scheme, blockSize) : []) {
    const factors = [...(transforms[site]?.factors ?? []), size];
    transforms[site] = { factors, diag: false };
    if (matrices === "direct") parameters[`${site}.p${side}`] = [size, size];
    else if (matrices === "orthogonal") {
      parameters[`${site}.r${side}`] = [size, size];
      parameters[`${site}.q${side}`] = [size, size];
    } else {
      parameters[`${site}.u${side}`] = [size, size];
      parameters[`${site}.s${side}`] = [size];
      parameters[`${site}.v${side}`] = [size, size];
    }
  }
  if (diag && activeSites(scheme).linears)
    for (const site of kroneckerSites(program))
      if (diagFolds(program, site)) {
        transforms[site] = { factors: transforms[site]?.factors ?? [], diag: true };
        parameters[`${site}.diag`] = [siteNamed(program, site).width];
      }
  return { transforms, parameters };
}
