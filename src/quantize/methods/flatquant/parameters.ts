/**
 * FlatQuant's trainable parameters: which exist for a block under a recipe and scheme, how they start, and which
 * learning rate each gets. Names are `<site>.<part>` and `clip.<linear>.<bound>`, `round.<linear>`.
 */
import type { Random } from "../../../common/random.js";
import { siteNamed, type BlockProgram } from "../../../backend/contract/program.js";
import type { KeyBalance } from "../../../backend/contract/packed.js";
import type { HostBlock } from "../../../models/weights.js";
import type { SiteMaxima } from "../../calibration/maxima.js";
import { diagFolds } from "../../transforms/stored-precision.js";
import type { Scheme } from "../../../backend/contract/scheme.js";
import { initMatrix, type InitialValues } from "../../transforms/affine.js";
import { weightClipShape } from "../../grids/groups.js";
import { balancingDiag } from "../../transforms/diag.js";
import { setBalance } from "../../transforms/key-balance.js";
import { activeSites, kroneckerSites, linearsAt, matrixPlaces } from "../../transforms/sites.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** Starting values of every parameter of a block. */
export function initialParameters(
  block: HostBlock,
  program: BlockProgram,
  scheme: Scheme,
  recipe: FlatQuantRecipe,
  maxima: SiteMaxima | undefined,
  random: Random,
  balance?: KeyBalance,
): InitialValues {
  const values: InitialValues = new Map();
  for (const { site, side, size } of matrixPlaces(program, scheme, recipe.blockSize))
    initMatrix(values, site, side, size, recipe.parametrisation, random);
  if (recipe.diag && maxima && activeSites(scheme).linears)
    for (const site of kroneckerSites(program))
      if (diagFolds(program, site))
        values.set(`${site}.diag`, {
          shape: [siteNamed(program, site).width],
          data: balancingDiag(linearsAt(program, block, site), maxima[site], recipe.diagAlpha),
        });
  const scalar = () => ({ shape: [1], data: Float64Array.of(recipe.clipInit) });
  for (const linear of Object.values(block.linears)) {
    const shape = weightClipShape(linear.weight.shape, scheme);
    if (recipe.weightClip && scheme.weightBits < 16)
      for (const bound of ["w_max", "w_min"])
        values.set(`clip.${linear.path}.${bound}`, {
          shape,
          data: new Float64Array(shape[0] * shape[1]).fill(recipe.clipInit),
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
  if (balance) setBalance(values, balance);
  return values;
}
