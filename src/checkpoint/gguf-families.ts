/**
 * Families beside LLaMA's, Qwen's and Gemma's as llama.cpp's converter writes them: what their tensors and settings are called in
 * Hugging Face's words. A name that holds {e} takes a stack apart: an expert's matrix, or a head's norm, each a tensor of its own.
 */
import { shortestFloat32, type GgufMetadata } from "./gguf-metadata.js";

/** What the tensors of a file tell beside its settings. */
export interface GgufShapes {
  /** Rows of the embedding. */
  readonly vocabSize: number;
  /** Whether there is an output matrix apart from the embedding. */
  readonly hasOutput: boolean;
  readonly hasAttentionBias: boolean;
  /** Contents of `rope_freqs.weight`: a divisor for each rotary frequency. */
  readonly ropeFactors: Float32Array | undefined;
  /** Contents of `rope_factors_short.weight` and `rope_factors_long.weight`. */
  readonly shortFactors?: Float32Array;
  readonly longFactors?: Float32Array;
  /** Whether there is a tensor, by its name in the file. */
  readonly has: (name: string) => boolean;
}

type Json = Readonly<Record<string, unknown>>;

export interface GgufArchitecture {
  readonly className: string;
  readonly modelType: string;
  /** Whether the converter interleaved the two halves of each head of q and k for its own rotary layout. */
  readonly permuted: boolean;
  /** Names of a block's tensors that are others than those of BLOCK_NAMES; with `.weight` or `.bias`: of that one, whole. */
  readonly names?: Readonly<Record<string, string>>;
  /** What the converter added to norms' gains. */
  readonly addedToGains?: number;
  /** Norms are layer norms: the key that holds their epsilon in the configuration. */
  readonly layerNorms?: string;
  /** A part of each head may turn. */
  readonly partialRotary?: boolean;
  /** Keys and values come out of latents, whose sizes the heads' settings give. */
  readonly latent?: boolean;
  readonly experts?: boolean;
  /** Settings, after the architecture's name, that `config` carries out. */
  readonly reads?: readonly string[];
  /** What the configuration has beside the usual keys. */
  readonly config?: (metadata: GgufMetadata, name: string, shapes: GgufShapes) => Json;
}

/** A float32 setting as the number that was meant. */
function setting(metadata: GgufMetadata, key: string): number | undefined {
  const value = metadata.number(key);
  return value === undefined ? undefined : shortestFloat32(value);
}

/** The window, null where there is none. */
function windowOf(metadata: GgufMetadata, name: string): number | null {
  return metadata.count(`${name}.attention.sliding_window`) || null;
}

/** Of each layer what it sees, where the file has a list of windowed ones; undefined: as the family does. */
function layerTypes(metadata: GgufMetadata, name: string): string[] | undefined {
  const key = `${name}.attention.sliding_window_pattern`;
  if (!metadata.has(key)) return undefined;
  return metadata
    .flags(key)
    ?.map((windowed) => (windowed ? "sliding_attention" : "full_attention"));
}

/** Experts' settings that the families share. */
function mixture(metadata: GgufMetadata, name: string) {
  const count = (suffix: string): number => {
    const key = `${name}.${suffix}`;
    return metadata.required(key, metadata.count(key));
  };
  return {
    experts: count("expert_count"),
    chosen: count("expert_used_count"),
    width: (): number => count("expert_feed_forward_length"),
  };
}

/** Refuses another way of scoring than the family's; 1 is softmax, 2 a sigmoid, and 0 stands for the family's own. */
function checkGating(metadata: GgufMetadata, name: string, accepted: number): void {
  const key = `${name}.expert_gating_func`;
  const value = metadata.count(key);
  if (value !== undefined && value !== 0 && value !== accepted)
    metadata.fail(`metadata ${key} is ${value}; of this architecture only ${accepted} is read`);
}

const EXPERT_SETTINGS = ["expert_used_count", "expert_gating_func", "expert_weights_norm"];

function expertNames(parts: { gate: string; up: string; down: string }) {
  return {
    ffn_gate_exps: parts.gate,
    ffn_up_exps: parts.up,
    ffn_down_exps: parts.down,
  };
}

const MLP_EXPERTS = expertNames({
  gate: "mlp.experts.{e}.gate_proj",
  up: "mlp.experts.{e}.up_proj",
  down: "mlp.experts.{e}.down_proj",
});

/** Norms after attention and MLP only. */
const AFTER = {
  post_attention_norm: "post_attention_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
};

/** Layers without experts, among layers that have some: those that have an MLP of their own. */
function denseLayers(metadata: GgufMetadata, name: string, shapes: GgufShapes): number[] {
  const layers = metadata.count(`${name}.block_count`) ?? 0;
  return Array.from({ length: Math.min(layers, 100_000) }, (_, layer) => layer).filter(
    (layer) => !shapes.has(`blk.${layer}.ffn_gate_inp.weight`),
  );
}

