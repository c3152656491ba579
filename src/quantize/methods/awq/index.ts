/**
 * AWQ: weights that meet large activations are scaled up before rounding, by as much as a search finds best; activations
 * stay at 16 bits. Source: Lin et al., "AWQ" (MLSys 2024).
 *
 * A site's linears share one factor per channel, which folds into the norm or the rows before it; the attention's output
 * has no such place and is left alone. Then each row of every linear but q and k (whose errors meet in a product, where
 * the published code leaves them alone too) is clipped to the part of its range that a second search finds best. Grids
 * have one scale per row unless the scheme has groups; the paper's have one per 128 weights (`w4g128a16`).
 */
import { z } from "zod";
import { UsageError } from "../../../common/errors.js";
import { sitesOf, type LinearName } from "../../../backend/contract/program.js";
import { measureBlock } from "../../block/block-training.js";
import { captureMeans } from "../../calibration/maxima.js";
import { diagFolds } from "../../transforms/stored-precision.js";
import type { ParameterValues } from "../../schema/parameters.js";
import type { BlockJob, BlockOutcome, Method } from "../../schema/method.js";
import { collectMoments } from "../../block/input-moments.js";
import { needOfWindows, windowFields } from "../../calibration/windows-recipe.js";
import { gptqOf, roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";
import { formatScheme, type Scheme } from "../../../backend/contract/scheme.js";
import { windowCount } from "../../schema/recipe-counts.js";
import { planTransforms } from "../../transforms/assignment.js";
import { kroneckerSites, linearsAt } from "../../transforms/sites.js";
import { weightClipShape, weightGrid } from "../../grids/groups.js";
import { clipLogit, searchClips, searchScales } from "./search.js";

export const awqRecipe = z.strictObject({
  ...windowFields,
  /** Exponents tried are 0, 1/gridSteps, …, 1. */
  gridSteps: windowCount,
  /** Also searches how far rows are clipped. */
  weightClip: z.boolean(),
  ...roundingFields,
});
export type AwqRecipe = z.infer<typeof awqRecipe>;

const preset: AwqRecipe = {
  samples: 128,
  seqLen: 2048,
  gridSteps: 20,
  weightClip: true,
  ...roundingDefaults,
};

export const awq: Method<AwqRecipe> = {
  name: "awq",
  summary: "weights scaled by how large their activations are, weight-only (Lin et al., 2024)",
  recipe: awqRecipe,
  presets: { default: preset, gptq: { ...preset, rounding: "gptq" } },
  defaultPreset: "default",
  // The search weighs errors by second moments, whatever the rounding.
  calibration: (recipe) => needOfWindows(recipe, { secondMoments: true }),
  gptq: gptqOf,
  plan: (program, scheme, recipe) => {
    const { transforms, parameters } = planTransforms(program, scheme, { diag: true });
    const clips: Record<string, readonly number[]> = {};
    for (const [role, { path, shape }] of Object.entries(program.linears))
      if (recipe.weightClip && isClipped(role))
        for (const bound of ["w_max", "w_min"])
          clips[`clip.${path}.${bound}`] = weightClipShape(shape, scheme);
    return { transforms, parameters: { ...parameters, ...clips } };
  },
  check: (programs, scheme) => {
    if (scheme.activationBits < 16)
      throw new UsageError(
        `method "awq" scales weights for activations that are not rounded, and scheme ${formatScheme(scheme)} rounds them, which its factors would make worse; give a weight-only scheme such as w4a16kv16, or --method smoothquant`,
      );
    if (scheme.weightBits >= 16)
      throw new UsageError(
        `method "awq" chooses factors for weights that are rounded, and scheme ${formatScheme(scheme)} keeps them at 16 bits; give one such as w4a16kv16, or --method rtn`,
      );
    if (
      !programs.some((program) => kroneckerSites(program).some((site) => diagFolds(program, site)))
    )
      throw new UsageError(
        `method "awq" finds no place in this model where a factor per channel folds away; use --method rtn --preset gptq`,
      );
  },
  calibrateBlock,
};

/** Errors of q and k meet in a product, which the search of either cannot see. */
function isClipped(role: LinearName): boolean {
  return role !== "q" && role !== "k";
}

async function calibrateBlock(job: BlockJob<AwqRecipe>): Promise<BlockOutcome> {
  const { backend, block, weights, program, scheme, recipe, layer, inputs, signal } = job;
  const means = captureMeans(backend, program, weights, inputs, layer);
  const plain: Scheme = { weightBits: 16, activationBits: 16, kvBits: 16 };
  const moments = await collectMoments({
    backend,
    block: { program, scheme: plain },
    weights,
    parameters: new Map(),
    inputs,
    layer,
    equalTokens: false,
    signal,
  });
  const values = new Map<string, { shape: readonly number[]; data: Float64Array }>();
  const notes: string[] = [];
  for (const { site, linears: roles, attention } of sitesOf(program)) {
    const found = moments.find((each) => each.roles.some((role) => roles.includes(role)));
    if (!found) continue;
    const { cols, sum: moment } = found;
    let scales: Float64Array = new Float64Array(cols).fill(1);
    if (!attention && diagFolds(program, site)) {
      const searched = searchScales({
        backend,
        weights: linearsAt(program, block, site).map(({ weight }) => weight),
        mean: means[site],
        moment,
        // Linears of a site share their factors; where grids differ, those of the first decide.
        grid: weightGrid(scheme, linearsAt(program, block, site)[0].path),
        steps: recipe.gridSteps,
      });
      if (searched.exponent === 0)
        notes.push(`block ${layer}: awq found no factors better than none at ${site}`);
      else {
        ({ scales } = searched);
        values.set(`${site}.diag`, { shape: [cols], data: scales.map((s) => 1 / s) });
      }
    }
    if (!recipe.weightClip) continue;
    for (const role of roles) {
      const linear = block.linears[role];
      if (!linear || !isClipped(role)) continue;
      const { weight, path } = linear;
      const ratios = searchClips({
        backend,
        weight,
        scales,
        moment,
        grid: weightGrid(scheme, path),
      });
      const shape = weightClipShape(weight.shape, scheme);
      // A row's groups share the ratio that its search found: their own errors mix in the row's output.
      const logits = new Float64Array(shape[0] * shape[1]);
      ratios.forEach((ratio, row) =>
        logits.fill(clipLogit(ratio), row * shape[1], (row + 1) * shape[1]),
      );
      for (const bound of ["w_max", "w_min"])
        values.set(`clip.${path}.${bound}`, { shape, data: logits });
    }
  }
  const outcome = await measureBlock(job, values satisfies ParameterValues);
  return { ...outcome, report: { ...outcome.report, notes } };
}
