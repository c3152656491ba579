/**
 * DeepSeek-V3: latent attention; experts chosen by corrected sigmoids within the best groups, and one or more that every
 * token goes through; the first layers without experts (arXiv 2412.19437).
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type {
  Architecture,
  ConfigReader,
  ExpertsConfig,
  LatentConfig,
  ModelConfig,
} from "../config.js";
import { LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { expertsBlock } from "./experts.js";
import { factor, llamaShape } from "./shape.js";

const SHARED = "mlp.shared_experts";
const PATHS = {
  ...LLAMA_PATHS,
  experts: {
    router: "mlp.gate.weight",
    correction: "mlp.gate.e_score_correction_bias",
    expert: (e: number) => ({
      gate: `mlp.experts.${e}.gate_proj`,
      up: `mlp.experts.${e}.up_proj`,
      down: `mlp.experts.${e}.down_proj`,
    }),
    shared: {
      gate: `${SHARED}.gate_proj`,
      up: `${SHARED}.up_proj`,
      down: `${SHARED}.down_proj`,
    },
  },
};

/** Keys that have one accepted value: anything else is another model. */
function only(c: ConfigReader, key: string, accepted: string | number): void {
  const value = c.optional(key) ?? accepted;
  if (value !== accepted)
    throw new PlanishError(
      `config.json: ${key} is ${shown(value)}; of deepseek_v3 only ${shown(accepted)} is read`,
    );
}

function latentOf(c: ConfigReader): LatentConfig {
  const width = (key: string, fallback: number): number => c.integer(key, LIMITS.width, fallback);
  const latent = {
    // Null: queries have no latent; absent: the class has one of 1536.
    queries: c.optional("q_lora_rank") === null ? undefined : width("q_lora_rank", 1536),
    keys: width("kv_lora_rank", 512),
    still: width("qk_nope_head_dim", 128),
    turning: width("qk_rope_head_dim", 64),
    values: width("v_head_dim", 128),
    interleaved: c.boolean("rope_interleave", true),
    // As GGUF files have them, which are made for products absorbed into queries.
    split: c.optional("latent_stored") === "split" ? true : undefined,
  };
  const headDim = latent.still + latent.turning;
  if (latent.still % 2 !== 0 || latent.turning % 2 !== 0)
    throw new PlanishError(
      `config.json: qk_nope_head_dim ${latent.still} and qk_rope_head_dim ${latent.turning} must be even`,
    );
  if (latent.values > headDim)
    throw new PlanishError(
      `config.json: v_head_dim ${latent.values} is above the ${headDim} channels of queries and keys; at most as many are read`,
    );
  const said = c.optional("qk_head_dim") ?? headDim;
  if (said !== headDim)
    throw new PlanishError(
      `config.json: qk_head_dim is ${shown(said)}, and qk_nope_head_dim + qk_rope_head_dim ${headDim}`,
    );
  return latent;
}

function expertsOf(c: ConfigReader): ExpertsConfig {
  only(c, "scoring_func", "sigmoid");
  only(c, "topk_method", "noaux_tc");
  only(c, "moe_layer_freq", 1);
  const count = c.integer("n_routed_experts", LIMITS.experts, 256);
  const groups = c.integer("n_group", count, 8);
  const open = c.integer("topk_group", groups, 4);
  const chosen = c.integer("num_experts_per_tok", count, 8);
  if (count % groups !== 0 || (count / groups) * open < chosen)
    throw new PlanishError(
      `config.json: n_routed_experts ${count} in n_group ${groups} groups, of which topk_group ${open} are open, leave no num_experts_per_tok ${chosen} to choose`,
    );
  const width = c.integer("moe_intermediate_size", LIMITS.width, 2048);
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const dense = c.integer("first_k_dense_replace", LIMITS.layers, 3, 0);
  const shared = c.integer("n_shared_experts", LIMITS.experts, 1, 0);
  return {
    count,
    chosen,
    width,
    scores: "sigmoid",
    normalize: c.boolean("norm_topk_prob", true),
    factor: factor(c, "routed_scaling_factor", 2.5),
    groups: groups > 1 ? { count: groups, chosen: open } : undefined,
    correction: true,
    sharedWidth: shared > 0 ? shared * width : undefined,
    dense: Array.from({ length: layers }, (_, layer) => layer < dense),
  };
}

/** 1/√d, and what yarn's `mscale_all_dim` adds to it. */
function scoreScale({ positions }: ModelConfig, rope: unknown, headDim: number): number {
  const all = (rope as { readonly mscale_all_dim?: unknown } | undefined)?.mscale_all_dim;
  if (positions.kind !== "rope" || positions.scaling.type !== "yarn" || typeof all !== "number")
    return headDim ** -0.5;
  const { factor: stretch } = positions.scaling;
  const magnitude = stretch <= 1 ? 1 : 0.1 * all * Math.log(stretch) + 1;
  return headDim ** -0.5 * magnitude ** 2;
}

export const deepseekV3: Architecture = {
  name: "deepseek_v3",
  modelTypes: ["deepseek_v3"],
  parse: (c) => {
    const latent = latentOf(c);
    const headDim = latent.still + latent.turning;
    const base = llamaShape(c, "deepseek_v3", {
      biases: c.boolean("attention_bias", false) ? ["q_a", "kv_a", "k_rope", "o"] : [],
      headDim: latent.turning,
      maxPositions: 4096,
    });
    const rope = c.optional("rope_parameters") ?? c.optional("rope_scaling") ?? undefined;
    return {
      ...base,
      headDim,
      numKvHeads: base.numHeads,
      attention: { scale: scoreScale(base, rope, headDim) },
      latent,
      experts: expertsOf(c),
      unusedLayers: c.integer("num_nextn_predict_layers", LIMITS.layers, 0, 0),
    };
  },
  lower: (config, layer) => expertsBlock(config, layer, PATHS),
  names: LLAMA_NAMES,
};
