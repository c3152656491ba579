/**
 * A quantized block as methods train and measure it: named parameters (transforms, clips, rounding offsets) and
 * grids in the graph, weights quantized afresh in every forward pass. A block without parameters is plain rounding
 * to nearest. Every method that works by transforms and grids shares this one statement of the arithmetic.
 * Source: docs/methods.md, Sites and Grids.
 */
import type { RealArray } from "../../backend/contract/training.js";
import { requireLinear, type BlockHooks, type BlockWeights } from "../../models/interpret.js";
import {
  siteNamed,
  siteOfLinear,
  sitesOf,
  type AttentionPlace,
  type BlockProgram,
  type LinearName,
  type LinearSite,
  type SiteName,
  type SitePlace,
} from "../../backend/contract/program.js";
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
} from "../../tensor/ops/index.js";
import type { Graph, Tensor } from "../../tensor/tensor.js";
import {
  activationGrid,
  onGrid,
  weightGrid,
  WEIGHT_SCALE_FLOOR,
  type Grid,
} from "../grids/groups.js";
import { gridStep, readTensorGrid, type TensorGrid } from "../grids/tensor.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import {
  bindTransform,
  formOrthogonals,
  type BoundTransform,
  type MatrixPair,
  type Parameters,
} from "../transforms/affine.js";
import {
  bindKeyBalance,
  transformKeys,
  transformQueries,
  type BoundKeyBalance,
} from "../transforms/key-balance.js";
import { splitRows } from "../transforms/split.js";

export interface BlockDescription {
  readonly program: BlockProgram;
  readonly scheme: Scheme;
}

/** Hooks, and what folding needs besides: the same arithmetic, asked for piece by piece. */
export interface SimulatedBlock extends BlockHooks {
  transform(g: Graph, site: LinearSite, x: Tensor): Tensor;
  /** Bound transforms by site; k_head and v_head carry their matrix in `right`. */
  readonly transforms: Readonly<Record<SiteName, BoundTransform | undefined>>;
  /**
   * The transformed and (below 16 bits) clipped weight, its channels split where it has a grid of its own. The upstream
   * share of mlp_down's diag is in it only where all rows share one grid: scales per row carry it otherwise.
   */
  unroundedWeight(role: LinearName): Tensor;
  /** An unrounded weight on its grid: to nearest, or where the learned offsets say. As it was at 16 bits. */
  roundedWeight(role: LinearName, unrounded: Tensor): Tensor;
  bias(role: LinearName): Tensor | undefined;
  /** The linear's static grids, where the method gives it some. */
  grid(role: LinearName): TensorGrid | undefined;
  /** The grid of the linear's weight, where it is rounded and has no static one. */
  weightGrid(role: LinearName): Grid | undefined;
  /** What keys are balanced with before their matrix. */
  readonly keyBalance: BoundKeyBalance | undefined;
  /** Whether a site's diag stands in the rows of the linear before it, and so is in its activation already. */
  carries(site: LinearSite): boolean;
  /** What a linear's outputs are multiplied with on behalf of the site they go to, [out]. */
  rowFactors(role: LinearName): RealArray | undefined;
}

/** Sees what each of a site's linears reads, in the order of `roles`; equal activations are one tensor. */
export type ActivationObserver = (
  activations: readonly Tensor[],
  roles: readonly LinearName[],
) => void;

