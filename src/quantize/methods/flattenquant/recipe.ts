/** FlattenQuant's settings, and the presets that come with it. */
import { z } from "zod";
import { windowFields } from "../../calibration/windows-recipe.js";
import { roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";

export const flattenQuantRecipe = z.strictObject({
  /** Exponent of channel smoothing: how much of the activations' unevenness moves into the weights. */
  alpha: z.number().min(0).max(1),
  /**
   * Where the factors of the MLP's inner activation and of the attention's output go: into the rows of the linear before
   * ("fold"), whose one scale then has to hold rows of uneven size, or into the quantize kernel ("kernel").
   */
  rows: z.enum(["fold", "kernel"]),
  /** Truncation threshold as a multiple of the mean of those channel maxima that are not outliers. */
  beta: z.number().positive(),
  /**
   * What is compared with gamma: of a layer's worse side KL₄/KL₈ ("ratio") or KL₄ − KL₈ in nats ("excess"), or what the
   * layer at 4 bits adds to its block's relative squared error ("output"), or to the divergence of the model's next-token
   * distribution from full precision's, in nats per share of the model's multiply-adds ("model").
   */
  criterion: z.enum(["ratio", "excess", "output", "model"]),
  /** A layer runs at 4 bits where the criterion is below this. */
  gamma: z.number().nonnegative(),
  /**
   * How far a 4-bit grid reaches: to the threshold ("calibrated"), or to the share of it where the linear's output is
   * rounded best ("searched"). Grids of 8 bits reach to the threshold.
   */
  reach: z.enum(["calibrated", "searched"]),
  /** Largest K'/K; thresholds are raised until it holds. */
  maxExpansion: z.number().min(1),
  ...windowFields,
  ...roundingFields,
});
export type FlattenQuantRecipe = z.infer<typeof flattenQuantRecipe>;

const preset: FlattenQuantRecipe = {
  alpha: 0.5,
  rows: "kernel",
  beta: 1.3,
  criterion: "model",
  // Near 48% of the computation at 4 bits on tiny-opt; other models can afford less, or more (planish sweep).
  gamma: 0.19,
  reach: "searched",
  maxExpansion: 1.25,
  samples: 128,
  seqLen: 2048,
  ...roundingDefaults,
  rounding: "gptq",
};

export const flattenQuantPresets = {
  /** Bits by what a linear costs the whole model: one more pass over it, and by far the best choice measured. */
  default: preset,
  /** Bits by divergence of a linear's own tensors, the nearest to the paper's rule; near 48% on tiny-opt. */
  excess: { ...preset, criterion: "excess", gamma: 0.0216 },
  /** Bits by what a linear adds to its block's error, again near 48% on tiny-opt. */
  output: { ...preset, criterion: "output", gamma: 0.0011 },
  /** Weights to the nearest integer. */
  rtn: { ...preset, rounding: "rtn" },
} satisfies Record<string, FlattenQuantRecipe>;
