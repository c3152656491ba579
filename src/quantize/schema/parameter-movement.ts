/** Which groups of a block's parameters moved most in training, from its report. */

import type { BlockReport } from "./method.js";
import { parameterGroup } from "./parameters.js";

export interface MovedGroup {
  /** A site ("attn_in"), "clip" or "round". */
  readonly group: string;
  /** The group's parameter that moved most. */
  readonly parameter: string;
  /**
   * ‖final − initial‖ / ‖initial‖ of that parameter. Rounding offsets start at zero: theirs is the root mean square
   * of ‖final‖, in steps of the grid.
   */
  readonly change: number;
}

/**
 * Groups of a report's parameters, those that moved most first; rounding offsets, measured otherwise, last.
 * `shapes` are those of the block's parameters, as `quantization.json` has them.
 */
export function movedGroups(
  moved: BlockReport["moved"],
  shapes: Readonly<Record<string, readonly number[]>>,
): MovedGroup[] {
  const groups = new Map<string, MovedGroup>();
  for (const [parameter, value] of Object.entries(moved)) {
    const group = parameterGroup(parameter);
    const size = (shapes[parameter] ?? []).reduce((product, n) => product * n, 1);
    const change = group === "round" ? value / Math.sqrt(size) : value;
    if (change > (groups.get(group)?.change ?? -1)) groups.set(group, { group, parameter, change });
  }
  return [...groups.values()].sort(
    (a, b) => Number(a.group === "round") - Number(b.group === "round") || b.change - a.change,
  );
}
