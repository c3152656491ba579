/** Cases by number: which format each is of, and its input, made again from a seed. */
import { Random } from "../../src/common/random.js";
import { TARGETS } from "./formats/index.js";
import type { Target } from "./target.js";

/** The formats of a run: all, or those whose names contain a text, without one that is skipped. @throws Error naming the formats. */
export function targetsOf(format?: string, skip?: string): readonly Target[] {
  const chosen = TARGETS.filter(
    ({ name }) => name !== skip && name.toLowerCase().includes((format ?? "").toLowerCase()),
  );
  if (chosen.length > 0) return chosen;
  throw new Error(
    `no format is called "${String(format)}"; there are ${TARGETS.map(({ name }) => name).join(", ")}`,
  );
}

/** Case `number` of a run; formats take turns. */
export function caseOf(
  targets: readonly Target[],
  seed: number,
  number: number,
): { target: Target; input: () => Uint8Array } {
  const target = targets[number % targets.length];
  return { target, input: () => target.generate(Random.for(seed, target.name, number)) };
}
