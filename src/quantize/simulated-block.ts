/**
 * A quantized block as methods train and measure it: named parameters (transforms, clips, rounding offsets) and
 * grids in the graph, weights quantized afresh in every forward pass. A block without parameters is plain rounding
 * to nearest. Every method that works by transforms and grids shares this one statement of the arithmetic.
 * Source: spec/flatquant.md, Sites, Kronecker transform, Quantizers.
 */
import type { RealArray } from "../backend/backend.js";
import { requireLinear, type BlockHooks, type BlockWeights } from "../models/block.js";
import type { HostBlock } from "../models/weights.js";
import type { LinearRole, LinearSite, ModelConfig, SiteName } from "../models/config.js";
import {
  binary,
  clipRows,
  fakeQuantizeAsym,
  flattenRows,
  kronecker,
  linear,
  quantizeRows,
  reshape,
  unary,
  type ClipPair,
} from "../tensor/ops/index.js";
import type { Graph, Tensor } from "../tensor/tensor.js";
import { gridStep, readTensorGrid, type TensorGrid } from "./grids/tensor.js";
import type { Scheme } from "./scheme.js";
import {
  bindTransform,
  formOrthogonals,
  type BoundTransform,
  type MatrixPair,
  type Parameters,
} from "./transforms/affine.js";
import { diagFolds } from "./settle.js";
import { siteOf } from "./transforms/sites.js";
import { splitRows } from "./transforms/split.js";

/** Smallest weight scale (spec/flatquant.md, Quantizers). */
export const WEIGHT_SCALE_FLOOR = 1e-5;

export interface BlockDescription {
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  /** Module path of every linear, e.g. "self_attn.q_proj". */
  readonly paths: Readonly<Partial<Record<LinearRole, string>>>;
}

export function describeBlock(
  block: HostBlock,
  config: ModelConfig,
  scheme: Scheme,
): BlockDescription {
  const paths = Object.fromEntries(
    Object.entries(block.linears).map(([role, l]) => [role, l.path]),
  );
  return { config, scheme, paths };
}

/** Hooks, and what folding needs besides: the same arithmetic, asked for piece by piece. */
export interface SimulatedBlock extends BlockHooks {
  /** Bound transforms by site; k_head and v_head carry their matrix in `right`. */
  readonly transforms: Readonly<Record<SiteName, BoundTransform | undefined>>;
  /**
   * The transformed and (below 16 bits) clipped weight, its channels split where it has a grid of its own. The upstream
   * share of mlp_down's diag is in it only where all rows share one grid: scales per row carry it otherwise.
   */
  unroundedWeight(role: LinearRole): Tensor;
  /** An unrounded weight on its grid: to nearest, or where the learned offsets say. As it was at 16 bits. */
  roundedWeight(role: LinearRole, unrounded: Tensor): Tensor;
  bias(role: LinearRole): Tensor | undefined;
  /** The linear's static grids, where the method gives it some. */
  grid(role: LinearRole): TensorGrid | undefined;
  /** Whether a site's diag stands in the rows of the linear before it, and so is in its activation already. */
  carries(site: LinearSite): boolean;
  /** What a linear's outputs are multiplied with on behalf of the site they go to, [out]. */
  rowFactors(role: LinearRole): RealArray | undefined;
}

/** Sees what each of a site's linears reads, in the order of `roles`; equal activations are one tensor. */
export type ActivationObserver = (
  activations: readonly Tensor[],
  roles: readonly LinearRole[],
) => void;

