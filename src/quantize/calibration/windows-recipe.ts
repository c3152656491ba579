/** What methods that look at calibration text, but learn nothing from it, have in common in recipe and need. */
import type { CalibrationNeed } from "../schema/method.js";
import { tokenCount, windowCount } from "../schema/recipe-counts.js";

export const windowFields = {
  /** Windows of calibration text, and tokens in each. */
  samples: windowCount,
  seqLen: tokenCount,
};

export interface WindowRecipe {
  readonly samples: number;
  readonly seqLen: number;
}

/** `looks`: whether blocks have a stage of their own before they are packed. */
export function needOfWindows(
  { samples, seqLen }: WindowRecipe,
  { looks = true, secondMoments }: { readonly looks?: boolean; readonly secondMoments: boolean },
): CalibrationNeed {
  const stepsPerBlock = looks ? 1 : 0;
  return {
    samples,
    seqLen,
    stepsPerBlock,
    batch: 1,
    refineSteps: 0,
    refineBatch: 1,
    secondMoments,
  };
}
