/**
 * AWQ: weights that meet large activations are scaled up before rounding, by as much as a search finds best; activations
 * stay at 16 bits. Source: Lin et al., "AWQ" (MLSys 2024).
 *
 * A site's linears share one factor per channel, which folds into the norm or the rows before it; the attention's output
 * has no such place and is left alone. Grids have one scale per row, where the paper's have one per 128 weights, and
 * the paper's search for clipping bounds is not made.
 */
import { z } from "zod";
import { UsageError } from "../../../common/errors.js";
import { measureBlock } from "../../block-training.js";
import { captureMeans } from "../../calibration/maxima.js";
import { diagFolds, type ParameterValues } from "../../fold.js";
import type { BlockJob, BlockOutcome, CalibrationNeed, Method } from "../../method.js";
import { collectMoments } from "../../rounding/moments.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../rounding/settings.js";
import { formatScheme, type Scheme } from "../../scheme.js";
import { describeBlock } from "../../simulated-block.js";
import { planTransforms } from "../../transforms/plan.js";
import { KRONECKER_SITES, linearsAt } from "../../transforms/sites.js";
import { searchScales } from "./search.js";

const count = z.number().int().positive();

export const awqRecipe = z.strictObject({
  /** Windows of calibration text, and tokens in each. */
  samples: count,
  seqLen: count,
  /** Exponents tried are 0, 1/gridSteps, …, 1. */
  gridSteps: count,
  ...roundingFields,
});
export type AwqRecipe = z.infer<typeof awqRecipe>;

const preset: AwqRecipe = { samples: 128, seqLen: 2048, gridSteps: 20, ...roundingDefaults };

export const awq: Method<AwqRecipe> = {
  name: "awq",
  summary: "weights scaled by how large their activations are, weight-only (Lin et al., 2024)",
  recipe: awqRecipe,
  presets: { default: preset, gptq: { ...preset, rounding: "gptq" } },
  defaultPreset: "default",
  calibration: (recipe): CalibrationNeed => ({
    samples: recipe.samples,
    seqLen: recipe.seqLen,
    stepsPerBlock: 1,
    batch: 1,
    refineSteps: 0,
    refineBatch: 1,
    // The search weighs errors by them, whatever the rounding.
    secondMoments: true,
  }),
  gptq: gptqOf,
  plan: (config, _paths, scheme) => planTransforms(config, scheme, { diag: true }),
  check: (config, scheme) => {
    if (scheme.activationBits < 16)
      throw new UsageError(
        `method "awq" scales weights for activations that are not rounded, and scheme ${formatScheme(scheme)} rounds them, which its factors would make worse; give a weight-only scheme such as w4a16kv16, or --method smoothquant`,
      );
    if (scheme.weightBits >= 16)
      throw new UsageError(
        `method "awq" chooses factors for weights that are rounded, and scheme ${formatScheme(scheme)} keeps them at 16 bits; give one such as w4a16kv16, or --method rtn`,
      );
    if (!KRONECKER_SITES.some((site) => diagFolds(config, site)))
      throw new UsageError(
        `method "awq" finds no place in ${config.architecture} where a factor per channel folds away; use --method rtn --preset gptq`,
      );
  },
  calibrateBlock,
};

async function calibrateBlock(job: BlockJob<AwqRecipe>): Promise<BlockOutcome> {
  const { backend, block, weights, config, scheme, recipe, layer, inputs, signal } = job;
  const means = captureMeans(backend, config, weights, inputs, layer);
  const plain: Scheme = { weightBits: 16, activationBits: 16, kvBits: 16 };
  const moments = await collectMoments({
    backend,
    block: describeBlock(block, config, plain),
    weights,
    parameters: new Map(),
    inputs,
    layer,
    signal,
  });
  const diags = new Map<string, { shape: readonly number[]; data: Float64Array }>();
  const notes: string[] = [];
  for (const site of KRONECKER_SITES) {
    const first = ({ attn_in: "q", mlp_in: "up", mlp_down: "down" } as const)[site];
    const moment = moments.find(({ roles }) => roles.includes(first));
    if (!diagFolds(config, site) || !moment) continue;
    const { scales, exponent } = searchScales({
      backend,
      weights: linearsAt(block, site).map(({ weight }) => weight),
      mean: means[site],
      moment: moment.sum,
      bits: scheme.weightBits,
      steps: recipe.gridSteps,
    });
    if (exponent === 0)
      notes.push(`block ${layer}: awq found no factors better than none at ${site}`);
    else diags.set(`${site}.diag`, { shape: [scales.length], data: scales.map((s) => 1 / s) });
  }
  const outcome = await measureBlock(job, diags satisfies ParameterValues);
  return { ...outcome, report: { ...outcome.report, notes } };
}
