/** FlatQuant's settings as data. Source: docs/methods.md, flatquant. */
import { z } from "zod";
import { LIMITS } from "../../../common/bounds.js";
import { passCount, tokenCount, windowCount } from "../../schema/recipe-counts.js";
import { roundingDefaults, roundingFields } from "../../schema/gptq-settings.js";

const positive = z.number().positive();

const fields = z.strictObject({
  /** Windows of calibration text, and tokens in each. */
  samples: windowCount,
  seqLen: tokenCount,
  epochs: passCount,
  /** Windows per step. */
  batch: windowCount,
  learningRate: positive,
  clipLearningRate: positive,
  /** Cosine schedule ends here. */
  finalLearningRate: z.number().nonnegative(),
  weightDecay: z.number().nonnegative(),
  parametrisation: z.enum(["svd", "direct"]),
  /** Channels of a site's one matrix, which serves each run of so many; 0: a Kronecker pair over all channels. */
  blockSize: z.number().int().min(0).max(LIMITS.width),
  diag: z.boolean(),
  /** Exponent of the diag's initialisation. */
  diagAlpha: z.number().min(0).max(1),
  weightClip: z.boolean(),
  activationClip: z.boolean(),
  /** Learned clipping of the K/V cache's grid. */
  kvClip: z.boolean(),
  /** Keys shifted and scaled by channel before their matrix, by what calibration shows (not in the paper). */
  keyBalance: z.boolean(),
  /** Where clipping logits start; σ(4) ≈ 0.982. */
  clipInit: z.number(),
  /** Large products: bf16 with f32 accumulation, or f32 throughout. */
  precision: z.enum(["bf16", "f32"]),
  /** An offset in [−½, ½] per weight, trained with the block's other parameters. */
  learnedRounding: z.strictObject({ enabled: z.boolean(), learningRate: positive }),
  /** End-to-end distillation of all blocks after each was trained alone. */
  distillation: z.strictObject({
    steps: passCount,
    batch: windowCount,
    learningRate: positive,
    roundingLearningRate: positive,
    /** Of clipping logits; absent: as `learningRate`. */
    clipLearningRate: positive.optional(),
    /** How far an offset may go from the nearest integer, in steps: ½ chooses between two, more moves weights freely. */
    roundingBound: positive.optional(),
  }),
  ...roundingFields,
});

export type FlatQuantRecipe = z.infer<typeof fields>;

export const flatQuantRecipe: z.ZodType<FlatQuantRecipe> = fields.refine(
  ({ rounding, learnedRounding }) => !(rounding === "gptq" && learnedRounding.enabled),
  {
    path: ["rounding"],
    message:
      '"gptq" cannot be combined with learnedRounding: each chooses every weight\'s integer, and GPTQ would discard what was learned; set learnedRounding.enabled to false, or rounding to "rtn"',
  },
);

const paper: FlatQuantRecipe = {
  samples: 128,
  seqLen: 2048,
  epochs: 15,
  batch: 4,
  learningRate: 5e-3,
  clipLearningRate: 5e-2,
  finalLearningRate: 5e-6,
  weightDecay: 0.01,
  parametrisation: "svd",
  blockSize: 0,
  diag: true,
  diagAlpha: 0.3,
  weightClip: true,
  activationClip: true,
  kvClip: true,
  keyBalance: false,
  clipInit: 4,
  precision: "bf16",
  learnedRounding: { enabled: false, learningRate: 3e-3 },
  distillation: { steps: 0, batch: 8, learningRate: 5e-4, roundingLearningRate: 1e-3 },
  ...roundingDefaults,
};

export const flatQuantPresets = {
  paper,
  // Many small steps: at the same number of tokens, steps of two windows reach lower errors than steps of four, and
  // learned rounding costs no time (docs/decisions.md, "The fast preset").
  fast: {
    ...paper,
    samples: 40,
    epochs: 4,
    batch: 2,
    learnedRounding: { enabled: true, learningRate: 5e-3 },
  },
  best: {
    ...paper,
    learnedRounding: { enabled: true, learningRate: 3e-3 },
    distillation: { ...paper.distillation, steps: 384 },
  },
  // What vLLM runs of it: transforms that repeat one matrix, each token's whole range (docs/formats/compressed-tensors.md).
  vllm: {
    ...paper,
    samples: 40,
    epochs: 4,
    batch: 2,
    learnedRounding: { enabled: true, learningRate: 5e-3 },
    blockSize: 64,
    activationClip: false,
    kvClip: false,
  },
} as const satisfies Record<string, FlatQuantRecipe>;
