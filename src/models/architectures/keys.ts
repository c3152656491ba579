/**
 * Keys of `config.json` that no reader asked for. An architecture's reader declares a key by reading it; of the others
 * those pass that say nothing about arithmetic, or that hold the value under which they change nothing. The rest are
 * refused by name: a model whose arithmetic is read in part gives wrong logits without a word.
 */
import { quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ModelConfig } from "../config.js";
import { activation } from "./reader.js";

type Check = (value: unknown, config: ModelConfig) => boolean;

const is =
  (...accepted: readonly unknown[]): Check =>
  (value) =>
    accepted.includes(value);
const close = (value: unknown, wanted: number): boolean =>
  typeof value === "number" && Math.abs(value - wanted) <= 1e-6 * Math.abs(wanted);
const epsilon: Check = (value, { norm }) => value === norm.epsilon;
const sameActivation: Check = (value, { mlp }) =>
  typeof value === "string" && activation(value) === mlp.activation;
const everyLayerHasRope: Check = (value) =>
  Array.isArray(value) && value.every((flag) => flag === 1 || flag === true);

/** Keys of other architectures (or older spellings) with the values under which they change nothing here. */
const NEUTRAL: Readonly<Record<string, Check>> = {
  partial_rotary_factor: is(1),
  rotary_pct: is(1),
  rotary_emb_fraction: is(1),
  rotary_percent: is(1),
  rotary_dim: (value, c) => value === c.headDim,
  rotary_interleaved: is(false),
  embedding_multiplier: is(1),
  residual_multiplier: is(1),
  logits_scaling: is(1),
  logit_scale: is(1),
  attention_multiplier: (value, c) => close(value, 1 / Math.sqrt(c.headDim)),
  query_pre_attn_scalar: (value, c) => value === c.headDim,
  scale_attn_weights: is(true),
  kv_channels: (value, c) => value === c.headDim,
  v_head_dim: (value, c) => value === c.headDim,
  num_experts: is(0, 1),
  num_local_experts: is(0, 1),
  n_routed_experts: is(0),
  num_nextn_predict_layers: is(0),
  first_k_dense_replace: is(0),
  no_rope_layers: everyLayerHasRope,
  no_rope_layer_interval: is(0),
  is_causal: is(true),
  use_causal_mask: is(true),
  is_encoder_decoder: is(false),
  add_cross_attention: is(false),
  use_rope: is(true),
  normalization_type: is("rms_norm", "RMSNorm", "rmsnorm"),
  position_embedding_type: is("rope", "absolute"),
  layer_norm_eps: epsilon,
  layer_norm_epsilon: epsilon,
  norm_eps: epsilon,
  norm_epsilon: epsilon,
  rms_norm_epsilon: epsilon,
  rms_norm_eps: epsilon,
  hidden_activation: sameActivation,
  mlp_hidden_act: sameActivation,
  hidden_act: sameActivation,
  activation_function: sameActivation,
  n_layer: (value, c) => value === c.numLayers,
  num_layers: (value, c) => value === c.numLayers,
  n_head: (value, c) => value === c.numHeads,
  num_heads: (value, c) => value === c.numHeads,
  n_embd: (value, c) => value === c.hiddenSize,
  d_model: (value, c) => value === c.hiddenSize,
  num_key_value_heads: (value, c) => value === c.numKvHeads,
  num_kv_heads: (value, c) => value === c.numKvHeads,
  head_dim: (value, c) => value === c.headDim,
  intermediate_size: (value, c) => value === c.intermediateSize,
  layer_types: (value) => Array.isArray(value) && value.every((type) => type === "full_attention"),
};

/** Published with models whose arithmetic they do not touch: training, generation, bookkeeping, memory layout. */
const HARMLESS = new Set(
  `_name_or_path _commit_hash architectures model_type transformers_version torch_dtype dtype auto_map
  use_cache initializer_range init_std initializer_factor pretraining_tp tensor_parallel_degree
  gradient_checkpointing layerdrop router_aux_loss_coef output_router_logits router_jitter_noise
  return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss pruned_heads
  chunk_size_feed_forward is_decoder tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
  no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
  return_dict_in_generate remove_invalid_values exponential_decay_length_penalty suppress_tokens
  begin_suppress_tokens finetuning_task id2label label2id num_labels problem_type tokenizer_class prefix
  task_specific_params max_sequence_length max_seq_len seq_length model_max_length n_positions n_ctx
  max_window_layers attn_implementation _attn_implementation _attn_implementation_internal
  _attn_implementation_autoset _flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2
  _experts_implementation _experts_implementation_internal
  use_xformers use_memory_efficient_attention use_fused_rope fused_mlp head_dim_original rope_is_neox_style
  is_llama_config license language`.split(/\s+/),
);

/** Whole families of such names. */
const HARMLESS_NAME =
  /(?:^|_)(?:dropout|pdrop|layerdrop)(?:_|$)|_token_ids?$|_version$|^(?:unsloth|trl|axolotl|liger|peft|neftune)_/;

/** Words that make a number bookkeeping, where no word of arithmetic stands beside them. */
const BOOKKEEPING =
  /(?:^|_)(?:token|tokens|ids?|version|seed|steps?|epochs?|date|name|path|author|loss|lr|labels?)(?:_|$)/;

/** Words in names of keys that change what is computed. */
const ARITHMETIC =
  /(?:^|_)(?:attn|attention|rope|rotary|alibi|norm|norms|layernorm|scale|scales|scaling|scalar|multipliers?|soft|softcap|softcapping|cap|clip|clamp|bias|biases|head|heads|layers?|experts?|moe|router|window|sliding|residual|logits?|act|activation|eps|epsilon|theta|base|mlp|ffn|parallel|qk|qkv|kv|lora|adapters?|embed|embd|embedding|embeddings|position|positions|pos|conv|ssm|mamba|temp|quant|quantization|quantized|bits|sparse|sparsity|mask|causal|interleaved?|rank|tie|tied|gate|gated|dim|size|hidden|mup|sink|sinks|chunk|yarn|altup|laurel)(?:_|$)/;

/**
 * Refuses what a reader left unread and what may change the arithmetic.
 * @throws PlanishError naming the key and its value.
 */
export function refuseUnreadKeys(
  json: Readonly<Record<string, unknown>>,
  read: ReadonlySet<string>,
  config: ModelConfig,
): void {
  for (const [key, value] of Object.entries(json)) {
    if (read.has(key) || isAbsent(value)) continue;
    const check = Object.hasOwn(NEUTRAL, key) ? NEUTRAL[key] : undefined;
    if (check ? check(value, config) : isHarmless(key, value)) continue;
    throw new PlanishError(
      `config.json: ${quoted(key)} is ${shown(value)}, which architecture ${config.architecture} is not read with: the model would be computed otherwise than it was trained; remove the key if it means nothing`,
    );
  }
}

/** Null, and lists and objects without anything in them. False is a value: some keys are on unless they say no. */
function isAbsent(value: unknown): boolean {
  return (
    value === null ||
    value === undefined ||
    (typeof value === "object" && Object.keys(value).length === 0)
  );
}

function isHarmless(key: string, value: unknown): boolean {
  if (HARMLESS.has(key)) return true;
  const words = key
    .replace(/([a-z0-9])([A-Z])/g, "$1_$2")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "_");
  if (HARMLESS_NAME.test(words)) return true;
  if (value === false || value === "") return true;
  // Any number nobody knows may be a factor; texts and switches betray themselves by their name.
  return !ARITHMETIC.test(words) && (typeof value !== "number" || BOOKKEEPING.test(words));
}
