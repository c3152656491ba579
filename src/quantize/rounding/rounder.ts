/** GPTQ for the linears of one block: factors each second moment once and rounds the weights that read it. */
import {
  factorMoment,
  plainGptq,
  roundWithFactor,
  type FactoredMoment,
  type GptqSolver,
} from "./gptq.js";
import type { SecondMoment } from "../block/input-moments.js";
import type { GptqSettings } from "../schema/gptq-settings.js";
import type { WeightRounder } from "../schema/weight-rounder.js";

/** `notes` collects what had to be done otherwise than asked, naming `where`, e.g. "block 3". */
export function gptqRounder(
  moments: readonly SecondMoment[],
  settings: Pick<GptqSettings, "damping" | "actOrder">,
  where: string,
  notes: string[],
  solver: GptqSolver = plainGptq,
): WeightRounder {
  const factored = new Map<SecondMoment, FactoredMoment>();
  return (role, weight, [rows, cols], steps) => {
    const moment = moments.find(({ roles }) => roles.includes(role));
    if (moment?.cols !== cols)
      throw new Error(`[gptq] ${where}: no second moment of ${cols} channels for "${role}"`);
    let factor = factored.get(moment);
    if (!factor) {
      factored.set(moment, (factor = factorMoment(moment.sum, cols, settings, solver)));
      if (factor.damping !== settings.damping)
        notes.push(
          `${where}: gptq damped the second moment of ${moment.roles.join(", ")} by ${factor.damping} of its mean diagonal instead of ${settings.damping}; with less it cannot be factored`,
        );
    }
    return roundWithFactor({ weight, rows, cols, ...steps }, factor).codes;
  };
}
