/** SmoothQuant's only parameters: one factor per channel at each site that lets it fold. */
import type { ModelConfig } from "../../../models/config.js";
import type { HostBlock } from "../../../models/weights.js";
import type { SiteMaxima } from "../../calibration/maxima.js";
import { diagFolds, type ParameterValues } from "../../fold.js";
import { balancingDiag } from "../../transforms/diag.js";
import { KRONECKER_SITES, linearsAt, siteSize } from "../../transforms/sites.js";

export type SmoothedSite = (typeof KRONECKER_SITES)[number];

/** Sites behind a norm: the paper's. */
export const NORM_SITES: readonly SmoothedSite[] = ["attn_in", "mlp_in"];

/**
 * `<site>.diag` = 1/s with s_j = max|X_j|^α / max|W_j|^(1−α), over all linears that read the site: the block multiplies
 * activations with its diag, where the paper divides by s.
 */
export function smoothingDiags(
  block: HostBlock,
  config: ModelConfig,
  maxima: SiteMaxima,
  alpha: number,
  sites: readonly SmoothedSite[] = KRONECKER_SITES,
): ParameterValues {
  return new Map(
    sites
      .filter((site) => diagFolds(config, site))
      .map((site) => [
        `${site}.diag`,
        {
          shape: [siteSize(config, site)],
          data: balancingDiag(linearsAt(block, site), maxima[site], alpha),
        },
      ]),
  );
}
