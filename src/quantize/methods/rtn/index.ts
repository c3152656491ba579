/** Round to nearest: grids only, no transform, no learning. The baseline everything is measured against. */
import { z } from "zod";
import type { Method } from "../../method.js";

export const rtnRecipe = z.strictObject({});
export type RtnRecipe = z.infer<typeof rtnRecipe>;

export const rtn: Method<RtnRecipe> = {
  name: "rtn",
  summary: "round to nearest, one scale per weight row and per token; no calibration",
  recipe: rtnRecipe,
  presets: { default: {} },
  defaultPreset: "default",
  calibration: () => undefined,
};