/** Hooks for one graph: the small matrices are formed once, here, and shared by all uses in the step. */
export function bindSimulated(
  g: Graph,
  { program, scheme }: BlockDescription,
  weights: BlockWeights,
  params: Parameters,
  observe?: ActivationObserver,
): SimulatedBlock {
  const formed = formOrthogonals(g, params);
  const places = sitesOf(program);
  const makesValues = (name: LinearName): boolean =>
    places.some(({ attention }) => attention?.values === name);
  const pathOf = (name: LinearName): string => program.linears[name]?.path ?? name;
  const site = Object.fromEntries(
    places.map(({ site: name }) => [name, bindTransform(g, params, name, formed)]),
  );
  const keyTransform = bindTransform(g, params, "k_head", formed)?.right;
  const balance = bindKeyBalance(params.get("k_head.diag"), params.get("k_head.shift"));
  const keyChange = { balance, matrix: keyTransform?.p, inverseT: keyTransform?.inverseT };
  const valueTransform = bindTransform(g, params, "v_head", formed)?.right;

  const clip = (name: string, kind: "w" | "a"): ClipPair | undefined => {
    const max = params.get(`clip.${name}.${kind}_max`);
    const min = params.get(`clip.${name}.${kind}_min`);
    return max && min ? { max, min } : undefined;
  };

  const grids = new Map<LinearName, TensorGrid>();
  for (const role of Object.keys(program.linears)) {
    const grid = readTensorGrid(pathOf(role), (name) => {
      const value = params.get(name);
      return value && g.read(value);
    });
    if (grid) grids.set(role, grid);
  }
  /** The linear whose rows carry a site's diag, in the graph as in the folded model. */
  const carrier = ({ upstream }: SitePlace): LinearName | undefined => {
    if (upstream?.kind === "values") return upstream.linear;
    return upstream?.kind === "rows" && grids.has(upstream.linear) ? upstream.linear : undefined;
  };
  /** What a linear's outputs are multiplied with on behalf of a site further on, [out]. */
  const rowFactors = (role: LinearName): Tensor | undefined => {
    const place = places.find((each) => carrier(each) === role);
    const diag = place && site[place.site]?.diag;
    if (!diag) return undefined;
    if (!place.attention) return diag;
    const factors = valueRows(place.attention, g.read(diag));
    return g.constant([factors.length], factors);
  };

  /** A factor per channel that only static grids apply, when they round the activation. */
  const gridFactor = (name: LinearSite): Tensor | undefined => params.get(`${name}.factor`);

  const activationTransform = (place: SitePlace, x: Tensor): Tensor => {
    const { site: name, attention } = place;
    const factor = gridFactor(name);
    if (factor) return binary(g, "mul", x, factor, "row");
    const t = site[name];
    if (!t) return x;
    // P_o acts over heads: the single matrix of attention's output is the left factor of P_o ⊗ P_v.
    if (attention)
      return t.right ? kronecker(g, x, { left: t.right.p, nRight: attention.headDim }) : x;
    if (!t.left && !t.right && carrier(place)) return x;
    if (!t.left && !t.right) return t.diag ? binary(g, "mul", x, t.diag, "row") : x;
    const nLeft = runs(place, t);
    return kronecker(g, x, { left: t.left?.p, right: t.right?.p, diag: t.diag, nLeft });
  };

  const weightTransform = (place: SitePlace, weight: Tensor): Tensor => {
    const { site: name, attention } = place;
    const factor = gridFactor(name);
    if (factor) return binary(g, "mul", weight, unary(g, "reciprocal", factor), "row");
    const t: BoundTransform | undefined = site[name];
    if (attention && (t?.right ?? valueTransform)) {
      return kronecker(g, weight, {
        left: t?.right?.inverseT,
        right: valueTransform?.inverseT,
        nLeft: attention.heads,
        nRight: attention.headDim,
      });
    }
    if (!t) return weight;
    if (!t.left && !t.right)
      return t.inverseDiag ? binary(g, "mul", weight, t.inverseDiag, "row") : weight;
    return kronecker(g, weight, {
      left: t.left?.inverseT,
      right: t.right?.inverseT,
      diag: t.inverseDiag,
      nLeft: runs(place, t),
    });
  };

  const unroundedWeight = (role: LinearName): Tensor => {
    let w = weightTransform(siteOfLinear(program, role), requireLinear(weights, role).weight);
    if (scheme.weightBits < 16) {
      const bounds = clip(pathOf(role), "w");
      if (bounds) w = clipRows(g, w, bounds, scheme.weightGroup);
    }
    // P_v on the output side: rows of each head are mixed, after clipping (spec: "the clamp comes before").
    if (makesValues(role) && valueTransform)
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

  const roundedWeight = (role: LinearName, unrounded: Tensor): Tensor => {
    if (scheme.weightBits >= 16) return unrounded;
    const grid = grids.get(role);
    if (grid)
      return flattenRows(g, unrounded, {
        bits: grid.weightBits,
        step: gridStep(grid.weightThreshold, grid.weightBits),
      });
    return onGrid(g, unrounded, weightGrid(scheme, pathOf(role)), {
      scaleFloor: WEIGHT_SCALE_FLOOR,
      rounding: params.get(`round.${pathOf(role)}`),
    });
  };

  const bias = (role: LinearName): Tensor | undefined => {
    const b = requireLinear(weights, role).bias;
    if (!b) return undefined;
    if (makesValues(role) && valueTransform) return kronecker(g, b, { right: valueTransform.p });
    const factors = rowFactors(role);
    return factors ? binary(g, "mul", b, factors, "full") : b;
  };

  const quantizedActivations = (
    at: LinearSite,
    x: Tensor,
    roles: readonly LinearName[],
  ): Tensor[] => {
    if (scheme.activationBits >= 16) return roles.map(() => x);
    const each = activationGrid(scheme, at);
    // Without clips or grids of their own, the linears of a site share one quantization.
    let shared: Tensor | undefined;
    return roles.map((role) => {
      const grid = grids.get(role);
      if (grid) return onTensorGrid(x, grid);
      const bound = clip(pathOf(role), "a");
      return bound ? onGrid(g, x, each, { clip: bound }) : (shared ??= onGrid(g, x, each));
    });
  };

  const onTensorGrid = (
    x: Tensor,
    { activationBits, activationThreshold, split }: TensorGrid,
  ): Tensor =>
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
    keyBalance: balance,
    unroundedWeight,
    roundedWeight,
    bias,
    grid: (role) => grids.get(role),
    weightGrid: (role) =>
      scheme.weightBits >= 16 || grids.has(role) ? undefined : weightGrid(scheme, pathOf(role)),
    carries: (name) =>
      site[name]?.diag !== undefined && carrier(siteNamed(program, name)) !== undefined,
    rowFactors(role) {
      const factors = rowFactors(role);
      return factors && g.read(factors);
    },
    transform: (_g, name, x) => activationTransform(siteNamed(program, name), x),
    linears(_g, name, x, roles) {
      const activations = quantizedActivations(name, x, roles);
      observe?.(activations, roles);
      return roles.map((role, i) =>
        linear(g, activations[i], roundedWeight(role, unroundedWeight(role)), bias(role)),
      );
    },
    queries: (_g, q, { headDim }) =>
      quantizeQueries(g, transformQueries(g, q, keyChange, headDim), scheme, headDim),
    keys: (_g, k, { headDim }) =>
      quantizeCache(g, transformKeys(g, k, keyChange), scheme, headDim, clip("k", "a")),
    values: (_g, v, { headDim }) => quantizeCache(g, v, scheme, headDim, clip("v", "a")),
  };
}

/** How many runs of channels a single matrix serves. */
function runs({ width }: SitePlace, { left, right }: BoundTransform): number | undefined {
  return left || !right ? undefined : width / right.p.shape[0];
}

/** The reach of one copy exactly as the grid has it: whole steps. */
function threshold(value: number, bits: number): number {
  return gridStep(value, bits) * (2 ** (bits - 1) - 1);
}

/** Factors of the attention's output channels as factors of v's rows: those of each KV head's first query head. */
export function valueRows(
  { headDim, heads, kvHeads }: Omit<AttentionPlace, "values">,
  factors: ArrayLike<number>,
): Float64Array {
  const perGroup = heads / kvHeads;
  return Float64Array.from(
    { length: kvHeads * headDim },
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
