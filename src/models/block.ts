/**
 * One decoder block, written once for every architecture and every way of running it.
 *
 * The block asks `BlockHooks` for whatever a quantizer may change: the outputs of linears fed by a site, and the
 * queries, keys and values on their way into attention. Plain hooks compute the original model; methods and
 * packed artifacts bring their own.
 */
import { PlanishError } from "../common/errors.js";
import {
  add,
  attention,
  gatherRows,
  linear,
  norm,
  rope,
  siluMul,
  unary,
  binary,
  type RopeTables,
} from "../tensor/ops/index.js";
import type { Buffer } from "../backend/backend.js";
import type { Graph, Tensor } from "../tensor/tensor.js";
import { LINEAR_SITES, type LinearRole, type LinearSite, type ModelConfig } from "./config.js";

export interface LinearWeights {
  /** [out, in]; may carry integer codes instead of values. */
  readonly weight: Tensor;
  readonly bias?: Tensor;
}

export interface NormWeights {
  readonly gain: Tensor;
  readonly bias?: Tensor;
}

export interface BlockWeights {
  readonly inputNorm: NormWeights;
  readonly postNorm: NormWeights;
  readonly qNorm?: NormWeights;
  readonly kNorm?: NormWeights;
  readonly linears: Readonly<Partial<Record<LinearRole, LinearWeights>>>;
}

/** Roles that exist in this block at a site, in the site's order. */
export function rolesAt(weights: BlockWeights, site: LinearSite): readonly LinearRole[] {
  return LINEAR_SITES[site].filter((role) => weights.linears[role] !== undefined);
}

export interface BlockHooks {
  /** Outputs of the site's linears in the order of `roles`; x: [rows, in]. */
  linears(g: Graph, site: LinearSite, x: Tensor, roles: readonly LinearRole[]): Tensor[];
  /** Queries after RoPE, [rows, heads·headDim]. */
  queries?(g: Graph, q: Tensor): Tensor;
  /** Keys after RoPE, [rows, kvHeads·headDim]; what comes out is what a cache would hold. */
  keys?(g: Graph, k: Tensor): Tensor;
  values?(g: Graph, v: Tensor): Tensor;
}

/** Past keys and values of one sequence; `extend` appends and returns all of them. */
export interface KeyValueCache {
  readonly length: number;
  extend(g: Graph, layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor };
}

/**
 * How rows stand to sequences where sequences share rows (a common beginning, computed once): everything but
 * attention works on rows, and attention sees `sequences` of equal length, padded at the right, where causality
 * hides the padding.
 */
export interface SharedRows {
  readonly sequences: number;
  /** i32 [sequences·time]: the row at each position; any row at padding. */
  readonly spread: Buffer;
  /** i32 [rows]: for each row one place of `spread` that holds it. */
  readonly collect: Buffer;
}

export interface BlockContext {
  readonly layer: number;
  readonly batch: number;
  readonly rope?: RopeTables;
  readonly cache?: KeyValueCache;
  /** Replaces `batch`. */
  readonly shared?: SharedRows;
  /**
   * Replaces attention: rows of queries, keys and values of this step, as the hooks left them, to mixed values
   * [rows, heads·headDim]. For caches that hold several sequences.
   */
  readonly attend?: (g: Graph, layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;
}

/** The unquantized block. */
export function plainHooks(weights: BlockWeights): BlockHooks {
  return {
    linears: (g, _site, x, roles) =>
      roles.map((role) => {
        const { weight, bias } = requireLinear(weights, role);
        return linear(g, x, weight, bias);
      }),
  };
}

export function requireLinear(weights: BlockWeights, role: LinearRole): LinearWeights {
  const found = weights.linears[role];
  if (!found) throw new PlanishError(`block has no "${role}" linear`);
  return found;
}

/**
 * The decoder block. x: [batch·time, hidden]. Norms first: y = x + attention(norm(x)), then y + mlp(norm(y)).
 * Norms after: y = norm(x + attention(x)), then norm(y + mlp(y)). Source: spec/flatquant.md, Sites.
 */
export function blockForward(
  g: Graph,
  config: ModelConfig,
  weights: BlockWeights,
  hooks: BlockHooks,
  x: Tensor,
  context: BlockContext,
): Tensor {
  const normed = (w: NormWeights, t: Tensor) => norm(g, t, { ...config.norm, ...w });
  const { inputNorm, postNorm } = weights;
  if (config.normPlacement === "after") {
    const attended = add(g, x, attentionPart(g, config, weights, hooks, x, context));
    const middle = normed(inputNorm, attended);
    return normed(postNorm, add(g, middle, mlpPart(g, config, weights, hooks, middle)));
  }
  const y = add(
    g,
    x,
    attentionPart(g, config, weights, hooks, normed(inputNorm, x), context),
  );
  return add(g, y, mlpPart(g, config, weights, hooks, normed(postNorm, y)));
}

/** `x`: what q, k and v read. */
function attentionPart(
  g: Graph,
  config: ModelConfig,
  weights: BlockWeights,
  hooks: BlockHooks,
  x: Tensor,
  { layer, batch, rope: tables, cache, shared, attend }: BlockContext,
): Tensor {
  const outputs = hooks.linears(g, "attn_in", x, rolesAt(weights, "attn_in"));
  let [q, k, v] = outputs;
  if (weights.qNorm) q = norm(g, q, { kind: "rms", epsilon: config.norm.epsilon, ...weights.qNorm });
  if (weights.kNorm) k = norm(g, k, { kind: "rms", epsilon: config.norm.epsilon, ...weights.kNorm });
  if (tables) {
    q = rope(g, q, config.headDim, tables);
    k = rope(g, k, config.headDim, tables);
  }
  if (hooks.queries) q = hooks.queries(g, q);
  if (hooks.keys) k = hooks.keys(g, k);
  if (hooks.values) v = hooks.values(g, v);
  if (attend) return hooks.linears(g, "attn_out", attend(g, layer, q, k, v), rolesAt(weights, "attn_out"))[0];
  if (cache) ({ k, v } = cache.extend(g, layer, k, v));
  if (shared) [q, k, v] = [q, k, v].map((rows) => gatherRows(g, rows, shared.spread));
  let mixed = attention(g, q, k, v, {
    batch: shared?.sequences ?? batch,
    heads: config.numHeads,
    kvHeads: config.numKvHeads,
    headDim: config.headDim,
    window: config.slidingWindow,
  });
  if (shared) mixed = gatherRows(g, mixed, shared.collect);
  return hooks.linears(g, "attn_out", mixed, rolesAt(weights, "attn_out"))[0];
}

function mlpPart(g: Graph, config: ModelConfig, weights: BlockWeights, hooks: BlockHooks, x: Tensor): Tensor {
  const outputs = hooks.linears(g, "mlp_in", x, rolesAt(weights, "mlp_in"));
  return hooks.linears(g, "mlp_down", mlpActivation(g, config, outputs), rolesAt(weights, "mlp_down"))[0];
}

function mlpActivation(g: Graph, { mlp }: ModelConfig, outputs: readonly Tensor[]): Tensor {
  if (!mlp.gated) return unary(g, mlp.activation, outputs[0]);
  const [gate, up] = outputs;
  return mlp.activation === "silu" ? siluMul(g, gate, up) : binary(g, "mul", unary(g, mlp.activation, gate), up);
}
