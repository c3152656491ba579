/**
 * SpinQuant-style rotations: orthogonal matrices, kept so by the Cayley map while they are learned. No scaling, no
 * clipping. Source: Liu et al., "SpinQuant" (ICLR 2025).
 *
 * As with quarot the matrices act per site, at FlatQuant's places, and not on the residual stream; and they are learned
 * block by block against the block's own output, as FlatQuant's are, where the paper learns them end to end on the
 * model's loss. What is left of the comparison with FlatQuant is what the matrices may be.
 */
import { z } from "zod";
import { UsageError } from "../../../common/errors.js";
import { Random } from "../../../common/random.js";
import { trainBlock } from "../../block/block-training.js";
import type { BlockJob, BlockOutcome, CalibrationNeed, Method } from "../../schema/method.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";
import { formatScheme } from "../../../backend/contract/scheme.js";
import { passCount, tokenCount, windowCount } from "../../schema/recipe-counts.js";
import { planTransforms } from "../../transforms/assignment.js";
import { matrixPlaces } from "../../transforms/sites.js";
import { rotationSeeds } from "./seeds.js";

export const spinquantRecipe = z.strictObject({
  /** Windows of calibration text, and tokens in each. */
  samples: windowCount,
  seqLen: tokenCount,
  epochs: passCount,
  /** Windows per step. */
  batch: windowCount,
  learningRate: z.number().positive(),
  /** Cosine schedule ends here. */
  finalLearningRate: z.number().nonnegative(),
  /** Large products: bf16 with f32 accumulation, or f32 throughout. */
  precision: z.enum(["bf16", "f32"]),
  ...roundingFields,
});
export type SpinquantRecipe = z.infer<typeof spinquantRecipe>;

const preset: SpinquantRecipe = {
  samples: 48,
  seqLen: 2048,
  epochs: 4,
  batch: 2,
  learningRate: 5e-3,
  finalLearningRate: 5e-6,
  precision: "bf16",
  ...roundingDefaults,
};

export const spinquant: Method<SpinquantRecipe> = {
  name: "spinquant",
  summary: "learned rotations at FlatQuant's sites (after Liu et al., ICLR 2025)",
  recipe: spinquantRecipe,
  presets: { default: preset, gptq: { ...preset, rounding: "gptq" } },
  defaultPreset: "default",
  calibration: (recipe): CalibrationNeed => ({
    samples: recipe.samples,
    seqLen: recipe.seqLen,
    stepsPerBlock: recipe.epochs * Math.ceil(recipe.samples / recipe.batch),
    batch: recipe.batch,
    refineSteps: 0,
    refineBatch: 1,
    secondMoments: recipe.rounding === "gptq",
  }),
  gptq: gptqOf,
  check: (programs, scheme) => {
    if (programs.every((program) => matrixPlaces(program, scheme).length === 0))
      throw new UsageError(
        `method "spinquant" rotates what is about to be rounded, and scheme ${formatScheme(scheme)} rounds nothing; give a scheme below 16 bits, or --method rtn to keep 16`,
      );
  },
  plan: (program, scheme) => planTransforms(program, scheme, { matrices: "orthogonal" }),
  calibrateBlock,
};

function calibrateBlock(job: BlockJob<SpinquantRecipe>): Promise<BlockOutcome> {
  const { program, scheme, recipe, seed, layer } = job;
  // Decay would pull every rotation towards the identity.
  const rule = () => ({ learningRate: recipe.learningRate, weightDecay: 0 });
  const start = rotationSeeds(program, scheme, Random.for(seed, "block", layer));
  return trainBlock(job, start, { ...recipe, rule });
}
