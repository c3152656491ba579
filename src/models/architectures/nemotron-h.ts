/**
 * Nemotron-H and Nemotron 3 (NVIDIA, 2025): layers of one part each, Mamba-2, attention without positions, an MLP with squared
 * ReLU, or experts of the same form beside a shared one.
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, ExpertsConfig, ModelConfig } from "../config.js";
import type { MambaConfig, Mixer } from "../recurrent-config.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import { attentionPart, blockNorms } from "./common.js";
import { expertCounts, feedForward } from "./experts.js";
import { layerMixers, requireValue } from "./hybrid.js";
import { checkedMamba, mambaMixer } from "./mamba.js";
import { activation } from "./reader.js";
import { llamaShape, normEpsilon } from "./shape.js";

const MIXERS: Readonly<Record<string, Mixer>> = {
  ...{ linear_attention: "recurrent", mamba: "recurrent", mamba2: "recurrent" },
  ...{ full_attention: "attention", attention: "attention" },
  ...{ moe: "experts", mlp: "mlp" },
};
const LETTERS: Readonly<Record<string, Mixer>> = {
  ...{ M: "recurrent", "*": "attention" },
  ...{ E: "experts", "-": "mlp" },
};

const PATHS = {
  norms: { post: "norm" },
  attention: { q: "mixer.q_proj", k: "mixer.k_proj", v: "mixer.v_proj", o: "mixer.o_proj" },
  mlp: { up: "mixer.up_proj", down: "mixer.down_proj" },
  experts: {
    router: "mixer.gate.weight",
    correction: "mixer.gate.e_score_correction_bias",
    expert: (e: number) => ({
      up: `mixer.experts.${e}.up_proj`,
      down: `mixer.experts.${e}.down_proj`,
    }),
    shared: { up: "mixer.shared_experts.up_proj", down: "mixer.shared_experts.down_proj" },
  },
};

/** Keys of experts, which a model without them has all the same. */
const EXPERT_KEYS = [
  ...["n_routed_experts", "num_local_experts", "num_experts_per_tok", "n_shared_experts"],
  ...["moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"],
  ...["moe_shared_expert_overlap", "n_group", "topk_group", "norm_topk_prob"],
  "routed_scaling_factor",
];

const NAMES = {
  embedding: "backbone.embeddings.weight",
  finalNorm: "backbone.norm_f.weight",
  lmHead: "lm_head.weight",
  blockPrefix: (layer: number) => `backbone.layers.${layer}.`,
  unused: /^mtp\./,
};

/** Of each layer, by list or by letters; their number is the model's. */
function mixers(c: ConfigReader): readonly Mixer[] {
  const keys = ["layers_block_type", "layer_types"];
  const pattern = c.optional("hybrid_override_pattern") ?? undefined;
  const list = keys.map((key) => c.optional(key) ?? undefined).find((each) => each !== undefined);
  // It says again what the list says, or nothing: the original counts the list.
  c.optional("num_hidden_layers");
  if (Array.isArray(list)) return layerMixers(counted(c, list.length), MIXERS, () => "mlp", keys);
  if (typeof pattern !== "string" || !/^[ME*-]+$/.test(pattern))
    throw new PlanishError(
      `config.json: hybrid_override_pattern must consist of ${Object.keys(LETTERS).join(" ")} (or layers_block_type list each layer), found ${shown(pattern)}`,
    );
  return Array.from(pattern, (letter) => LETTERS[letter]);
}

/** The same configuration, with so many layers. */
function counted(c: ConfigReader, layers: number): ConfigReader {
  return {
    ...c,
    integer: (key, ...rest) => (key === "num_hidden_layers" ? layers : c.integer(key, ...rest)),
  };
}

/** One key of two names. */
function named(c: ConfigReader, key: string, other: string): string {
  return (c.optional(other) ?? undefined) === undefined ? key : other;
}