function yarnOf(metadata: GgufMetadata, name: string): Record<string, unknown> | undefined {
  const scaling = `${name}.rope.scaling`;
  if (metadata.string(`${scaling}.type`) !== "yarn") return undefined;
  const factor = setting(metadata, `${scaling}.factor`);
  if (factor === undefined || factor === 0 || factor === 1) return undefined;
  const extrapolation = metadata.number(`${scaling}.yarn_ext_factor`);
  if (extrapolation !== undefined && ![-1, 1].includes(extrapolation))
    metadata.fail(
      `metadata ${scaling}.yarn_ext_factor is ${extrapolation}, which this architecture is read without`,
    );
  return withoutAbsent({
    rope_type: "yarn",
    factor,
    original_max_position_embeddings: metadata.count(`${scaling}.original_context_length`),
    beta_fast: setting(metadata, `${scaling}.yarn_beta_fast`),
    beta_slow: setting(metadata, `${scaling}.yarn_beta_slow`),
    attention_factor: setting(metadata, `${scaling}.yarn_attn_factor`) || undefined,
  });
}

function withoutAbsent(json: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(json).filter(([, value]) => value !== undefined));
}

/** Yarn as every family has it, for configurations that say nothing further; undefined where there is none. */
export const plainYarn = yarnOf;

const LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier";

