/** What FlatQuant would learn in a block, from the model's sizes alone: the shapes that `initialParameters` fills. */
import { cacheOf, type BlockProgram } from "../../../backend/contract/program.js";
import type { BlockPlan } from "../../schema/method.js";
import type { Scheme } from "../../../backend/contract/scheme.js";
import { weightClipShape } from "../../grids/groups.js";
import { balanceShapes } from "../../transforms/key-balance.js";
import { planTransforms } from "../../transforms/assignment.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** @throws PlanishError for a site whose size has no transform. */
export function planBlock(
  program: BlockProgram,
  scheme: Scheme,
  recipe: FlatQuantRecipe,
): BlockPlan {
  const { transforms, parameters: small } = planTransforms(program, scheme, {
    matrices: recipe.parametrisation,
    blockSize: recipe.blockSize,
    diag: recipe.diag,
  });
  const parameters: Record<string, readonly number[]> = { ...small };
  for (const { path, shape } of Object.values(program.linears)) {
    if (recipe.weightClip && scheme.weightBits < 16)
      for (const bound of ["w_max", "w_min"])
        parameters[`clip.${path}.${bound}`] = weightClipShape(shape, scheme);
    if (recipe.activationClip && scheme.activationBits < 16)
      for (const bound of ["a_max", "a_min"]) parameters[`clip.${path}.${bound}`] = [1];
    if (recipe.learnedRounding.enabled && scheme.weightBits < 16)
      parameters[`round.${path}`] = shape;
  }
  if (recipe.kvClip && scheme.kvBits < 16)
    for (const part of ["k", "v"])
      for (const bound of ["a_max", "a_min"]) parameters[`clip.${part}.${bound}`] = [1];
  const cache = cacheOf(program);
  if (recipe.keyBalance && cache && scheme.kvBits < 16)
    Object.assign(parameters, balanceShapes(cache.heads * cache.headDim));
  return { transforms, parameters };
}