function mamba(c: ConfigReader): MambaConfig {
  for (const key of ["chunk_size", "mamba_chunk_size", "use_mamba_kernels", "expand"])
    c.optional(key);
  // Training's, and a promise of the state's type, which is float32 in any case.
  for (const key of ["time_step_max", "time_step_floor", "time_step_limit", "mamba_expand"])
    c.optional(key);
  for (const key of ["mamba_dt_max", "mamba_dt_limit", "mamba_dt_init_floor"]) c.optional(key);
  for (const key of ["mamba_ssm_cache_dtype", "mamba_proj_bias"]) c.optional(key);
  const least = c.number(named(c, "time_step_min", "mamba_dt_min"), 0.001, { min: 0 });
  return checkedMamba({
    kind: "mamba",
    heads: c.integer("mamba_num_heads", LIMITS.heads, 128),
    headDim: c.integer("mamba_head_dim", LIMITS.width, 64),
    groups: c.integer(named(c, "n_groups", "mamba_n_groups"), LIMITS.heads, 8),
    state: c.integer("ssm_state_size", LIMITS.width, 128),
    taps: c.integer(named(c, "conv_kernel", "mamba_d_conv"), LIMITS.width, 4),
    convBias: c.boolean(named(c, "use_conv_bias", "mamba_conv_bias"), true),
    activation: activation(c.string("mamba_hidden_act", "silu")),
    norm: "after",
    limits: { least, most: Infinity },
  });
}

function experts(c: ConfigReader, kinds: readonly Mixer[]): ExpertsConfig {
  requireValue(c, "moe_latent_size", null);
  const counts = expertCounts(c, ["n_routed_experts", "num_local_experts"], {
    experts: 8,
    chosen: 2,
  });
  const count = c.integer("n_group", counts.count, 1);
  const chosen = c.integer("topk_group", count, 1);
  if (counts.count % count !== 0)
    throw new PlanishError(
      `config.json: ${counts.count} experts cannot stand in ${count} groups (n_group)`,
    );
  // Always one beside the others, whatever their number says.
  for (const key of ["n_shared_experts", "moe_shared_expert_overlap"]) c.optional(key);
  return {
    ...counts,
    width: c.integer("moe_intermediate_size", LIMITS.width, 7688),
    scores: "sigmoid",
    normalize: c.boolean("norm_topk_prob", true),
    factor: c.number("routed_scaling_factor", 1, { above: 0 }),
    groups: count > 1 ? { count, chosen } : undefined,
    correction: true,
    sharedWidth: c.integer("moe_shared_expert_intermediate_size", LIMITS.width, 7688),
    dense: kinds.map((kind) => kind !== "experts"),
  };
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const mixer = config.layers?.[layer].mixer;
  const { recurrent } = config;
  if (mixer === "mlp" || mixer === "experts")
    return b.finish(feedForward(b, config, layer, b.input, PATHS));
  const read = blockNorms(b, config)(b.input, "input", PATHS.norms.post);
  const mixed =
    mixer === "recurrent" && recurrent?.kind === "mamba"
      ? mambaMixer(b, config, recurrent, read, "mixer")
      : attentionPart(b, config, layer, read, PATHS.attention);
  return b.finish(b.add(b.input, mixed));
}

export const nemotronH: Architecture = {
  name: "nemotron_h",
  modelTypes: ["nemotron_h"],
  parse: (c) => {
    const kinds = mixers(c);
    requireValue(c, "attention_bias", false);
    requireValue(c, "sliding_window", null);
    for (const key of ["residual_in_fp32", "rescale_prenorm_residual", "num_logits_to_keep"])
      c.optional(key);
    for (const key of ["mtp_layers_block_type", "mtp_hybrid_override_pattern"]) c.optional(key);
    c.optional("num_nextn_predict_layers");
    if (!kinds.includes("experts")) for (const key of EXPERT_KEYS) c.optional(key);
    const biases = [
      ...(c.boolean("mlp_bias", false) ? ["up", "down", "shared_up", "shared_down"] : []),
      ...(c.boolean("use_bias", false) ? ["z", "xbc", "step", "out"] : []),
    ];
    return {
      ...llamaShape(counted(c, kinds.length), "nemotron_h", {
        ...{ kvHeads: 8, headDim: 128, maxPositions: 4096, intermediate: 21504, gated: false },
        // Attention has no positions.
        layers: kinds.map((mixer) => ({ mixer, positions: null })),
        norm: { kind: "rms", epsilon: normEpsilon(c, "layer_norm_epsilon", 1e-5) },
        activation: { key: "mlp_hidden_act", fallback: "relu2" },
        biases,
      }),
      recurrent: mamba(c),
      experts: kinds.includes("experts") ? experts(c, kinds) : undefined,
    };
  },
  lower,
  names: NAMES,
};