/** By `general.architecture`. */
export const GGUF_FAMILIES: Readonly<Record<string, GgufArchitecture>> = {
  phi3: {
    className: "Phi3ForCausalLM",
    modelType: "phi3",
    permuted: false,
    names: { attn_qkv: "self_attn.qkv_proj", ffn_up: "mlp.gate_up_proj" },
    partialRotary: true,
    reads: ["attention.sliding_window", "rope.scaling.attn_factor", "rope.scaling.type"],
    config: (metadata, name, { shortFactors, longFactors }) => {
      const original = metadata.count(`${name}.rope.scaling.original_context_length`);
      const decimals = (factors: Float32Array) => Array.from(factors, shortestFloat32);
      return {
        sliding_window: windowOf(metadata, name),
        ...(original !== undefined && { original_max_position_embeddings: original }),
        ...(shortFactors &&
          longFactors && {
            rope_scaling: withoutAbsent({
              type: "longrope",
              short_factor: decimals(shortFactors),
              long_factor: decimals(longFactors),
              attention_factor: metadata.number(`${name}.rope.scaling.attn_factor`) || undefined,
            }),
          }),
      };
    },
  },
  olmo2: {
    className: "Olmo2ForCausalLM",
    modelType: "olmo2",
    permuted: false,
    names: AFTER,
    reads: ["attention.sliding_window", "attention.sliding_window_pattern"],
    // OLMo 3 is OLMo 2 with windows.
    config: (metadata, name) => {
      const width = windowOf(metadata, name);
      if (width === null) return {};
      return {
        architectures: ["Olmo3ForCausalLM"],
        model_type: "olmo3",
        sliding_window: width,
        layer_types: layerTypes(metadata, name),
      };
    },
  },
  granite: {
    className: "GraniteForCausalLM",
    modelType: "granite",
    permuted: true,
    reads: ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
    config: (metadata, name) =>
      withoutAbsent({
        attention_multiplier: setting(metadata, `${name}.attention.scale`) || undefined,
        embedding_multiplier: setting(metadata, `${name}.embedding_scale`) || undefined,
        residual_multiplier: setting(metadata, `${name}.residual_scale`) || undefined,
        logits_scaling: setting(metadata, `${name}.logit_scale`) || undefined,
      }),
  },
  // Every fourth layer is without positions, which the files do not say.
  smollm3: { className: "SmolLM3ForCausalLM", modelType: "smollm3", permuted: true },
  cohere2: {
    className: "Cohere2ForCausalLM",
    modelType: "cohere2",
    permuted: false,
    layerNorms: "layer_norm_eps",
    reads: ["attention.sliding_window", "attention.sliding_window_pattern", "logit_scale"],
    config: (metadata, name) => ({
      sliding_window: windowOf(metadata, name),
      layer_types: layerTypes(metadata, name),
      logit_scale: setting(metadata, `${name}.logit_scale`),
    }),
  },
  glm4: {
    className: "Glm4ForCausalLM",
    modelType: "glm4",
    permuted: false,
    names: {
      post_attention_norm: "post_self_attn_layernorm",
      post_ffw_norm: "post_mlp_layernorm",
      ffn_up: "mlp.gate_up_proj",
    },
    partialRotary: true,
  },
  starcoder2: {
    className: "Starcoder2ForCausalLM",
    modelType: "starcoder2",
    permuted: false,
    names: { ffn_up: "mlp.c_fc", ffn_down: "mlp.c_proj" },
    layerNorms: "norm_epsilon",
    config: (_metadata, _name, { hasAttentionBias }) => ({
      hidden_act: "gelu_pytorch_tanh",
      attention_bias: undefined,
      use_bias: hasAttentionBias,
    }),
  },
  stablelm: {
    className: "StableLmForCausalLM",
    modelType: "stablelm",
    permuted: false,
    names: {
      attn_q_norm: "self_attn.q_layernorm.norms.{e}",
      attn_k_norm: "self_attn.k_layernorm.norms.{e}",
    },
    layerNorms: "layer_norm_eps",
    partialRotary: true,
    reads: ["use_parallel_residual"],
    // The setting is 1 in files of the sequential form too: the norm before the MLP says which one it is.
    config: (_metadata, _name, { hasAttentionBias, has }) => ({
      attention_bias: undefined,
      use_qkv_bias: hasAttentionBias,
      qk_layernorm: has("blk.0.attn_q_norm.weight"),
      use_parallel_residual: !has("blk.0.ffn_norm.weight"),
    }),
  },
  exaone4: {
    className: "Exaone4ForCausalLM",
    modelType: "exaone4",
    permuted: false,
    names: AFTER,
    reads: ["attention.sliding_window", "attention.sliding_window_pattern"],
    config: (metadata, name) => ({
      sliding_window: windowOf(metadata, name),
      layer_types: layerTypes(metadata, name),
    }),
  },
  qwen2moe: {
    className: "Qwen2MoeForCausalLM",
    modelType: "qwen2_moe",
    permuted: false,
    names: {
      ...MLP_EXPERTS,
      ffn_gate_inp: "mlp.gate",
      ffn_gate_inp_shexp: "mlp.shared_expert_gate",
      ffn_gate_shexp: "mlp.shared_expert.gate_proj",
      ffn_up_shexp: "mlp.shared_expert.up_proj",
      ffn_down_shexp: "mlp.shared_expert.down_proj",
    },
    experts: true,
    reads: EXPERT_SETTINGS,
    config: (metadata, name, shapes) => {
      checkGating(metadata, name, 1);
      const { experts, chosen, width } = mixture(metadata, name);
      const shared = `${name}.expert_shared_feed_forward_length`;
      return {
        attention_bias: undefined,
        qkv_bias: shapes.hasAttentionBias,
        num_experts: experts,
        num_experts_per_tok: chosen,
        moe_intermediate_size: width(),
        shared_expert_intermediate_size: metadata.required(shared, metadata.count(shared)),
        norm_topk_prob: metadata.boolean(`${name}.expert_weights_norm`) ?? false,
        mlp_only_layers: denseLayers(metadata, name, shapes),
      };
    },
  },
  qwen3moe: {
    className: "Qwen3MoeForCausalLM",
    modelType: "qwen3_moe",
    permuted: false,
    names: { ...MLP_EXPERTS, ffn_gate_inp: "mlp.gate" },
    experts: true,
    reads: EXPERT_SETTINGS,
    config: (metadata, name, shapes) => {
      checkGating(metadata, name, 1);
      const { experts, chosen, width } = mixture(metadata, name);
      return {
        num_experts: experts,
        num_experts_per_tok: chosen,
        moe_intermediate_size: width(),
        // As all published ones; llama.cpp does so whatever a file says.
        norm_topk_prob: metadata.boolean(`${name}.expert_weights_norm`) ?? true,
        mlp_only_layers: denseLayers(metadata, name, shapes),
      };
    },
  },
  "gpt-oss": {
    className: "GptOssForCausalLM",
    modelType: "gpt_oss",
    permuted: false,
    names: {
      ...MLP_EXPERTS,
      ffn_gate_inp: "mlp.router",
      "attn_sinks.weight": "self_attn.sinks",
      post_attention_norm: "post_attention_layernorm",
    },
    experts: true,
    reads: [...EXPERT_SETTINGS, "attention.sliding_window", "attention.sliding_window_pattern"],
    config: (metadata, name) => {
      const { experts, chosen, width } = mixture(metadata, name);
      const yarn = yarnOf(metadata, name);
      return {
        intermediate_size: width(),
        num_local_experts: experts,
        num_experts_per_tok: chosen,
        sliding_window: windowOf(metadata, name),
        experts_stored: "single",
        ...(yarn && { rope_scaling: { ...yarn, truncate: false } }),
      };
    },
  },
  deepseek2: {
    className: "DeepseekV3ForCausalLM",
    modelType: "deepseek_v3",
    permuted: false,
    names: {
      ...MLP_EXPERTS,
      attn_q_a: "self_attn.q_a_proj",
      attn_q_b: "self_attn.q_b_proj",
      attn_q_a_norm: "self_attn.q_a_layernorm",
      attn_kv_a_mqa: "self_attn.kv_a_proj_with_mqa",
      attn_kv_a_norm: "self_attn.kv_a_layernorm",
      attn_kv_b: "self_attn.kv_b_proj",
      attn_k_b: "self_attn.k_b_proj",
      attn_v_b: "self_attn.v_b_proj",
      ffn_gate_inp: "mlp.gate",
      "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
      ffn_gate_shexp: "mlp.shared_experts.gate_proj",
      ffn_up_shexp: "mlp.shared_experts.up_proj",
      ffn_down_shexp: "mlp.shared_experts.down_proj",
    },
    experts: true,
    latent: true,
    reads: [...EXPERT_SETTINGS, "expert_weights_scale", LOG_MULTIPLIER],
    config: (metadata, name, shapes) => {
      // A softmax, or no correction of the choice, is DeepSeek V2.
      checkGating(metadata, name, 2);
      const { experts, chosen, width } = mixture(metadata, name);
      const count = (suffix: string): number | undefined => metadata.count(`${name}.${suffix}`);
      const needed = (suffix: string): number =>
        metadata.required(`${name}.${suffix}`, count(suffix));
      const dense = needed("leading_dense_block_count");
      if (!shapes.has(`blk.${dense}.exp_probs_b.bias`))
        metadata.fail(
          "has no exp_probs_b: of this architecture DeepSeek V3 and its relatives are read, not V2",
        );
      const keys = needed("attention.kv_lora_rank");
      const turning = needed("rope.dimension_count");
      const multiplier = setting(metadata, `${name}.${LOG_MULTIPLIER}`);
      // Ten times the stored number, as the converter has it; numerator and denominator are the same in all published files.
      const all = multiplier ? Number((multiplier * 10).toPrecision(6)) : undefined;
      const yarn = yarnOf(metadata, name);
      return {
        head_dim: turning,
        num_key_value_heads: needed("attention.head_count"),
        q_lora_rank: count("attention.q_lora_rank") ?? null,
        kv_lora_rank: keys,
        qk_rope_head_dim: turning,
        qk_nope_head_dim: needed("attention.key_length_mla") - turning,
        v_head_dim: needed("attention.value_length_mla"),
        latent_stored: shapes.has("blk.0.attn_k_b.weight") ? "split" : undefined,
        first_k_dense_replace: dense,
        n_routed_experts: experts,
        num_experts_per_tok: chosen,
        moe_intermediate_size: width(),
        n_shared_experts: count("expert_shared_count") ?? 0,
        n_group: count("expert_group_count") || 1,
        topk_group: count("expert_group_used_count") || 1,
        norm_topk_prob: metadata.boolean(`${name}.expert_weights_norm`) ?? false,
        routed_scaling_factor: setting(metadata, `${name}.expert_weights_scale`) || 1,
        ...(yarn && {
          rope_scaling: { ...yarn, ...(all && { mscale: all, mscale_all_dim: all }) },
        }),
      };
    },
  },
  mistral3: {
    className: "Ministral3ForCausalLM",
    modelType: "ministral3",
    permuted: true,
    reads: [LOG_MULTIPLIER, "attention.temperature_scale"],
    config: (metadata, name) => {
      const yarn = yarnOf(metadata, name);
      const all = setting(metadata, `${name}.${LOG_MULTIPLIER}`) || undefined;
      const beta = setting(metadata, `${name}.attention.temperature_scale`) || undefined;
      const theta = setting(metadata, `${name}.rope.freq_base`) ?? 1e6;
      const magnitude = { mscale: all, mscale_all_dim: all, llama_4_scaling_beta: beta };
      return {
        rope_theta: undefined,
        rope_parameters: withoutAbsent(
          yarn ? { rope_theta: theta, ...yarn, ...magnitude } : { rope_theta: theta },
        ),
      };
    },
  },
};

/** Of files of LLaMA's architecture that hold experts. */
export const GGUF_MIXTRAL: GgufArchitecture = {
  className: "MixtralForCausalLM",
  modelType: "mixtral",
  permuted: true,
  names: {
    ...expertNames({
      gate: "block_sparse_moe.experts.{e}.w1",
      up: "block_sparse_moe.experts.{e}.w3",
      down: "block_sparse_moe.experts.{e}.w2",
    }),
    ffn_gate_inp: "block_sparse_moe.gate",
  },
  experts: true,
  reads: EXPERT_SETTINGS,
  config: (metadata, name) => {
    checkGating(metadata, name, 1);
    const { experts, chosen } = mixture(metadata, name);
    return {
      attention_bias: undefined,
      num_local_experts: experts,
      num_experts_per_tok: chosen,
    };
  },
};
