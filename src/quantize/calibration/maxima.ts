/** How large activations get, per channel, where they meet a block's linears. */
import type { Backend } from "../../backend/contract/training.js";
import {
  runBlock,
  plainHooks,
  type BlockHooks,
  type BlockWeights,
} from "../../models/interpret.js";
import {
  sitesOf,
  type BlockProgram,
  type LinearName,
  type LinearSite,
} from "../../backend/contract/program.js";
import { Graph, type Tensor } from "../../tensor/tensor.js";
import { leastRows } from "./experts.js";
import type { BlockJob } from "../schema/method.js";
import { sampleRange, type Activations } from "../schema/windows.js";

/** Largest (or mean) |activation| per channel at each linear site over the calibration set. */
export type SiteMaxima = Readonly<Record<LinearSite, Float64Array>>;

/** Runs the full-precision block over all of `inputs`. */
export function captureMaxima(
  backend: Backend,
  program: BlockProgram,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const known = inputs.statistics?.get("maxima");
  if (known) return known;
  const kept = new Map(
    sitesOf(program).map(({ site, width }) => [site, backend.alloc(backend.realType, width)]),
  );
  observeSites({ backend, program, weights, inputs, layer }, ({ g, site, x }) => {
    const [out, values] = [kept.get(site), g.values(x)];
    if (out) g.kernels.columnMaxima({ rows: x.rows, cols: x.cols, x: values, out });
  });
  const maxima = Object.fromEntries(
    [...kept].map(([site, out]) => [site, Float64Array.from(backend.read(out))]),
  );
  for (const out of kept.values()) backend.free(out);
  inputs.statistics?.set("maxima", maxima);
  return maxima;
}

/** Mean |activation| per channel at each linear site: the full-precision block over all of `inputs`. */
export function captureMeans(
  backend: Backend,
  program: BlockProgram,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const sums = Object.fromEntries(
    sitesOf(program).map(({ site, width }) => [site, new Float64Array(width)]),
  );
  // Of experts those that were seen.
  const rows: Partial<Record<LinearSite, number>> = {};
  observeSites({ backend, program, weights, inputs, layer }, ({ g, site, x }) => {
    const into = sums[site];
    rows[site] = (rows[site] ?? 0) + x.rows;
    const data = g.read(x);
    for (let i = 0, j = 0; i < data.length; i++) {
      into[j] += Math.abs(data[i]);
      if (++j === into.length) j = 0;
    }
  });
  for (const [site, sum] of Object.entries(sums))
    for (let j = 0; j < sum.length; j++) sum[j] /= Math.max(1, rows[site] ?? 0);
  return sums;
}

/** What one linear site of the full-precision block reads and gives in one window. */
export interface SiteEvent {
  readonly g: Graph;
  readonly site: LinearSite;
  /** [tokens, in]. */
  readonly x: Tensor;
  readonly roles: readonly LinearName[];
  /** The linears' outputs, in the order of `roles`. */
  readonly outputs: readonly Tensor[];
}

/** Runs the full-precision block over the calibration windows (or the first few) and shows every linear site to `visit`. */
export function observeSites(
  job: Pick<BlockJob<unknown>, "backend" | "program" | "weights" | "inputs" | "layer">,
  visit: (event: SiteEvent) => void,
  windows = Infinity,
): void {
  const { backend, program, weights, inputs, layer } = job;
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
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, window, 1));
    runBlock(g, program, weights, observed, x, {
      layer,
      batch: 1,
      leastRows: leastRows(program, inputs.time),
    });
  }
}
