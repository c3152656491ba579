/** How large activations get, per channel, where they meet a block's linears. */
import type { Backend } from "../../backend/backend.js";
import {
  blockForward,
  plainHooks,
  type BlockHooks,
  type BlockWeights,
} from "../../models/block.js";
import {
  LINEAR_SITES,
  type LinearRole,
  type LinearSite,
  type ModelConfig,
} from "../../models/config.js";
import { ropeTables } from "../../models/rope.js";
import { Graph, type Tensor } from "../../tensor/tensor.js";
import type { BlockJob } from "../method.js";
import { siteSize } from "../transforms/sites.js";
import { sampleRange, type Activations } from "./windows.js";

/** Largest (or mean) |activation| per channel at each linear site over the calibration set. */
export type SiteMaxima = Readonly<Record<LinearSite, Float64Array>>;

/** Runs the full-precision block over all of `inputs`. */
export function captureMaxima(
  backend: Backend,
  config: ModelConfig,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const known = inputs.statistics?.get("maxima") as SiteMaxima | undefined;
  if (known) return known;
  const sites = Object.keys(LINEAR_SITES) as LinearSite[];
  const kept = new Map(
    sites.map((site) => [site, backend.alloc(backend.realType, siteSize(config, site))]),
  );
  observeSites({ backend, config, weights, inputs, layer }, ({ g, site, x }) => {
    const [out, values] = [kept.get(site), g.values(x)];
    if (out) g.kernels.columnMaxima({ rows: x.rows, cols: x.cols, x: values, out });
  });
  const maxima = Object.fromEntries(
    [...kept].map(([site, out]) => [site, Float64Array.from(backend.read(out))]),
  ) as unknown as SiteMaxima;
  for (const out of kept.values()) backend.free(out);
  inputs.statistics?.set("maxima", maxima);
  return maxima;
}

/** Mean |activation| per channel at each linear site: the full-precision block over all of `inputs`. */
export function captureMeans(
  backend: Backend,
  config: ModelConfig,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const sites = Object.keys(LINEAR_SITES) as LinearSite[];
  const sums = Object.fromEntries(
    sites.map((site) => [site, new Float64Array(siteSize(config, site))]),
  ) as unknown as Record<LinearSite, Float64Array>;
  observeSites({ backend, config, weights, inputs, layer }, ({ g, site, x }) => {
    const into = sums[site];
    const data = g.read(x);
    for (let i = 0, j = 0; i < data.length; i++) {
      into[j] += Math.abs(data[i]);
      if (++j === into.length) j = 0;
    }
  });
  const tokens = inputs.samples * inputs.time;
  for (const sum of Object.values(sums)) for (let j = 0; j < sum.length; j++) sum[j] /= tokens;
  return sums;
}

/** What one linear site of the full-precision block reads and gives in one window. */
export interface SiteEvent {
  readonly g: Graph;
  readonly site: LinearSite;
  /** [tokens, in]. */
  readonly x: Tensor;
  readonly roles: readonly LinearRole[];
  /** The linears' outputs, in the order of `roles`. */
  readonly outputs: readonly Tensor[];
}

/** Runs the full-precision block over the calibration windows (or the first few) and shows every linear site to `visit`. */
export function observeSites(
  job: Pick<BlockJob<unknown>, "backend" | "config" | "weights" | "inputs" | "layer">,
  visit: (event: SiteEvent) => void,
  windows = Infinity,
): void {
  const { backend, config, weights, inputs, layer } = job;
  const plain = plainHooks(weights);
  using arena = backend.arena();
  for (let window = 0; window < Math.min(windows, inputs.samples); window++) {
    using g = new Graph(backend, { arena });
    const observed: BlockHooks = {
      linears(graph, site, x, roles) {
        const outputs = plain.linears(graph, site, x, roles);
        visit({ g: graph, site, x, roles, outputs });
        return outputs;
      },
    };
    const rope =
      config.positions.kind === "rope" ? ropeTables(g, config, 0, inputs.time) : undefined;
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, window, 1));
    blockForward(g, config, weights, observed, x, { layer, batch: 1, rope });
  }
}
