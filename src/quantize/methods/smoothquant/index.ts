/**
 * SmoothQuant: a factor per channel, chosen from maxima, that divides activations and multiplies the weights reading
 * them, so that outliers are shared between the two. No rotation, no learning. Activations get a scale per token while the
 * model runs, or with granularity "tensor" (preset `tensor`) the paper's O3: one static scale for each activation and each
 * weight. Source: Xiao et al., ICML 2023, equations 3 and 4, table 2.
 *
 * The factor stands where it folds for nothing: in the norms before attention and MLP, and in up_proj before
 * down_proj. The attention's output has no such place and is left alone, as are keys and values.
 */
import { z } from "zod";
import { UsageError } from "../../../common/errors.js";
import { measureBlock } from "../../block/block-training.js";
import { captureMaxima } from "../../calibration/maxima.js";
import {
  checkGranularity,
  granularityDefaults,
  granularityFields,
  withFullRangeGrids,
} from "../../block/full-range.js";
import type { BlockJob, BlockOutcome, Method } from "../../schema/method.js";
import { needOfWindows, windowFields } from "../../calibration/windows-recipe.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";
import { formatScheme } from "../../../backend/contract/scheme.js";
import { planTransforms } from "../../transforms/assignment.js";
import { diagFolds } from "../../transforms/stored-precision.js";
import { kroneckerSites } from "../../transforms/sites.js";
import { smoothingDiags } from "./diags.js";

export const smoothQuantRecipe = z.strictObject({
  /** How much of the activations' range moves into the weights: 0 none, 1 all. */
  alpha: z.number().min(0).max(1),
  ...windowFields,
  ...roundingFields,
  ...granularityFields,
});
export type SmoothQuantRecipe = z.infer<typeof smoothQuantRecipe>;

const preset: SmoothQuantRecipe = {
  alpha: 0.5,
  samples: 128,
  seqLen: 2048,
  ...roundingDefaults,
  ...granularityDefaults,
};

export const smoothquant: Method<SmoothQuantRecipe> = {
  name: "smoothquant",
  summary: "activation outliers moved into weights, channel by channel (Xiao et al., ICML 2023)",
  recipe: smoothQuantRecipe,
  presets: {
    default: preset,
    gptq: { ...preset, rounding: "gptq" },
    tensor: { ...preset, granularity: "tensor" },
  },
  defaultPreset: "default",
  calibration: (recipe) => needOfWindows(recipe, { secondMoments: recipe.rounding === "gptq" }),
  gptq: gptqOf,
  check: (programs, scheme, recipe) => {
    checkGranularity("smoothquant", scheme, recipe);
    if (scheme.activationBits >= 16)
      throw new UsageError(
        `method "smoothquant" moves outliers from activations into weights, and scheme ${formatScheme(scheme)} keeps activations at 16 bits, so the weights would only get harder to round; give fewer activation bits, such as w8a8kv16, or --method rtn`,
      );
    if (
      !programs.some((program) => kroneckerSites(program).some((site) => diagFolds(program, site)))
    )
      throw new UsageError(
        `method "smoothquant" finds no place in this model where a factor per channel folds away: no norm feeds its linears alone, and its activation function is not linear; use --method quarot`,
      );
  },
  plan: (program, scheme) => planTransforms(program, scheme, { diag: true }),
  calibrateBlock,
};

function calibrateBlock(job: BlockJob<SmoothQuantRecipe>): Promise<BlockOutcome> {
  const { backend, block, program, weights, inputs, layer, recipe } = job;
  const { alpha, granularity } = recipe;
  const maxima = captureMaxima(backend, program, weights, inputs, layer);
  if (granularity === "row")
    return measureBlock(job, smoothingDiags(block, program, maxima, alpha));
  // Factors in up's rows would make the one scale of its weight hold rows of very uneven size.
  const diags = smoothingDiags(block, program, maxima, alpha, "norms");
  return measureBlock(job, withFullRangeGrids(job, diags));
}
