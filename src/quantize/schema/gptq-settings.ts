/** How the integers of weights are chosen, as fields that any method's recipe may carry. */
import { z } from "zod";

export const gptqSettings = z.strictObject({
  /** Added to the second moment's diagonal, as a share of its mean. */
  damping: z.number().nonnegative(),
  /** Round the channels with the largest activations first. */
  actOrder: z.boolean(),
  /** Let every token count alike in the second moments, whatever its magnitude. */
  equalTokens: z.boolean(),
});

export type GptqSettings = z.infer<typeof gptqSettings>;

export const roundingFields = {
  /** Round to nearest, or GPTQ on the activations that the linear will see. */
  rounding: z.enum(["rtn", "gptq"]),
  gptq: gptqSettings,
};

/** The fields' usual values. */
export const roundingDefaults = {
  rounding: "rtn" as "rtn" | "gptq",
  gptq: { damping: 0.1, actOrder: true, equalTokens: true },
};

/** The GPTQ settings of a recipe that asks for it. */
export function gptqOf(recipe: {
  readonly rounding: "rtn" | "gptq";
  readonly gptq: GptqSettings;
}): GptqSettings | undefined {
  return recipe.rounding === "gptq" ? recipe.gptq : undefined;
}
