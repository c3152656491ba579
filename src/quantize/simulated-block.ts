/**
 * A quantized block as methods train and measure it: named parameters (transforms, clips, rounding offsets) and
 * grids in the graph, weights quantized afresh in every forward pass. A block without parameters is plain rounding
 * to nearest. Every method that works by transforms and grids shares this one statement of the arithmetic.
 * Source: spec/flatquant.md, Sites, Kronecker transform, Quantizers.
 */
import { requireLinear, type BlockHooks, type BlockWeights } from "../models/block.js";
import type { HostBlock } from "../models/weights.js";
import {
  LINEAR_SITES,
  type LinearRole,
  type LinearSite,
  type ModelConfig,
  type SiteName,
} from "../models/config.js";
import {
  binary,
  clipRows,
  fakeQuantizeAsym,
  kronecker,
  linear,
  quantizeRows,
  reshape,
  type ClipPair,
} from "../tensor/ops/index.js";
import type { Graph, Tensor } from "../tensor/tensor.js";
import type { Scheme } from "./scheme.js";
import {
  bindTransform,
  type BoundTransform,
  type MatrixPair,
  type Parameters,
} from "./transforms/affine.js";

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
  /** The transformed and (below 16 bits) clipped weight; the upstream share of mlp_down's diag is not in it. */
  unroundedWeight(role: LinearRole): Tensor;
  /** An unrounded weight on its grid: to nearest, or where the learned offsets say. As it was at 16 bits. */
  roundedWeight(role: LinearRole, unrounded: Tensor): Tensor;
  bias(role: LinearRole): Tensor | undefined;
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
  const site = {
    attn_in: bindTransform(g, params, "attn_in"),
    attn_out: bindTransform(g, params, "attn_out"),
    mlp_in: bindTransform(g, params, "mlp_in"),
    mlp_down: bindTransform(g, params, "mlp_down"),
  };
  const keyTransform = bindTransform(g, params, "k_head")?.right;
  const valueTransform = bindTransform(g, params, "v_head")?.right;

  const clip = (name: string, kind: "w" | "a"): ClipPair | undefined => {
    const max = params.get(`clip.${name}.${kind}_max`);
    const min = params.get(`clip.${name}.${kind}_min`);
    return max && min ? { max, min } : undefined;
  };

  const activationTransform = (name: LinearSite, x: Tensor): Tensor => {
    const t = site[name];
    if (!t) return x;
    // P_o acts over heads: the single matrix of attn_out is the left factor of P_o ⊗ P_v.
    if (name === "attn_out") return kronecker(g, x, { left: t.right?.p, nRight: headDim });
    if (!t.left && !t.right) return t.diag ? binary(g, "mul", x, t.diag, "row") : x;
    return kronecker(g, x, { left: t.left?.p, right: t.right?.p, diag: t.diag });
  };

  const weightTransform = (name: LinearSite, weight: Tensor): Tensor => {
    const t: BoundTransform | undefined = site[name];
    if (name === "attn_out") {
      if (!t && !valueTransform) return weight;
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
    return w;
  };

  const roundedWeight = (role: LinearRole, unrounded: Tensor): Tensor =>
    scheme.weightBits < 16
      ? quantizeRows(g, unrounded, {
          bits: scheme.weightBits,
          scaleFloor: WEIGHT_SCALE_FLOOR,
          offset: params.get(`round.${paths[role] ?? role}`),
        })
      : unrounded;

  const bias = (role: LinearRole): Tensor | undefined => {
    const b = requireLinear(weights, role).bias;
    return b && role === "v" && valueTransform ? kronecker(g, b, { right: valueTransform.p }) : b;
  };

  const siteOf = (role: LinearRole): LinearSite =>
    (Object.keys(LINEAR_SITES) as LinearSite[]).find((name) => LINEAR_SITES[name].includes(role)) ??
    "attn_in";

  const quantizedActivations = (x: Tensor, roles: readonly LinearRole[]): Tensor[] => {
    if (scheme.activationBits >= 16) return roles.map(() => x);
    const bits = scheme.activationBits;
    const bounds = roles.map((role) => clip(paths[role] ?? role, "a"));
    // Without clips of their own, the linears of a site share one quantization.
    if (bounds.every((b) => b === undefined)) {
      const shared = quantizeRows(g, x, { bits });
      return roles.map(() => shared);
    }
    return bounds.map((bound) => quantizeRows(g, x, { bits, clip: bound }));
  };

  return {
    transforms: {
      ...site,
      k_head: bindOnly(keyTransform),
      v_head: bindOnly(valueTransform),
    },
    unroundedWeight: (role) => unroundedWeight(siteOf(role), role),
    roundedWeight,
    bias,
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
