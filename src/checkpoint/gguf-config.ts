/**
 * What GGUF says of a model in Hugging Face's words: `config.json` rebuilt from metadata, tensor names
 * translated, and the row order that llama.cpp gives to query and key weights.
 */

import { rotaryFrequencies } from "../backend/contract/rotary.js";
import { quoted } from "../common/bounds.js";
import type { GgufMetadata } from "./gguf-metadata.js";
import { shortestFloat32 } from "./gguf-metadata.js";
import {
  GGUF_FAMILIES,
  GGUF_MIXTRAL,
  plainYarn,
  type GgufArchitecture,
  type GgufShapes,
} from "./gguf-families.js";

/** Norms before and after attention and MLP. */
const SANDWICH = {
  post_attention_norm: "post_attention_layernorm",
  ffn_norm: "pre_feedforward_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
};

/** Layers of the models whose scores are scaled by √(hidden / heads), and not by √(a head's channels). */
const WIDE_GEMMA = { gemma2: 46, gemma3: 62 };

/** What Gemma 2 and 3 have in common; the window is one of some layers, which the model type says. */
function gemmaConfig(metadata: GgufMetadata, name: "gemma2" | "gemma3") {
  const key = (suffix: string): string => `${name}.${suffix}`;
  const layers = positive(metadata, key("block_count"));
  const width = positive(metadata, key("embedding_length"));
  const heads = positive(metadata, key("attention.head_count"));
  return {
    hidden_act: undefined,
    hidden_activation: "gelu_pytorch_tanh",
    sliding_window: positive(metadata, key("attention.sliding_window")),
    query_pre_attn_scalar:
      layers === WIDE_GEMMA[name] ? width / heads : ggufHeadDim(metadata, name),
  };
}

/** By `general.architecture`. Mistral models are stored as "llama". */
const ARCHITECTURES: Readonly<Record<string, GgufArchitecture>> = {
  llama: { className: "LlamaForCausalLM", modelType: "llama", permuted: true },
  qwen2: { className: "Qwen2ForCausalLM", modelType: "qwen2", permuted: false },
  qwen3: { className: "Qwen3ForCausalLM", modelType: "qwen3", permuted: false },
  gemma2: {
    className: "Gemma2ForCausalLM",
    modelType: "gemma2",
    permuted: false,
    names: SANDWICH,
    addedToGains: 1,
    reads: ["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"],
    config: (metadata) => ({
      ...gemmaConfig(metadata, "gemma2"),
      attn_logit_softcapping: metadata.number("gemma2.attn_logit_softcapping") ?? 50,
      final_logit_softcapping: metadata.number("gemma2.final_logit_softcapping") ?? 30,
    }),
  },
  gemma3: {
    className: "Gemma3ForCausalLM",
    modelType: "gemma3_text",
    permuted: false,
    names: SANDWICH,
    addedToGains: 1,
    reads: ["attention.sliding_window"],
    config: (metadata) => ({
      ...gemmaConfig(metadata, "gemma3"),
      rope_theta: shortestFloat32(metadata.number("gemma3.rope.freq_base") ?? 1e6),
      rope_local_base_freq: shortestFloat32(metadata.number("gemma3.rope.freq_base_swa") ?? 1e4),
      sliding_window_pattern: 6,
    }),
  },
  ...GGUF_FAMILIES,
};

/** The architecture's entry. Throws PlanishError naming the accepted ones. */
export function ggufArchitecture(
  metadata: GgufMetadata,
): GgufArchitecture & { readonly name: string } {
  const name = metadata.required("general.architecture", metadata.string("general.architecture"));
  if (!Object.hasOwn(ARCHITECTURES, name)) {
    metadata.fail(
      `architecture ${quoted(name, 80)} is not supported in GGUF files (accepted: ${Object.keys(ARCHITECTURES).join(", ")})`,
    );
  }
  const mixtral = name === "llama" && (metadata.count("llama.expert_count") ?? 0) > 0;
  return { name, ...(mixtral ? GGUF_MIXTRAL : ARCHITECTURES[name]) };
}

