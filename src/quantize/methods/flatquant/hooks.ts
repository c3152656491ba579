/**
 * The block as it is trained: transforms and grids in the graph, weights quantized afresh in every forward pass.
 * Source: spec/flatquant.md, Sites, Kronecker transform, Quantizers.
 */
import { requireLinear, type BlockHooks, type BlockWeights } from "../../../models/block.js";
import type { HostBlock } from "../../../models/weights.js";
import type { LinearRole, LinearSite, ModelConfig } from "../../../models/config.js";
import {
  clipRows,
  fakeQuantizeAsym,
  kronecker,
  linear,
  quantizeRows,
  type ClipPair,
} from "../../../tensor/ops/index.js";
import type { Graph, Tensor } from "../../../tensor/tensor.js";
import type { Scheme } from "../../scheme.js";
import { bindTransform, type BoundTransform, type Parameters } from "../../transforms/affine.js";

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

/** Hooks for one graph: the small matrices are formed once, here, and shared by all uses in the step. */
export function bindFlatQuant(
  g: Graph,
  { config, scheme, paths }: BlockDescription,
  weights: BlockWeights,
  params: Parameters,
): BlockHooks {
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
    return kronecker(g, weight, {
      left: t.left?.inverseT,
      right: t.right?.inverseT,
      diag: t.inverseDiag,
    });
  };

  const quantizedWeight = (name: LinearSite, role: LinearRole): Tensor => {
    const path = paths[role] ?? role;
    let w = weightTransform(name, requireLinear(weights, role).weight);
    if (scheme.weightBits < 16) {
      const bounds = clip(path, "w");
      if (bounds) w = clipRows(g, w, bounds);
    }
    // P_v on the output side: rows of each head are mixed, after clipping (spec: "the clamp comes before").
    if (role === "v" && valueTransform)
      w = kronecker(g, w, { left: valueTransform.p, nRight: w.shape[1] });
    if (scheme.weightBits < 16)
      w = quantizeRows(g, w, {
        bits: scheme.weightBits,
        scaleFloor: WEIGHT_SCALE_FLOOR,
        offset: params.get(`round.${path}`),
      });
    return w;
  };

  const bias = (role: LinearRole): Tensor | undefined => {
    const b = requireLinear(weights, role).bias;
    return b && role === "v" && valueTransform ? kronecker(g, b, { right: valueTransform.p }) : b;
  };

  return {
    linears(_g, name, x, roles) {
      const transformed = activationTransform(name, x);
      return roles.map((role) => {
        const activation =
          scheme.activationBits < 16
            ? quantizeRows(g, transformed, {
                bits: scheme.activationBits,
                clip: clip(paths[role] ?? role, "a"),
              })
            : transformed;
        return linear(g, activation, quantizedWeight(name, role), bias(role));
      });
    },
    queries(_g, q) {
      const rotated = keyTransform ? kronecker(g, q, { right: keyTransform.inverseT }) : q;
      const bits = scheme.queryBits ?? 16;
      return bits < 16 ? fakeQuantizeAsym(g, rotated, { bits, cols: headDim }) : rotated;
    },
    keys(_g, k) {
      const rotated = keyTransform ? kronecker(g, k, { right: keyTransform.p }) : k;
      return scheme.kvBits < 16
        ? fakeQuantizeAsym(g, rotated, { bits: scheme.kvBits, cols: headDim, clip: clip("k", "a") })
        : rotated;
    },
    values(_g, v) {
      return scheme.kvBits < 16
        ? fakeQuantizeAsym(g, v, { bits: scheme.kvBits, cols: headDim, clip: clip("v", "a") })
        : v;
    },
  };
}