/** Hooks for one graph: the small matrices are formed once, here, and shared by all uses in the step. */
export function bindSimulated(
  g: Graph,
  { config, scheme, paths }: BlockDescription,
  weights: BlockWeights,
  params: Parameters,
  observe?: ActivationObserver,
): SimulatedBlock {
  const { headDim } = config;
  const formed = formOrthogonals(g, params);
  const site = {
    attn_in: bindTransform(g, params, "attn_in", formed),
    attn_out: bindTransform(g, params, "attn_out", formed),
    mlp_in: bindTransform(g, params, "mlp_in", formed),
    mlp_down: bindTransform(g, params, "mlp_down", formed),
  };
  const keyTransform = bindTransform(g, params, "k_head", formed)?.right;
  const valueTransform = bindTransform(g, params, "v_head", formed)?.right;

  const clip = (name: string, kind: "w" | "a"): ClipPair | undefined => {
    const max = params.get(`clip.${name}.${kind}_max`);
    const min = params.get(`clip.${name}.${kind}_min`);
    return max && min ? { max, min } : undefined;
  };

  const grids = new Map<LinearRole, TensorGrid>();
  for (const role of Object.keys(paths) as LinearRole[]) {
    const grid = readTensorGrid(paths[role] ?? role, (name) => {
      const value = params.get(name);
      return value && g.read(value);
    });
    if (grid) grids.set(role, grid);
  }
  /** The linear whose rows carry a site's diag, in the graph as in the folded model. */
  const carrier = (name: LinearSite): LinearRole | undefined => {
    if (name === "attn_out") return "v";
    return name === "mlp_down" && grids.has("up") && diagFolds(config, name) ? "up" : undefined;
  };
  /** What a linear's outputs are multiplied with on behalf of a site further on, [out]. */
  const rowFactors = (role: LinearRole): Tensor | undefined => {
    const name = role === "v" ? "attn_out" : role === "up" ? "mlp_down" : undefined;
    const diag = name && site[name]?.diag;
    if (!diag || carrier(name) !== role) return undefined;
    if (role === "up") return diag;
    const factors = valueRows(config, g.read(diag));
    return g.constant([factors.length], factors);
  };

  /** A factor per channel that only static grids apply, when they round the activation. */
  const gridFactor = (name: LinearSite): Tensor | undefined => params.get(`${name}.factor`);

  const activationTransform = (name: LinearSite, x: Tensor): Tensor => {
    const factor = gridFactor(name);
    if (factor) return binary(g, "mul", x, factor, "row");
    const t = site[name];
    if (!t) return x;
    // P_o acts over heads: the single matrix of attn_out is the left factor of P_o ⊗ P_v.
    if (name === "attn_out")
      return t.right ? kronecker(g, x, { left: t.right.p, nRight: headDim }) : x;
    if (!t.left && !t.right && carrier(name)) return x;
    if (!t.left && !t.right) return t.diag ? binary(g, "mul", x, t.diag, "row") : x;
    return kronecker(g, x, { left: t.left?.p, right: t.right?.p, diag: t.diag });
  };

  const weightTransform = (name: LinearSite, weight: Tensor): Tensor => {
    const factor = gridFactor(name);
    if (factor) return binary(g, "mul", weight, unary(g, "reciprocal", factor), "row");
    const t: BoundTransform | undefined = site[name];
    if (name === "attn_out" && (t?.right ?? valueTransform)) {
      return kronecker(g, weight, {
        left: t?.right?.inverseT,
        right: valueTransform?.inverseT,
        nLeft: config.numHeads,
        nRight: headDim,
      });
    }
    if (!t) return weight;
    if (!t.left && !t.right)
      return t.inverseDiag ? binary(g, "mul", weight, t.inverseDiag, "row") : weight;
    return kronecker(g, weight, {
      left: t.left?.inverseT,
      right: t.right?.inverseT,
      diag: t.inverseDiag,
    });
  };

  const unroundedWeight = (name: LinearSite, role: LinearRole): Tensor => {
    let w = weightTransform(name, requireLinear(weights, role).weight);
    if (scheme.weightBits < 16) {
      const bounds = clip(paths[role] ?? role, "w");
      if (bounds) w = clipRows(g, w, bounds);
    }
    // P_v on the output side: rows of each head are mixed, after clipping (spec: "the clamp comes before").
    if (role === "v" && valueTransform)
      w = kronecker(g, w, { left: valueTransform.p, nRight: w.shape[1] });
    const factors = rowFactors(role);
    if (factors) w = binary(g, "mul", w, factors, "column");
    const grid = grids.get(role);
    if (!grid || grid.split.channel.length === 0) return w;
    const [rows, cols] = w.shape;
    const { channel, weightPart } = grid.split;
    const reach = threshold(grid.weightThreshold, grid.weightBits);
    const split = splitRows(g.read(w), rows, cols, reach, channel, weightPart);
    return g.constant([rows, cols + channel.length], split);
  };

  const roundedWeight = (role: LinearRole, unrounded: Tensor): Tensor => {
    if (scheme.weightBits >= 16) return unrounded;
    const grid = grids.get(role);
    if (grid)
      return flattenRows(g, unrounded, {
        bits: grid.weightBits,
        step: gridStep(grid.weightThreshold, grid.weightBits),
      });
    return quantizeRows(g, unrounded, {
      bits: scheme.weightBits,
      scaleFloor: WEIGHT_SCALE_FLOOR,
      offset: params.get(`round.${paths[role] ?? role}`),
    });
  };

  const bias = (role: LinearRole): Tensor | undefined => {
    const b = requireLinear(weights, role).bias;
    if (!b) return undefined;
    if (role === "v" && valueTransform) return kronecker(g, b, { right: valueTransform.p });
    const factors = rowFactors(role);
    return factors ? binary(g, "mul", b, factors, "full") : b;
  };

  const quantizedActivations = (x: Tensor, roles: readonly LinearRole[]): Tensor[] => {
    if (scheme.activationBits >= 16) return roles.map(() => x);
    const bits = scheme.activationBits;
    // Without clips or grids of their own, the linears of a site share one quantization.
    let shared: Tensor | undefined;
    return roles.map((role) => {
      const grid = grids.get(role);
      if (grid) return onGrid(x, grid);
      const bound = clip(paths[role] ?? role, "a");
      return bound
        ? quantizeRows(g, x, { bits, clip: bound })
        : (shared ??= quantizeRows(g, x, { bits }));
    });
  };

  const onGrid = (x: Tensor, { activationBits, activationThreshold, split }: TensorGrid): Tensor =>
    flattenRows(g, x, {
      bits: activationBits,
      step: gridStep(activationThreshold, activationBits),
      ...(split.channel.length > 0 && {
        channel: g.indices(split.channel),
        part: g.indices(split.part),
      }),
    });

  return {
    transforms: {
      ...site,
      k_head: bindOnly(keyTransform),
      v_head: bindOnly(valueTransform),
    },
    unroundedWeight: (role) => unroundedWeight(siteOf(role), role),
    roundedWeight,
    bias,
    grid: (role) => grids.get(role),
    carries: (name) => site[name]?.diag !== undefined && carrier(name) !== undefined,
    rowFactors(role) {
      const factors = rowFactors(role);
      return factors && g.read(factors);
    },
    linears(_g, name, x, roles) {
      const activations = quantizedActivations(activationTransform(name, x), roles);
      observe?.(activations, roles);
      return roles.map((role, i) =>
        linear(g, activations[i], roundedWeight(role, unroundedWeight(name, role)), bias(role)),
      );
    },
    queries(_g, q) {
      const rotated = keyTransform ? kronecker(g, q, { right: keyTransform.inverseT }) : q;
      return quantizeQueries(g, rotated, scheme, headDim);
    },
    keys(_g, k) {
      const rotated = keyTransform ? kronecker(g, k, { right: keyTransform.p }) : k;
      return quantizeCache(g, rotated, scheme, headDim, clip("k", "a"));
    },
    values: (_g, v) => quantizeCache(g, v, scheme, headDim, clip("v", "a")),
  };
}