const OUTER_NAMES: Readonly<Record<string, string>> = {
  token_embd: "model.embed_tokens",
  output_norm: "model.norm",
  output: "lm_head",
};

const BLOCK_NAMES: Readonly<Record<string, string>> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};

/** Hugging Face's name of a GGUF tensor, or undefined where there is none. */
export function huggingFaceName(
  name: string,
  own: GgufArchitecture["names"] = {},
): string | undefined {
  const parts = /^(?:blk\.(\d{1,5})\.)?([a-z_]+)\.(weight|bias)$/.exec(name);
  if (!parts) return undefined;
  const [, block, stem, kind] = parts;
  const names = block === undefined ? OUTER_NAMES : { ...BLOCK_NAMES, ...own };
  const whole = `${stem}.${kind}`;
  if (block !== undefined && Object.hasOwn(names, whole))
    return `model.layers.${Number(block)}.${names[whole]}`;
  if (!Object.hasOwn(names, stem)) return undefined;
  return block === undefined
    ? `${names[stem]}.${kind}`
    : `model.layers.${Number(block)}.${names[stem]}.${kind}`;
}

/** A tensor's GGUF name by Hugging Face's, or undefined where there is none. */
export function ggufName(name: string, own: GgufArchitecture["names"] = {}): string | undefined {
  const parts = /^(?:model\.layers\.(\d{1,5})\.)?(.+)\.(weight|bias)$/.exec(name);
  if (!parts) return undefined;
  const [, block, path, kind] = parts;
  const names = block === undefined ? OUTER_NAMES : { ...BLOCK_NAMES, ...own };
  const stem = Object.keys(names).find((each) => names[each] === path);
  if (stem === undefined) return undefined;
  return block === undefined ? `${stem}.${kind}` : `blk.${Number(block)}.${stem}.${kind}`;
}

/**
 * Undoes the converter's permutation: row `r` of Hugging Face's q or k weight is the returned row of the file.
 * Within a head of `headDim` rows, the rotate-half layout (j·d/2 + i) is stored interleaved (2i + j).
 */
export function rotateHalfRow(row: number, headDim: number): number {
  const within = row % headDim;
  const halfDim = headDim / 2;
  return row - within + 2 * (within % halfDim) + Math.floor(within / halfDim);
}

/** Number of rows of a head of q and k. */
export function ggufHeadDim(metadata: GgufMetadata, architecture: string): number {
  const key = (name: string): string => `${architecture}.${name}`;
  const hidden = positive(metadata, key("embedding_length"));
  const heads = positive(metadata, key("attention.head_count"));
  const headDim = metadata.count(key("attention.key_length")) ?? hidden / heads;
  if (!Number.isInteger(headDim) || headDim < 2 || headDim % 2 !== 0) {
    metadata.fail(
      `heads of ${headDim} dimensions (${hidden} / ${heads}) are impossible: an even number is needed`,
    );
  }
  return headDim;
}

/**
 * Settings that change a model's arithmetic and that nobody here carries out, by their key after the architecture's
 * name, with the values that change nothing.
 */
const UNREAD: Readonly<Record<string, readonly (number | boolean)[]>> = {
  "attention.logit_softcapping": [0],
  attn_logit_softcapping: [0],
  final_logit_softcapping: [0],
  "attention.scale": [0],
  "attention.clamp_kqv": [0],
  "attention.max_alibi_bias": [0],
  "attention.causal": [true],
  logit_scale: [0, 1],
  residual_scale: [0, 1],
  embedding_scale: [0, 1],
  use_parallel_residual: [false],
  expert_used_count: [0],
  expert_weights_scale: [0, 1],
  nextn_predict_layers: [0],
  "attention.temperature_scale": [0],
  "attention.shared_kv_layers": [0],
  "rope.scaling.attn_factor": [0, 1],
  "rope.scaling.yarn_log_multiplier": [0],
};

