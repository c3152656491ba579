/**
 * What SpinQuant learns: one orthogonal matrix for every place that a scheme makes rotate. Each starts as a randomized
 * Hadamard matrix (as the paper finds best), so that learning goes on where QuaRot stops.
 */
import type { Random } from "../../../common/random.js";
import type { BlockProgram } from "../../../backend/contract/program.js";
import type { Scheme } from "../../../backend/contract/scheme.js";
import { initOrthogonal, type InitialValues } from "../../transforms/affine.js";
import { randomizedHadamard } from "../../transforms/hadamard.js";
import { matrixPlaces } from "../../transforms/sites.js";

/** Starting values: `<site>.r<side>` is the start, `<site>.q<side>` the seed of what is learned. */
export function rotationSeeds(
  program: BlockProgram,
  scheme: Scheme,
  random: Random,
): InitialValues {
  const values: InitialValues = new Map();
  for (const { site, side, size } of matrixPlaces(program, scheme))
    initOrthogonal(values, site, side, size, randomizedHadamard(size, random));
  return values;
}
