/**
 * Configurations of small models that are not LLaMA's kin, with heads that the CUDA engine takes: what their blocks have
 * beside it is named. For the executor's suite, on a GPU and without.
 *
 * They are run with transforms: at a sequence's first position attention gives a value as the cache has it, on 4 bits, and
 * quotients of such numbers fall on ties of the next grid, where single and double precision may part.
 */
const COMMON = {
  vocab_size: 61,
  hidden_size: 64,
  intermediate_size: 96,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 32,
  num_hidden_layers: 2,
  max_position_embeddings: 512,
  bos_token_id: 0,
  eos_token_id: 1,
  rope_parameters: { rope_theta: 500, rope_type: "default" },
  tie_word_embeddings: true,
} as const;

interface Kin {
  readonly json: Readonly<Record<string, unknown>>;
  readonly biases?: { readonly linears?: boolean; readonly norms?: boolean };
}

export const KIN: Readonly<Record<string, Kin>> = {
  "olmo2: norms after attention and MLP, norms of whole queries": {
    json: { ...COMMON, model_type: "olmo2", rms_norm_eps: 1e-5, hidden_act: "silu" },
  },
  "smollm3: a layer without positions": {
    json: {
      ...COMMON,
      model_type: "smollm3",
      rms_norm_eps: 1e-5,
      hidden_act: "silu",
      no_rope_layers: [1, 0],
      no_rope_layer_interval: 2,
    },
  },
  "gemma3: two kinds of angles, GELU, four norms, scaled embeddings": {
    json: {
      ...COMMON,
      model_type: "gemma3_text",
      rms_norm_eps: 1e-6,
      hidden_activation: "gelu_pytorch_tanh",
      query_pre_attn_scalar: 32,
      sliding_window: 40,
      layer_types: ["sliding_attention", "full_attention"],
      rope_parameters: {
        full_attention: { rope_theta: 2000, rope_type: "default" },
        sliding_attention: { rope_theta: 50, rope_type: "default" },
      },
    },
  },
  "starcoder2: layer norms with biases, an MLP without a gate": {
    json: {
      ...COMMON,
      model_type: "starcoder2",
      norm_epsilon: 1e-5,
      hidden_act: "gelu_pytorch_tanh",
      use_bias: true,
      sliding_window: null,
    },
    biases: { linears: true, norms: true },
  },
  "cohere2: attention and MLP side by side, layer norms, scaled logits": {
    json: {
      ...COMMON,
      model_type: "cohere2",
      layer_norm_eps: 1e-5,
      hidden_act: "silu",
      logit_scale: 0.25,
      sliding_window: 40,
      layer_types: ["sliding_attention", "full_attention"],
    },
  },
  "olmo3: yarn in full layers": {
    json: {
      ...COMMON,
      model_type: "olmo3",
      rms_norm_eps: 1e-5,
      hidden_act: "silu",
      sliding_window: 40,
      layer_types: ["sliding_attention", "full_attention"],
      rope_parameters: {
        full_attention: {
          rope_theta: 5000,
          rope_type: "yarn",
          factor: 4,
          attention_factor: 1.2,
          beta_fast: 1,
          beta_slow: 0.1,
          original_max_position_embeddings: 64,
        },
        sliding_attention: { rope_theta: 5000, rope_type: "default" },
      },
    },
  },
};

export const kinFolder = (name: string): string => name.split(":")[0];