/** Throws PlanishError naming the setting that is not carried out. */
function refuseUnread(
  metadata: GgufMetadata,
  architecture: string,
  positions: number,
  read: readonly string[],
): void {
  for (const [suffix, neutral] of Object.entries(UNREAD)) {
    const key = `${architecture}.${suffix}`;
    if (!metadata.has(key) || read.includes(suffix)) continue;
    const value = typeof neutral[0] === "boolean" ? metadata.boolean(key) : metadata.number(key);
    if (value !== undefined && !neutral.includes(value))
      metadata.fail(`metadata ${key} is ${value}, which this architecture is read without`);
  }
  if (read.includes("attention.sliding_window")) return;
  const key = `${architecture}.attention.sliding_window`;
  const window = metadata.has(key) ? metadata.count(key) : undefined;
  if (window !== undefined && window !== 0 && window < positions)
    metadata.fail(
      `metadata ${key} is ${window}, below the context of ${positions}: windows are not read from GGUF files`,
    );
}

/** `config.json` as Hugging Face would write it. Throws PlanishError on what cannot be expressed. */
export function rebuildConfig(metadata: GgufMetadata, shapes: GgufShapes): Record<string, unknown> {
  const architecture = ggufArchitecture(metadata);
  const { name, className, modelType, reads = [], layerNorms } = architecture;
  const key = (suffix: string): string => `${name}.${suffix}`;
  if (!architecture.experts && (metadata.count(key("expert_count")) ?? 0) > 0) {
    metadata.fail(`mixtures of experts are not supported in GGUF files of architecture ${name}`);
  }
  refuseUnread(metadata, name, positive(metadata, key("context_length")), reads);
  const headDim = ggufHeadDim(metadata, name);
  const rotary = metadata.count(key("rope.dimension_count")) ?? headDim;
  if (!architecture.latent)
    checkHeads(metadata, name, headDim, architecture.partialRotary ? 0 : rotary);
  const heads = positive(metadata, key("attention.head_count"));
  const epsilonKey = key(
    layerNorms === undefined ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
  );
  const ropeTheta = shortestFloat32(metadata.number(key("rope.freq_base")) ?? 10000);
  const config: Record<string, unknown> = {
    architectures: [className],
    model_type: modelType,
    hidden_size: positive(metadata, key("embedding_length")),
    intermediate_size: feedForward(metadata, name),
    ...(architecture.partialRotary && { partial_rotary_factor: rotary / headDim }),
    num_hidden_layers: positive(metadata, key("block_count")),
    num_attention_heads: heads,
    num_key_value_heads: metadata.count(key("attention.head_count_kv")) ?? heads,
    head_dim: headDim,
    hidden_act: "silu",
    max_position_embeddings: positive(metadata, key("context_length")),
    [layerNorms ?? "rms_norm_eps"]: shortestFloat32(
      metadata.required(epsilonKey, metadata.number(epsilonKey)),
    ),
    rope_theta: ropeTheta,
    attention_bias: shapes.hasAttentionBias,
    tie_word_embeddings: !shapes.hasOutput,
    vocab_size: shapes.vocabSize,
    ...architecture.config?.(metadata, name, shapes),
  };
  if (config["rope_scaling"] === undefined && config["rope_parameters"] === undefined) {
    const scaling = ropeScaling(metadata, name, ropeTheta, headDim, shapes.ropeFactors);
    if (scaling) config["rope_scaling"] = scaling;
  }
  for (const id of ["bos", "eos"]) {
    const value = metadata.tokenId(`tokenizer.ggml.${id}_token_id`, shapes.vocabSize);
    if (value !== undefined) config[`${id}_token_id`] = value;
  }
  return config;
}

/** Refuses heads of values that are others than those of keys, and a part of heads that turns: `rotary`, unless 0. */
function checkHeads(metadata: GgufMetadata, name: string, headDim: number, rotary: number): void {
  const valueLength = metadata.count(`${name}.attention.value_length`) ?? headDim;
  if (valueLength !== headDim) {
    metadata.fail(`value heads of ${valueLength} beside key heads of ${headDim} are not supported`);
  }
  if (rotary !== 0 && rotary !== headDim) {
    metadata.fail(`rotary embedding of ${rotary} of ${headDim} dimensions is not supported`);
  }
}

