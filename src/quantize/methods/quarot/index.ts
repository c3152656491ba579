/**
 * QuaRot: randomized Hadamard rotations spread outliers over all channels; nothing is learned.
 * Source: Ashkboos et al., "QuaRot" (NeurIPS 2024).
 *
 * The rotations act per site, at FlatQuant's places and with its Kronecker factors, while the model runs, as FlatQuant's
 * own comparison has them. The paper's rotation of the residual stream, folded through embeddings and norms, is not
 * made: it would mix the places at which methods are compared. Nor are grids clipped (the paper clips at 0.9).
 */
import { z } from "zod";
import { UsageError } from "../../../common/errors.js";
import { Random } from "../../../common/random.js";
import { measureBlock } from "../../block/block-training.js";
import type { Method } from "../../schema/method.js";
import { needOfWindows, windowFields } from "../../calibration/windows-recipe.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";
import { formatScheme } from "../../../backend/contract/scheme.js";
import { planTransforms } from "../../transforms/assignment.js";
import { matrixPlaces } from "../../transforms/sites.js";
import { rotations } from "../../transforms/rotations.js";

export const quarotRecipe = z.strictObject({
  ...windowFields,
  ...roundingFields,
});
export type QuarotRecipe = z.infer<typeof quarotRecipe>;

const preset: QuarotRecipe = { samples: 16, seqLen: 2048, ...roundingDefaults };

export const quarot: Method<QuarotRecipe> = {
  name: "quarot",
  summary: "randomized Hadamard rotations at FlatQuant's sites (after Ashkboos et al., 2024)",
  recipe: quarotRecipe,
  presets: { default: preset, gptq: { ...preset, samples: 128, rounding: "gptq" } },
  defaultPreset: "default",
  calibration: (recipe) => needOfWindows(recipe, { secondMoments: recipe.rounding === "gptq" }),
  gptq: gptqOf,
  check: (programs, scheme) => {
    if (programs.every((program) => matrixPlaces(program, scheme).length === 0))
      throw new UsageError(
        `method "quarot" rotates what is about to be rounded, and scheme ${formatScheme(scheme)} rounds nothing; give a scheme below 16 bits, or --method rtn to keep 16`,
      );
  },
  plan: (program, scheme) => planTransforms(program, scheme, { matrices: "direct" }),
  calibrateBlock: (job) =>
    measureBlock(job, rotations(job.program, job.scheme, Random.for(job.seed, "block", job.layer))),
};
