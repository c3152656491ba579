/**
 * Where a block's transforms stand, and how large their matrices are. Every method that transforms uses the same places
 * (spec/flatquant.md, Sites), so that a comparison compares the matrices.
 */
import {
  LINEAR_SITES,
  type LinearRole,
  type LinearSite,
  type ModelConfig,
  type SiteName,
} from "../../models/config.js";
import { linearShape, type HostBlock, type HostLinear } from "../../models/weights.js";
import type { Scheme } from "../scheme.js";
import { kroneckerFactors, type Side } from "./affine.js";

/** Sites with a Kronecker pair of their own. */
export const KRONECKER_SITES = ["attn_in", "mlp_in", "mlp_down"] as const;

/** Which transforms a scheme needs. */
export function activeSites(scheme: Scheme): { linears: boolean; keys: boolean; values: boolean } {
  const linears = scheme.weightBits < 16 || scheme.activationBits < 16;
  const queries = (scheme.queryBits ?? 16) < 16;
  return { linears, keys: scheme.kvBits < 16 || queries, values: linears || scheme.kvBits < 16 };
}

/** Width of the activation at a linear site. */
export function siteSize(config: ModelConfig, site: LinearSite): number {
  const role = ({ attn_in: "q", attn_out: "o", mlp_in: "up", mlp_down: "down" } as const)[site];
  return linearShape(config, role)[1];
}

export function linearsAt(block: HostBlock, site: LinearSite): HostLinear[] {
  return LINEAR_SITES[site].flatMap((role: LinearRole) => block.linears[role] ?? []);
}

/** One square matrix of a block; its parameters are called `<site>.<part><side>`. */
export interface MatrixPlace {
  readonly site: SiteName;
  readonly side: Side;
  /** Rows, and columns. */
  readonly size: number;
}

/**
 * The matrices that a scheme asks for, in a fixed order: Kronecker pairs, heads, keys, values.
 * @throws PlanishError naming a site whose size has no factors and is too large for one matrix.
 */
export function matrixPlaces(config: ModelConfig, scheme: Scheme): MatrixPlace[] {
  const active = activeSites(scheme);
  const places: MatrixPlace[] = [];
  if (active.linears) {
    for (const site of KRONECKER_SITES) {
      const [left, right] = kroneckerFactors(siteSize(config, site), site);
      if (left > 1) places.push({ site, side: "_left", size: left });
      places.push({ site, side: left > 1 ? "_right" : "", size: right });
    }
    places.push({ site: "attn_out", side: "", size: config.numHeads });
  }
  if (active.keys) places.push({ site: "k_head", side: "", size: config.headDim });
  if (active.values) places.push({ site: "v_head", side: "", size: config.headDim });
  return places;
}

/** The site whose activation a linear reads. */
export function siteOf(role: LinearRole): LinearSite {
  const sites = Object.keys(LINEAR_SITES) as LinearSite[];
  return sites.find((name) => LINEAR_SITES[name].includes(role)) ?? "attn_in";
}
