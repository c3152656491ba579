/**
 * Where a block's transforms stand, and how large their matrices are. Every method that transforms uses the same places
 * (docs/methods.md, Sites), so that a comparison compares the matrices.
 */
import type { HostLinear } from "../../backend/contract/packed.js";
import {
  attentionsOf,
  sitesOf,
  siteNamed,
  type BlockProgram,
  type LinearSite,
  type SiteName,
  type SitePlace,
} from "../../backend/contract/program.js";
import type { HostBlock } from "../../models/weights.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import { kroneckerFactors } from "./affine.js";
import { UsageError } from "../../common/errors.js";
import type { Side } from "../schema/parameters.js";

/** Which transforms a scheme needs. */
export function activeSites(scheme: Scheme): { linears: boolean; keys: boolean; values: boolean } {
  const linears = scheme.weightBits < 16 || scheme.activationBits < 16;
  const queries = (scheme.queryBits ?? 16) < 16;
  return { linears, keys: scheme.kvBits < 16 || queries, values: linears || scheme.kvBits < 16 };
}

/** Linear sites with a Kronecker pair of their own: all but attention's output, whose matrix acts over heads. */
export function kroneckerSites(program: BlockProgram): LinearSite[] {
  return sitesOf(program).flatMap(({ site, attention }) => (attention ? [] : [site]));
}

export function linearsAt(program: BlockProgram, block: HostBlock, site: LinearSite): HostLinear[] {
  return siteNamed(program, site).linears.map((name) => block.linears[name]);
}

/** One square matrix of a block; its parameters are called `<site>.<part><side>`. */
export interface MatrixPlace {
  readonly site: SiteName;
  readonly side: Side;
  /** Rows, and columns. */
  readonly size: number;
}

/**
 * The matrices that a scheme asks for, in a fixed order: Kronecker pairs, heads, keys, values. With a block size a site has
 * one matrix for every run of so many channels instead (I ⊗ R), and none over heads.
 * @throws PlanishError naming a site whose size has no factors and is too large for one matrix, UsageError one that is no
 * whole number of blocks.
 */
export function matrixPlaces(program: BlockProgram, scheme: Scheme, blockSize = 0): MatrixPlace[] {
  const active = activeSites(scheme);
  const places: MatrixPlace[] = [];
  if (active.linears) {
    for (const site of kroneckerSites(program)) {
      if (blockSize > 0) {
        places.push({ site, side: "", size: blockOf(siteNamed(program, site), blockSize) });
        continue;
      }
      const [left, right] = kroneckerFactors(siteNamed(program, site).width, site);
      if (left > 1) places.push({ site, side: "_left", size: left });
      places.push({ site, side: left > 1 ? "_right" : "", size: right });
    }
    for (const { site, attention } of sitesOf(program))
      if (attention && blockSize === 0) places.push({ site, side: "", size: attention.heads });
  }
  // The values' matrix is undone by what reads attention's output, where nothing stands between.
  const folds = sitesOf(program).some(({ attention }) => attention);
  for (const { headDim } of attentionsOf(program)) {
    if (active.keys) places.push({ site: "k_head", side: "", size: headDim });
    if (active.values && folds) places.push({ site: "v_head", side: "", size: headDim });
  }
  return places;
}

/** The block size, where it divides a site's width. */
function blockOf({ site, width }: SitePlace, blockSize: number): number {
  if (width % blockSize === 0) return blockSize;
  throw new UsageError(
    `blocks of ${blockSize} channels do not divide the ${width} of ${site}; give a blockSize that does, or 0 for Kronecker pairs`,
  );
}
