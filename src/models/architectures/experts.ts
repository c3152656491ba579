/** Mixtures of experts: what configurations say of them, and the MLP that consists of experts. */
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { BlockBuilder, NamedLinear } from "../builder.js";
import { BlockBuilder as Builder } from "../builder.js";
import type { ConfigReader, ExpertsConfig, ModelConfig } from "../config.js";
import type {
  BlockProgram,
  LinearPlace,
  StoredRows,
  ValueName,
} from "../../backend/contract/program.js";
import {
  attentionPart,
  blockNorms,
  mlpPart,
  type AttentionForm,
  type BlockPaths,
} from "./common.js";
import { latentAttention } from "./latent.js";

/** Where the parts of one MLP are stored; without a gate it is act(up) through down. */
export interface GatedPaths {
  readonly gate?: string;
  readonly up: string;
  readonly down: string;
}

/** Where a mixture is stored. */
export interface ExpertsPaths {
  readonly router: string;
  readonly routerBias?: string;
  readonly correction?: string;
  readonly expert: (expert: number) => GatedPaths;
  /** Rows of other tensors that hold an expert's part. */
  readonly stored?: (expert: number, part: keyof GatedPaths) => StoredRows;
  /** An MLP that all rows go through. */
  readonly shared?: GatedPaths;
  readonly sharedStored?: (part: keyof GatedPaths) => StoredRows;
  /** What weighs it, [1, hidden]. */
  readonly sharedGate?: string;
}

/**
 * The number of experts, under the names that it has, and of those that a row goes to.
 * @throws PlanishError when they contradict one another.
 */
export function expertCounts(
  c: ConfigReader,
  keys: readonly string[],
  fallback: { readonly experts: number; readonly chosen: number },
): Pick<ExpertsConfig, "count" | "chosen"> {
  const given = keys.filter((key) => (c.optional(key) ?? undefined) !== undefined);
  const [key = keys[0]] = given;
  const count = c.integer(key, LIMITS.experts, fallback.experts);
  const other = given.find((each) => c.integer(each, LIMITS.experts) !== count);
  if (other !== undefined)
    throw new PlanishError(
      `config.json: ${key} ${count} and ${other} ${c.integer(other, LIMITS.experts)} disagree; keep the one that the model was trained with`,
    );
  const chosen = c.integer("num_experts_per_tok", count, fallback.chosen);
  return { count, chosen };
}

/** The usual block with experts in the place of its MLP where the layer has some. */
export function expertsBlock(
  config: ModelConfig,
  layer: number,
  paths: BlockPaths & { readonly experts: ExpertsPaths },
  form: AttentionForm = {},
): BlockProgram {
  const b = new Builder();
  const normed = blockNorms(b, config);
  const read = normed(b.input, "input", paths.norms.input);
  const mixed = config.latent
    ? latentAttention(b, config, layer, read, config.latent)
    : attentionPart(b, config, layer, read, paths.attention, form);
  const y = b.add(b.input, mixed);
  return b.finish(feedForward(b, config, layer, y, paths));
}

/** y + MLP(norm(y)), or y + experts(norm(y)). */
export function feedForward(
  b: BlockBuilder,
  config: ModelConfig,
  layer: number,
  y: ValueName,
  paths: Pick<BlockPaths, "norms" | "mlp"> & { readonly experts: ExpertsPaths },
): ValueName {
  const { experts } = config;
  const normed = blockNorms(b, config);
  const { post } = paths.norms;
  if (!experts || experts.dense?.[layer])
    return b.add(y, mlpPart(b, config, normed(y, "post", post), paths.mlp));
  return mixture(b, config, experts, y, { ...paths.experts, norm: post });
}

