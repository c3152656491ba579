/** How large activations get, per channel, where they meet a block's linears. */
import type { Backend } from "../../backend/backend.js";
import {
  blockForward,
  plainHooks,
  type BlockHooks,
  type BlockWeights,
} from "../../models/block.js";
import { LINEAR_SITES, type LinearSite, type ModelConfig } from "../../models/config.js";
import { ropeTables } from "../../models/rope.js";
import { Graph } from "../../tensor/tensor.js";
import { siteSize } from "../transforms/sites.js";
import { sampleRange, type Activations } from "./windows.js";

/** Largest |activation| per channel at each linear site over the calibration set. */
export type SiteMaxima = Readonly<Record<LinearSite, Float64Array>>;

/** Runs the full-precision block over all of `inputs`. */
export function captureMaxima(
  backend: Backend,
  config: ModelConfig,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const sites = Object.keys(LINEAR_SITES) as LinearSite[];
  const maxima = Object.fromEntries(
    sites.map((site) => [site, new Float64Array(siteSize(config, site))]),
  ) as unknown as Record<LinearSite, Float64Array>;
  const plain = plainHooks(weights);
  const observed: BlockHooks = {
    linears(g, site, x, roles) {
      const into = maxima[site];
      const data = g.read(x);
      for (let i = 0, j = 0; i < data.length; i++) {
        const value = Math.abs(data[i]);
        if (value > into[j]) into[j] = value;
        if (++j === into.length) j = 0;
      }
      return plain.linears(g, site, x, roles);
    },
  };
  using arena = backend.arena();
  for (let s = 0; s < inputs.samples; s++) {
    using g = new Graph(backend, { arena });
    const rope =
      config.positions.kind === "rope" ? ropeTables(g, config, 0, inputs.time) : undefined;
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, s, 1));
    blockForward(g, config, weights, observed, x, { layer, batch: 1, rope });
  }
  return maxima;
}
