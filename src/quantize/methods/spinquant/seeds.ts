/** What SpinQuant learns: the Cayley seed of one orthogonal matrix for every place that a scheme makes rotate. */
import type { Random } from "../../../common/random.js";
import type { ModelConfig } from "../../../models/config.js";
import type { Scheme } from "../../scheme.js";
import { initOrthogonal, type InitialValues } from "../../transforms/affine.js";
import { matrixPlaces } from "../../transforms/sites.js";

/** Starting values, as `<site>.q<side>`. */
export function rotationSeeds(config: ModelConfig, scheme: Scheme, random: Random): InitialValues {
  const values: InitialValues = new Map();
  for (const { site, side, size } of matrixPlaces(config, scheme))
    initOrthogonal(values, site, side, size, random);
  return values;
}
