/** One randomized Hadamard matrix for every place of a block that a scheme makes rotate. */
import type { Random } from "../../common/random.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import type { ParameterValues } from "../schema/parameters.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import { randomizedHadamard } from "./hadamard.js";
import { matrixPlaces } from "./sites.js";

/** By the names of the direct parametrisation, `<site>.p<side>`. */
export function rotations(program: BlockProgram, scheme: Scheme, random: Random): ParameterValues {
  return new Map(
    matrixPlaces(program, scheme).map(({ site, side, size }) => [
      `${site}.p${side}`,
      { shape: [size, size], data: randomizedHadamard(size, random) },
    ]),
  );
}