/** Channels inside MLPs; files of experts alone may have only those of an expert. */
function feedForward(metadata: GgufMetadata, name: string): number {
  const inside = metadata.count(`${name}.feed_forward_length`) ?? 0;
  const key = `${name}.${inside > 0 ? "" : "expert_"}feed_forward_length`;
  return metadata.has(key)
    ? positive(metadata, key)
    : positive(metadata, `${name}.feed_forward_length`);
}

function positive(metadata: GgufMetadata, key: string): number {
  const value = metadata.required(key, metadata.count(key));
  if (value < 1 || value > 2 ** 31)
    metadata.fail(`metadata ${key} is ${value}, which is impossible`);
  return value;
}

function ropeScaling(
  metadata: GgufMetadata,
  architecture: string,
  theta: number,
  headDim: number,
  factors: Float32Array | undefined,
): Record<string, unknown> | undefined {
  if (factors) return llama3Scaling(metadata, theta, headDim, factors);
  // A factor without a type is linear scaling, and so is the older key; 0 stands for no scaling (llama.cpp's reading).
  const type = metadata.string(`${architecture}.rope.scaling.type`) ?? "linear";
  if (type === "none") return undefined;
  const factor =
    (metadata.number(`${architecture}.rope.scaling.factor`) ||
      metadata.number(`${architecture}.rope.scale_linear`)) ??
    1;
  if (factor === 1 || factor === 0) return undefined;
  if (factor < 0) metadata.fail(`rope scaling factor ${factor} is impossible; it must be above 0`);
  if (type === "linear") return { rope_type: "linear", factor };
  if (type === "yarn") return plainYarn(metadata, architecture);
  // Without its factors it changes nothing.
  if (type === "longrope") return undefined;
  return metadata.fail(
    `rope scaling ${quoted(type, 40)} is not supported (accepted: none, linear, yarn, and llama3 by its rope_freqs tensor)`,
  );
}

/** Settings that every published Llama 3.x model uses; GGUF keeps only the factors that follow from them. */
const LLAMA3 = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };

/**
 * Divisors of the rotary frequencies under llama3 scaling (Llama 3.1 release): wavelengths beyond
 * original/low are divided by `factor`, those under original/high are kept, and between them the frequency is
 * interpolated.
 */
export function llama3Factors(factor: number, theta: number, headDim: number): Float64Array {
  const { low_freq_factor: low, high_freq_factor: high } = LLAMA3;
  const original = LLAMA3.original_max_position_embeddings;
  return Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / headDim);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

/** The tensor is float32 and may have been computed in it. */
const FACTOR_TOLERANCE = 1e-4;

/** Whether the factors are what makes the frequencies of models that were trained with them in bfloat16. */
function followsBfloat16(factors: Float32Array, theta: number): boolean {
  const plain = { dims: 2 * factors.length, theta, scaling: { type: "default" } } as const;
  const exact = rotaryFrequencies(plain, 1);
  const rounded = rotaryFrequencies({ ...plain, frequencyType: "bfloat16" }, 1);
  return factors.every((factor, i) => Math.abs((factor * rounded[i]) / exact[i] - 1) < 1e-6);
}

function llama3Scaling(
  metadata: GgufMetadata,
  theta: number,
  headDim: number,
  factors: Float32Array,
): Record<string, unknown> | undefined {
  if (factors.length !== headDim / 2) {
    metadata.fail(`rope_freqs.weight has ${factors.length} elements, heads need ${headDim / 2}`);
  }
  const factor = shortestFloat32(factors[factors.length - 1]);
  if (factors.every((value) => value === 1)) return undefined;
  const expected = llama3Factors(factor, theta, headDim);
  const fits = factors.every((value, i) => Math.abs(value / expected[i] - 1) < FACTOR_TOLERANCE);
  if (!fits && followsBfloat16(factors, theta)) {
    return { rope_type: "default", rope_theta: theta, frequency_dtype: "bfloat16" };
  }
  if (!fits) {
    metadata.fail(
      "rope_freqs.weight follows neither llama3 scaling (low 1, high 4, original context 8192) nor frequencies rounded to bfloat16, the only kinds that are read",
    );
  }
  return { rope_type: "llama3", factor, ...LLAMA3 };
}
