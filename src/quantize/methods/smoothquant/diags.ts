/** SmoothQuant's only parameters: one factor per channel at each site that lets it fold. */
import { sitesOf, type BlockProgram } from "../../../backend/contract/program.js";
import type { HostBlock } from "../../../models/weights.js";
import type { SiteMaxima } from "../../calibration/maxima.js";
import type { ParameterValues } from "../../schema/parameters.js";
import { balancingDiag } from "../../transforms/diag.js";
import { linearsAt } from "../../transforms/sites.js";

/**
 * `<site>.diag` = 1/s with s_j = max|X_j|^α / max|W_j|^(1−α), over all linears that read the site: the block multiplies
 * activations with its diag, where the paper divides by s. "norms": at sites behind a norm alone, the paper's.
 */
export function smoothingDiags(
  block: HostBlock,
  program: BlockProgram,
  maxima: SiteMaxima,
  alpha: number,
  where: "all" | "norms" = "all",
): ParameterValues {
  return new Map(
    sitesOf(program)
      .filter(({ attention, upstream }) => {
        if (attention || !upstream) return false;
        return where === "all" || upstream.kind === "norm";
      })
      .map(({ site, width }) => [
        `${site}.diag`,
        {
          shape: [width],
          data: balancingDiag(linearsAt(program, block, site), maxima[site], alpha),
        },
      ]),
  );
}
