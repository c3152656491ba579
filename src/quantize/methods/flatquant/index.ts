/**
 * FlatQuant as a method: learned Kronecker-factored affine transforms per site, learned clipping, optionally
 * learned rounding and end-to-end distillation. Source: docs/methods.md, flatquant (Sun, Liu, Bai et al., ICML 2025).
 */
import { Random } from "../../../common/random.js";
import { trainBlock } from "../../block/block-training.js";
import { cacheOf } from "../../../backend/contract/program.js";
import { captureHeadMoments } from "../../calibration/head-moments.js";
import { captureMaxima } from "../../calibration/maxima.js";
import type { BlockJob, BlockOutcome, CalibrationNeed, Method } from "../../schema/method.js";
import { gptqOf } from "../../schema/gptq-settings.js";
import { keyBalance, shiftsKeys } from "../../transforms/key-balance.js";
import { matrixPlaces } from "../../transforms/sites.js";
import { distill } from "./distill.js";
import { initialParameters } from "./parameters.js";
import { planBlock } from "./assignment.js";
import { flatQuantPresets, flatQuantRecipe, type FlatQuantRecipe } from "./recipe.js";
import { parameterRule } from "./train.js";

export const flatquant: Method<FlatQuantRecipe> = {
  name: "flatquant",
  summary: "learned Kronecker-factored affine transforms and clipping (Sun et al., ICML 2025)",
  recipe: flatQuantRecipe,
  presets: flatQuantPresets,
  defaultPreset: "fast",
  calibration: (recipe): CalibrationNeed => ({
    samples: recipe.samples,
    seqLen: recipe.seqLen,
    stepsPerBlock: recipe.epochs * Math.ceil(recipe.samples / recipe.batch),
    batch: recipe.batch,
    refineSteps: recipe.distillation.steps,
    refineBatch: recipe.distillation.batch,
    secondMoments: recipe.rounding === "gptq",
  }),
  gptq: gptqOf,
  check: (programs, scheme, { blockSize }) => {
    for (const program of programs) matrixPlaces(program, scheme, blockSize);
  },
  plan: planBlock,
  calibrateBlock,
  refine: distill,
};

async function calibrateBlock(job: BlockJob<FlatQuantRecipe>): Promise<BlockOutcome> {
  const { backend, block, weights, program, scheme, recipe, layer, seed, inputs } = job;
  const maxima = recipe.diag ? captureMaxima(backend, program, weights, inputs, layer) : undefined;
  const cache = scheme.kvBits < 16 ? cacheOf(program) : undefined;
  const balance =
    recipe.keyBalance && cache
      ? keyBalance(captureHeadMoments(job), cache.headDim, shiftsKeys(program))
      : undefined;
  const random = Random.for(seed, "block", layer);
  const start = initialParameters(block, program, scheme, recipe, maxima, random, balance);
  return trainBlock(job, start, { ...recipe, rule: parameterRule(recipe) });
}
