/**
 * Folds a block's parameters into its weights, in float64: transforms into weights, diag into the norm or the
 * upstream rows, P_v into v_proj, then codes and scales. Source: docs/methods.md, flatquant, Folding.
 */
import type {
  ClipLogits,
  HostNorm,
  PackedBlock,
  PackedGrid,
  PackedLinear,
  PackedTransform,
  QuantizedMatrix,
} from "../../backend/contract/packed.js";
import { createReferenceBackend } from "../../backend/reference/train/backend.js";
import { roundHalfEven } from "../../backend/reference/train/quantize.js";
import type { RealArray } from "../../backend/contract/training.js";
import { mapValues } from "../../common/records.js";
import { uploadBlock, type HostBlock } from "../../models/weights.js";
import {
  siteOfLinear,
  sitesOf,
  type LinearName,
  type LinearSite,
  type Upstream,
} from "../../backend/contract/program.js";
import { frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import type { WeightRounder } from "../schema/weight-rounder.js";
import { gridStep, type TensorGrid } from "../grids/tensor.js";
import { roundInSingle, storedSteps } from "../grids/groups.js";
import type { GridSteps } from "../schema/weight-rounder.js";
import { bindSimulated, type BlockDescription } from "./simulated-block.js";
import type { ParameterValues } from "../schema/parameters.js";
import { diagFolds, settleParameters } from "../transforms/stored-precision.js";

/**
 * Deterministic: the same values (and the same rounder) give the same packed block on every machine. Without a
 * rounder weights go to the nearest point of their grid, or where learned offsets say.
 */
export function foldBlock(
  block: HostBlock,
  description: BlockDescription,
  values: ParameterValues,
  rounder?: WeightRounder,
): PackedBlock {
  const backend = createReferenceBackend({ realType: "f64" });
  const params = new Map<string, Tensor>();
  const { program } = description;
  const settled = settleParameters(program, block, values);
  for (const [name, { shape, data }] of settled) params.set(name, frozen(backend, shape, data));
  using g = new Graph(backend);
  const simulated = bindSimulated(g, description, uploadBlock(backend, block), params);
  const host = (t: Tensor | undefined): Float32Array | undefined =>
    t && Float32Array.from(g.read(t));
  const diagOf = (site: LinearSite): RealArray | undefined => {
    const diag = settled.get(`${site}.diag`)?.data;
    if (diag && !diagFolds(program, site))
      throw new Error(`a diag at ${site} folds into nothing in this block`);
    return diag;
  };
  /** The diag that a norm or a linear's rows take over. */
  const diagInto = (kind: Upstream["kind"], name: string): RealArray | undefined => {
    const place = sitesOf(program).find(
      ({ upstream }) =>
        upstream?.kind === kind &&
        (upstream.kind === "norm" ? upstream.norm : upstream.linear) === name,
    );
    return place && diagOf(place.site);
  };
  /** A factor that a static grid applies when it rounds the activation. */
  const factorAt = (role: LinearName): Float32Array | undefined => {
    const factor = values.get(`${siteOfLinear(program, role).site}.factor`)?.data;
    return factor && Float32Array.from(factor);
  };
  const clipOf = (name: string): ClipLogits | undefined => {
    const max = settled.get(`clip.${name}.a_max`);
    const min = settled.get(`clip.${name}.a_min`);
    return max && min ? { max: max.data[0], min: min.data[0] } : undefined;
  };

  const linears: Record<LinearName, PackedLinear> = {};
  for (const [role, l] of Object.entries(block.linears)) {
    const unrounded = simulated.unroundedWeight(role);
    const cols = unrounded.cols;
    const bias = host(simulated.bias(role));
    const grid = simulated.grid(role);
    // A diag that rows take over multiplies their scales (or weights) and bias. Rows that share one scale have it in their
    // weights already.
    const rowFactors = grid ? undefined : diagInto("rows", role);
    const own = simulated.weightGrid(role);
    const rounding = values.get(`round.${l.path}`)?.data;
    const nearest = grid
      ? roundOnGrid(g.read(unrounded), unrounded.rows, grid)
      : own && roundInSingle(g.read(unrounded), cols, own, rounding);
    const quantized =
      nearest &&
      quantizedMatrix(nearest, rowFactors, (steps) =>
        rounder?.(role, g.read(unrounded), unrounded.shape, steps),
      );
    const ownBits = grid ? undefined : description.scheme.own?.weights?.[l.path]?.bits;
    linears[role] = {
      path: l.path,
      shape: [l.weight.shape[0], l.weight.shape[1]],
      quantized: quantized && ownBits ? { ...quantized, bits: ownBits } : quantized,
      weight: quantized ? undefined : scaleRows(g.read(unrounded), rowFactors, l.weight.shape[1]),
      bias: bias && scaleRows(bias, rowFactors, 1),
      activationClip: clipOf(l.path),
      grid: grid && packGrid(grid, factorAt(role)),
    };
  }

  const transforms: Partial<Record<LinearSite, PackedTransform>> = {};
  for (const { site, attention } of sitesOf(program)) {
    diagOf(site);
    const t = simulated.transforms[site];
    if (!t?.left && !t?.right) continue;
    // The single matrix of attention's output acts over heads: it is the left factor.
    transforms[site] = attention
      ? { left: host(t.right?.p) }
      : { left: host(t.left?.p), right: host(t.right?.p) };
  }
  const key = simulated.transforms.k_head?.right;
  return {
    norms: mapValues(block.norms, (norm, name) => scaleNorm(norm, diagInto("norm", name))),
    linears,
    activationBits: description.scheme.own?.activationBits,
    kept: block.kept,
    transforms,
    keyTransform: key && {
      matrix: Float32Array.from(g.read(key.p)),
      inverseT: Float32Array.from(g.read(key.inverseT)),
      balance: simulated.keyBalance && {
        diag: Float32Array.from(g.read(simulated.keyBalance.diag)),
        shift: Float32Array.from(g.read(simulated.keyBalance.shift)),
      },
    },
    keyClip: clipOf("k"),
    valueClip: clipOf("v"),
  };
}

function packGrid(grid: TensorGrid, factor: Float32Array | undefined): PackedGrid {
  const { activationBits, weightBits, split } = grid;
  return {
    activationBits,
    weightBits,
    step: gridStep(grid.activationThreshold, activationBits),
    channel: split.channel,
    part: split.part,
    factor,
  };
}

function scaleRows(data: RealArray, factors: RealArray | undefined, cols: number): Float32Array {
  const scaled = new Float32Array(data);
  // From `data`, so that the product is rounded once; a loop, as `from` with a function takes ten times as long.
  if (factors)
    for (let i = 0; i < data.length; i++) scaled[i] = data[i] * factors[Math.floor(i / cols)];
  return scaled;
}

function scaleNorm(norm: HostNorm, diag: RealArray | undefined): HostNorm {
  if (!diag) return norm;
  const scaled = (data: RealArray) => Float32Array.from(data, (x, i) => x * diag[i]);
  return {
    path: norm.path,
    gain: { shape: norm.gain.shape, data: scaled(norm.gain.data) },
    bias: norm.bias && { shape: norm.bias.shape, data: scaled(norm.bias.data) },
  };
}

/**
 * Codes, by the rounder where it gives some, with steps as they are stored: those of groups in 16 bits. A factor of the
 * rows multiplies their steps.
 */
function quantizedMatrix(
  nearest: GridSteps & { readonly codes: Int8Array },
  rowFactors: RealArray | undefined,
  rounded: (steps: GridSteps) => Int8Array | undefined,
): QuantizedMatrix {
  const perRow = nearest.scale.length / (rowFactors?.length ?? 1);
  const { scale, offset, group } = storedSteps({
    ...nearest,
    scale: scaleRows(nearest.scale, rowFactors, perRow),
    offset: nearest.offset && scaleRows(nearest.offset, rowFactors, perRow),
  });
  return { codes: rounded(storedSteps(nearest)) ?? nearest.codes, scale, group, offset };
}

/** The static grid of a whole weight in single precision, one scale for all rows. */
function roundOnGrid(
  weight: RealArray,
  rows: number,
  { weightThreshold, weightBits }: TensorGrid,
): GridSteps & { readonly codes: Int8Array } {
  const step = gridStep(weightThreshold, weightBits);
  const highest = 2 ** (weightBits - 1) - 1;
  const codes = new Int8Array(weight.length);
  for (let i = 0; i < weight.length; i++) {
    const level = roundHalfEven(Math.fround(Math.fround(weight[i]) / step));
    codes[i] = Math.min(Math.max(level, -highest), highest);
  }
  return { codes, scale: new Float32Array(rows).fill(step), bits: weightBits };
}
