/**
 * Grids only, no transform, no learning: the baseline everything is measured against. Weights go to the nearest point of
 * their grid, or where GPTQ puts them.
 */
import { z } from "zod";
import { measureBlock } from "../../block/block-training.js";
import {
  checkGranularity,
  granularityDefaults,
  granularityFields,
  withFullRangeGrids,
} from "../../block/full-range.js";
import type { Method } from "../../schema/method.js";
import { needOfWindows, windowFields } from "../../calibration/windows-recipe.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";

export const rtnRecipe = z.strictObject({
  ...roundingFields,
  ...granularityFields,
  /** Plain rounding with scales per row and token reads no text. */
  ...windowFields,
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
  calibration: (recipe) => {
    const [looks, secondMoments] = [recipe.granularity === "tensor", recipe.rounding === "gptq"];
    return looks || secondMoments ? needOfWindows(recipe, { looks, secondMoments }) : undefined;
  },
  gptq: gptqOf,
  check: (_config, scheme, recipe) => {
    checkGranularity("rtn", scheme, recipe);
  },
  // Static grids are the only parameters, two numbers for each linear, and only a run knows them.
  plan: () => ({ transforms: {}, parameters: {} }),
  calibrateBlock: (job) => measureBlock(job, withFullRangeGrids(job, new Map())),
};
