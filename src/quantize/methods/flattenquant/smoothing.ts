/**
 * Channel smoothing: a positive factor per channel that evens out activations and weights before they are split.
 * Source: docs/methods.md, flattenquant, Smoothing. With each side's maxima taken relative to its largest channel, â and ŵ,
 * s_j = â_j^α / ŵ_j^(1−α), rescaled to geometric mean 1; the activation is divided by s, the weight multiplied.
 *
 * Linears that read one activation share its factors. Those of the MLP's inner activation and of the attention's output
 * may stand in the rows of the linears before them, so they are found first: they change those weights.
 */
import type { HostBlock } from "../../../models/weights.js";
import {
  siteNamed,
  sitesOf,
  type BlockProgram,
  type LinearName,
  type LinearSite,
  type SitePlace,
} from "../../../backend/contract/program.js";
import type { SiteMaxima } from "../../calibration/maxima.js";
import { valueRows } from "../../block/simulated-block.js";
import { settleParameters } from "../../transforms/stored-precision.js";
import { columnMaxima } from "../../transforms/split.js";

/** What each site's activation is multiplied with: 1/s. */
export type SmoothingFactors = Readonly<Partial<Record<LinearSite, Float64Array>>>;

/** Whether a site's factors go into the rows of the linear before it, or into the quantize kernel. */
export type RowPlacement = "fold" | "kernel";

/** Whether a site's factors fold into what comes before it; otherwise the quantize kernel applies them. */
export function smoothingFolds(
  program: BlockProgram,
  site: LinearSite,
  rows: RowPlacement,
): boolean {
  const { upstream } = siteNamed(program, site);
  return upstream !== undefined && !(upstream.kind !== "norm" && rows === "kernel");
}

/** A block's weights as they are split and rounded: smoothed along their columns, and along rows where factors fold. */
export type SmoothedWeights = Readonly<Record<LinearName, Float64Array>>;

/** Sites whose factors may stand in the rows of a linear, the last ones first; then the others. */
function inOrder(program: BlockProgram): SitePlace[] {
  const behindLinear = ({ upstream }: SitePlace) =>
    upstream !== undefined && upstream.kind !== "norm";
  const sites = sitesOf(program);
  return [...sites.filter(behindLinear).reverse(), ...sites.filter((site) => !behindLinear(site))];
}

/** Channels that never fire, or that no weight reads, keep the factor 1 and count in no mean. */
export function smoothBlock(
  block: HostBlock,
  program: BlockProgram,
  maxima: SiteMaxima,
  { alpha, rows }: { readonly alpha: number; readonly rows: RowPlacement },
): { factors: SmoothingFactors; weights: SmoothedWeights } {
  const factors: Partial<Record<LinearSite, Float64Array>> = {};
  const weights: Record<LinearName, Float64Array> = {};
  for (const place of inOrder(program)) {
    const { site, linears: roles } = place;
    for (const role of roles) weights[role] = withRowFactors(block, program, role, factors, rows);
    const sides = sideMaxima(place, maxima[site], weights);
    const s = channelScales(sides.activation, sides.weight, alpha);
    const wanted = s.map((value) => Math.fround(1 / value));
    // As the artifact will hold them (a norm's gain has 16 bits), so that statistics are those of what will run.
    factors[site] = smoothingFolds(program, site, rows)
      ? settled(program, block, site, wanted)
      : wanted;
    for (const role of roles)
      weights[role] = weights[role]?.map(
        (value, i) => value / (factors[site]?.[i % s.length] ?? 1),
      );
  }
  return { factors, weights };
}

function settled(
  program: BlockProgram,
  block: HostBlock,
  site: LinearSite,
  data: Float64Array,
): Float64Array {
  const name = `${site}.diag`;
  const values = settleParameters(
    program,
    block,
    new Map([[name, { shape: [data.length], data }]]),
  );
  return Float64Array.from(values.get(name)?.data ?? data);
}

/** s by channel, from the largest magnitudes of both sides. */
export function channelScales(
  activation: Float64Array,
  weight: Float64Array,
  alpha: number,
): Float64Array {
  const largest = (values: Float64Array) => values.reduce((a, b) => Math.max(a, b), 0);
  const [mostX, mostW] = [largest(activation), largest(weight)];
  const logs = activation.map((a, j) =>
    a > 0 && weight[j] > 0
      ? alpha * Math.log(a / mostX) - (1 - alpha) * Math.log(weight[j] / mostW)
      : NaN,
  );
  const live = logs.filter((x) => !Number.isNaN(x));
  const mean = live.reduce((sum, x) => sum + x, 0) / live.length;
  return logs.map((x) => (Number.isNaN(x) ? 1 : Math.exp(x - mean)));
}

/** Largest magnitude per channel of an activation and of all weights that read it; KV groups share theirs. */
function sideMaxima(
  { linears, attention }: SitePlace,
  activation: Float64Array,
  weights: SmoothedWeights,
): { activation: Float64Array; weight: Float64Array } {
  const weight = new Float64Array(activation.length);
  for (const role of linears)
    columnMaxima(weights[role] ?? new Float64Array(), weight.length).forEach((max, j) => {
      weight[j] = Math.max(weight[j], max);
    });
  if (!attention) return { activation, weight };
  // One row of v serves the same channel of every query head in its group.
  const { headDim, heads, kvHeads } = attention;
  const perGroup = heads / kvHeads;
  const grouped = (values: Float64Array): Float64Array =>
    values.map((_, j) => {
      const first = Math.floor(j / headDim / perGroup) * perGroup * headDim + (j % headDim);
      let most = 0;
      for (let h = 0; h < perGroup; h++) most = Math.max(most, values[first + h * headDim]);
      return most;
    });
  return { activation: grouped(activation), weight: grouped(weight) };
}

/** A weight with the factors that fold into its rows. */
function withRowFactors(
  block: HostBlock,
  program: BlockProgram,
  role: LinearName,
  factors: SmoothingFactors,
  placement: RowPlacement,
): Float64Array {
  const weight = block.linears[role]?.weight;
  if (!weight) throw new Error(`block has no "${role}"`);
  const data = Float64Array.from(weight.data);
  const place = sitesOf(program).find(
    ({ upstream }) => upstream && upstream.kind !== "norm" && upstream.linear === role,
  );
  const factor =
    place && smoothingFolds(program, place.site, placement) ? factors[place.site] : undefined;
  if (!place || !factor) return data;
  const rows = place.attention ? valueRows(place.attention, factor) : factor;
  const cols = weight.shape[1];
  return data.map((value, i) => value * rows[Math.floor(i / cols)]);
}

/** Channel maxima of a site's activation, once smoothed. */
export function smoothedMaxima(
  site: LinearSite,
  maxima: SiteMaxima,
  factors: SmoothingFactors,
): Float64Array {
  return maxima[site].map((max, j) => max * (factors[site]?.[j] ?? 1));
}
