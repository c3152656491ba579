/**
 * Grids only, no transform, no learning: the baseline everything is measured against. Weights go to the nearest point of
 * their grid, or where GPTQ puts them.
 */
import { z } from "zod";
import { measureBlock } from "../../block-training.js";
import {
  checkGranularity,
  granularityDefaults,
  granularityFields,
  withFullRangeGrids,
} from "../../grids/full-range.js";
import type { CalibrationNeed, Method } from "../../method.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../rounding/settings.js";

export const rtnRecipe = z.strictObject({
  ...roundingFields,
  ...granularityFields,
  /** Windows of calibration text, and tokens in each; plain rounding with scales per row and token reads none. */
  samples: z.number().int().positive(),
  seqLen: z.number().int().positive(),
});
export type RtnRecipe = z.infer<typeof rtnRecipe>;

const preset: RtnRecipe = {
  ...roundingDefaults,
  ...granularityDefaults,
  samples: 128,
  seqLen: 2048,
};

export const rtn: Method<RtnRecipe> = {
  name: "rtn",
  summary: "weights rounded to nearest or by GPTQ; scales per row and token, or per tensor",
  recipe: rtnRecipe,
  presets: {
    default: preset,
    gptq: { ...preset, rounding: "gptq" },
    tensor: { ...preset, granularity: "tensor" },
  },
  defaultPreset: "default",
  calibration: (recipe): CalibrationNeed | undefined =>
    recipe.rounding === "gptq" || recipe.granularity === "tensor"
      ? {
          samples: recipe.samples,
          seqLen: recipe.seqLen,
          stepsPerBlock: recipe.granularity === "tensor" ? 1 : 0,
          batch: 1,
          refineSteps: 0,
          refineBatch: 1,
          secondMoments: recipe.rounding === "gptq",
        }
      : undefined,
  gptq: gptqOf,
  check: (_config, scheme, recipe) => {
    checkGranularity("rtn", scheme, recipe);
  },
  // Static grids are the only parameters, two numbers for each linear, and only a run knows them.
  plan: () => ({ transforms: {}, parameters: {} }),
  calibrateBlock: (job) => measureBlock(job, withFullRangeGrids(job, new Map())),
};
