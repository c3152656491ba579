/** A source whose weights are codes already, taken as it is: no weight is rounded, and nothing is learned. */
import { z } from "zod";
import { isLegalBits, LEGAL_BITS, type Bits } from "../../../backend/contract/scheme.js";
import { UsageError } from "../../../common/errors.js";
import { keptScheme } from "../../../models/kept.js";
import { keptBlock } from "../../block/kept-block.js";
import type { KeptModel, Method } from "../../schema/method.js";

export const keepRecipe = z.strictObject({
  /** Of the cache, which the file says nothing about. */
  kvBits: z.custom<Bits>((value) => typeof value === "number" && isLegalBits(value), {
    error: `give one of ${LEGAL_BITS.join(", ")}`,
  }),
});
export type KeepRecipe = z.infer<typeof keepRecipe>;

export const keep: Method<KeepRecipe> = {
  name: "keep",
  summary: "a GGUF file's weights on the grids that they have; nothing is rounded",
  recipe: keepRecipe,
  presets: { default: { kvBits: 8 } },
  defaultPreset: "default",
  calibration: () => undefined,
  keep({ source, architecture, config }, { kvBits }): KeptModel {
    const kept = keptScheme(source, architecture, config, { kvBits });
    if ("obstacle" in kept)
      throw new UsageError(
        `method "keep" takes a GGUF file with all weights of its blocks stored as codes: ${kept.obstacle}; give another --method`,
      );
    return {
      scheme: kept.scheme,
      block: (layer) => keptBlock(source, architecture, config, kept.scheme, layer),
    };
  },
};