function mixture(
  b: BlockBuilder,
  config: ModelConfig,
  experts: ExpertsConfig,
  y: ValueName,
  paths: ExpertsPaths & { readonly norm?: string },
): ValueName {
  const { hiddenSize, norm, gainOffset } = config;
  const { count, chosen, correction, sharedWidth, sharedGate } = experts;
  const path = paths.norm;
  // The router has the norm to itself: what is folded into the norm of the experts' site does not reach it.
  const plain =
    path === undefined
      ? y
      : b.norm(
          y,
          {
            name: "router",
            path: `${path}_router`,
            offset: gainOffset,
            stored: { parts: [{ path, rows: hiddenSize }] },
          },
          hiddenSize,
          norm,
        );
  const router = b.kept("router", paths.router, [count, hiddenSize]);
  const routing = b.route(plain, {
    router,
    bias:
      paths.routerBias === undefined ? undefined : b.kept("router_bias", paths.routerBias, [count]),
    correction:
      correction && paths.correction !== undefined
        ? b.kept("router_correction", paths.correction, [count])
        : undefined,
    width: hiddenSize,
    experts: count,
    chosen,
    scores: experts.scores,
    normalize: experts.normalize,
    factor: experts.factor,
    weighInputs: experts.weighInputs,
    groups: experts.groups,
  });
  const gate =
    sharedGate && paths.sharedGate !== undefined
      ? b.route(plain, {
          router: b.kept("shared_gate", paths.sharedGate, [1, hiddenSize]),
          ...{
            width: hiddenSize,
            experts: 1,
            chosen: 1,
            scores: "sigmoid",
            normalize: false,
            factor: 1,
          },
        })
      : undefined;
  const middle = blockNorms(b, config)(y, "post", path);
  const site = b.read(middle, "mlp_in", hiddenSize);
  const activated =
    sharedWidth === undefined || paths.shared === undefined
      ? undefined
      : gated(b, config, site, sharedWidth, "shared_", paths.shared, paths.sharedStored);
  const parts = Array.from({ length: count }, (_, expert) => {
    const own = b.dispatch(routing, site, expert);
    const name = `experts.${expert}.`;
    const stored = paths.stored && ((part: keyof GatedPaths) => paths.stored?.(expert, part));
    const places = paths.expert(expert);
    const inner = gated(b, config, own, experts.width, name, places, stored);
    return down(b, config, inner, experts.width, name, places, stored);
  });
  const z = b.add(y, b.combine(routing, parts, hiddenSize));
  if (activated === undefined || sharedWidth === undefined || paths.shared === undefined) return z;
  const shared = down(
    b,
    config,
    activated,
    sharedWidth,
    "shared_",
    paths.shared,
    paths.sharedStored,
  );
  return b.add(z, gate === undefined ? shared : b.weigh(gate, shared));
}

type Stored = ((part: keyof GatedPaths) => StoredRows | undefined) | undefined;

/** act(gate)·up of what a site gives. */
export function gated(
  b: BlockBuilder,
  { hiddenSize, mlp }: ModelConfig,
  read: ValueName,
  width: number,
  prefix: string,
  paths: GatedPaths,
  stored?: Stored,
): ValueName {
  const linear = (part: "gate" | "up", path: string): NamedLinear => ({
    name: `${prefix}${part}`,
    path,
    out: width,
    stored: stored?.(part),
  });
  const up = linear("up", paths.up);
  if (paths.gate === undefined)
    return b.activation(mlp.activation, b.products(read, [up], hiddenSize)[0]);
  const [gate, value] = b.products(read, [linear("gate", paths.gate), up], hiddenSize);
  return b.activation(mlp.activation, value, gate, mlp.clamp);
}

/** An expert's last linear. */
export function down(
  b: BlockBuilder,
  { hiddenSize, residualScale: factor }: ModelConfig,
  activated: ValueName,
  width: number,
  prefix: string,
  { down: path }: GatedPaths,
  stored?: Stored,
  scaledBy?: LinearPlace["scaledBy"],
): ValueName {
  const place = { name: `${prefix}down`, path, out: hiddenSize, factor };
  const linear = { ...place, stored: stored?.("down"), scaledBy };
  return b.site(activated, `${prefix}mlp_down`, [linear], width)[0];
}
