/**
 * Grids only, no transform, no learning: the baseline everything is measured against. Weights go to the nearest point of
 * their grid, or where GPTQ puts them.
 */
import { z } from "zod";
import type { CalibrationNeed, Method } from "../../method.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../rounding/settings.js";

export const rtnRecipe = z.strictObject({
  ...roundingFields,
  /** Windows of calibration text, and tokens in each; plain rounding reads none. */
  samples: z.number().int().positive(),
  seqLen: z.number().int().positive(),
});
export type RtnRecipe = z.infer<typeof rtnRecipe>;

const preset: RtnRecipe = { ...roundingDefaults, samples: 128, seqLen: 2048 };

export const rtn: Method<RtnRecipe> = {
  name: "rtn",
  summary: "one scale per weight row and per token, weights rounded to nearest or by GPTQ",
  recipe: rtnRecipe,
  presets: { default: preset, gptq: { ...preset, rounding: "gptq" } },
  defaultPreset: "default",
  calibration: (recipe): CalibrationNeed | undefined =>
    recipe.rounding === "gptq"
      ? {
          samples: recipe.samples,
          seqLen: recipe.seqLen,
          stepsPerBlock: 0,
          batch: 1,
          refineSteps: 0,
          refineBatch: 1,
          secondMoments: true,
        }
      : undefined,
  gptq: gptqOf,
};
