/** How FlatQuant's parameters are trained. Source: docs/methods.md, flatquant. */
import type { ParameterRule } from "../../block/training.js";
import type { FlatQuantRecipe } from "./recipe.js";
import { parameterOf } from "../../schema/parameters.js";

/** Learning rate and decay by parameter name: clipping fast, rounding without decay, the rest as the recipe says. */
export function parameterRule(recipe: FlatQuantRecipe): (name: string) => ParameterRule {
  return (name) => {
    const { kind } = parameterOf(name);
    if (kind === "round")
      return { learningRate: recipe.learnedRounding.learningRate, weightDecay: 0, bound: 0.5 };
    return {
      learningRate: kind === "clip" ? recipe.clipLearningRate : recipe.learningRate,
      weightDecay: recipe.weightDecay,
    };
  };
}