/** The reach of one copy exactly as the grid has it: whole steps. */
function threshold(value: number, bits: number): number {
  return gridStep(value, bits) * (2 ** (bits - 1) - 1);
}

/** Factors of the attention's output channels as factors of v's rows: those of each KV head's first query head. */
export function valueRows(config: ModelConfig, factors: ArrayLike<number>): Float64Array {
  const { headDim, numHeads, numKvHeads } = config;
  const perGroup = numHeads / numKvHeads;
  return Float64Array.from(
    { length: numKvHeads * headDim },
    (_, row) => factors[Math.floor(row / headDim) * perGroup * headDim + (row % headDim)],
  );
}

function bindOnly(right: MatrixPair | undefined): BoundTransform | undefined {
  return right && { right };
}

/** Keys or values on their way into the cache: asymmetric grid per token and head. */
export function quantizeCache(
  g: Graph,
  x: Tensor,
  scheme: Scheme,
  headDim: number,
  clip: ClipPair | undefined,
): Tensor {
  return scheme.kvBits < 16
    ? fakeQuantizeAsym(g, x, { bits: scheme.kvBits, cols: headDim, clip })
    : x;
}

/** Queries are left alone unless the scheme asks; then symmetric per token and head. */
export function quantizeQueries(g: Graph, q: Tensor, scheme: Scheme, headDim: number): Tensor {
  const bits = scheme.queryBits ?? 16;
  if (bits >= 16) return q;
  const perHead = reshape(g, q, [q.size / headDim, headDim]);
  return reshape(g, quantizeRows(g, perHead, { bits }), q.shape);
}
