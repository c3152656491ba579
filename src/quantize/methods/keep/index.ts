/**
 * A source whose weights are codes already, taken as it is: no weight is rounded, and nothing is learned. For a cache of few
 * bits calibration finds how keys are best balanced before they are turned.
 */
import { z } from "zod";
import { cacheOf } from "../../../backend/contract/program.js";
import {
  isLegalBits,
  LEGAL_BITS,
  type Bits,
  type Scheme,
} from "../../../backend/contract/scheme.js";
import { UsageError } from "../../../common/errors.js";
import { keptScheme } from "../../../models/kept.js";
import { measureBlock } from "../../block/block-training.js";
import { keptBlock, keyTurn, TURNED_BITS } from "../../block/kept-block.js";
import { captureHeadMoments } from "../../calibration/head-moments.js";
import { needOfWindows, windowFields } from "../../calibration/windows-recipe.js";
import type { InitialValues } from "../../transforms/affine.js";
import {
  balanceOf,
  balanceShapes,
  keyBalance,
  setBalance,
  shiftsKeys,
} from "../../transforms/key-balance.js";
import type { KeptModel, Method } from "../../schema/method.js";

export const keepRecipe = z.strictObject({
  ...windowFields,
  /** Of the cache, which the file says nothing about. */
  kvBits: z.custom<Bits>((value) => typeof value === "number" && isLegalBits(value), {
    error: `give one of ${LEGAL_BITS.join(", ")}`,
  }),
  /** Keys shifted and scaled by channel before they are turned, where the cache has few bits. */
  keyBalance: z.boolean(),
});
export type KeepRecipe = z.infer<typeof keepRecipe>;

export const keep: Method<KeepRecipe> = {
  name: "keep",
  summary: "a GGUF file's weights on the grids that they have; nothing is rounded",
  recipe: keepRecipe,
  presets: { default: { samples: 4, seqLen: 2048, kvBits: 8, keyBalance: true } },
  defaultPreset: "default",
  calibration: (recipe) =>
    recipe.keyBalance && recipe.kvBits <= TURNED_BITS
      ? needOfWindows(recipe, { secondMoments: false })
      : undefined,
  keep({ source, architecture, config }, { kvBits }): KeptModel {
    const kept = keptScheme(source, architecture, config, { kvBits });
    if ("obstacle" in kept)
      throw new UsageError(
        `method "keep" takes a GGUF file with all weights of its blocks stored as codes: ${kept.obstacle}; give another --method`,
      );
    return {
      scheme: kept.scheme,
      block: (layer, parameters) =>
        keptBlock(source, architecture, config, kept.scheme, layer, balanceOf(parameters)),
    };
  },
  plan(program, scheme, recipe) {
    const { heads = 0, headDim = 0 } = cacheOf(program) ?? {};
    if (!keyTurn(headDim, scheme.kvBits)) return { transforms: {}, parameters: {} };
    return {
      transforms: { k_head: { factors: [headDim], diag: false } },
      parameters: {
        "k_head.p": [headDim, headDim],
        ...(recipe.keyBalance && balanceShapes(heads * headDim)),
      },
    };
  },
  async calibrateBlock(job) {
    const { program, scheme } = job;
    const headDim = cacheOf(program)?.headDim;
    const turn = headDim === undefined ? undefined : keyTurn(headDim, scheme.kvBits);
    const parameters: InitialValues = new Map();
    if (headDim !== undefined && turn) {
      const balance = keyBalance(captureHeadMoments(job), headDim, shiftsKeys(program));
      parameters.set("k_head.p", { shape: [headDim, headDim], data: Float64Array.from(turn) });
      setBalance(parameters, balance);
    }
    // Weights are as they were, and activations none of its doing: what is measured is the cache.
    const cache: Scheme = { weightBits: 16, activationBits: 16, kvBits: scheme.kvBits };
    return measureBlock({ ...job, scheme: cache }, parameters);
  },
};
