/** Parts of config parsing that architectures share. */
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, ModelConfig, RopeScaling } from "../config.js";

export function configReader(config: Readonly<Record<string, unknown>>): ConfigReader {
  const fail = (key: string, want: string, got: unknown): never => {
    throw new PlanishError(`config.json: ${key} must be ${want}, found ${JSON.stringify(got)}`);
  };
  return {
    number(key, fallback) {
      const value = config[key] ?? fallback;
      return typeof value === "number" && Number.isFinite(value) ? value : fail(key, "a number", config[key]);
    },
    boolean(key, fallback) {
      const value = config[key] ?? fallback;
      return typeof value === "boolean" ? value : fail(key, "true or false", value);
    },
    string(key, fallback) {
      const value = config[key] ?? fallback;
      return typeof value === "string" ? value : fail(key, "a string", value);
    },
    optional: (key) => config[key],
  };
}

/** Reads both spellings: `rope_theta` + `rope_scaling`, and the newer `rope_parameters`. */
export function ropePositions(c: ConfigReader): ModelConfig["positions"] {
  const newer = asRecord(c.optional("rope_parameters"));
  const older = asRecord(c.optional("rope_scaling"));
  const source = newer ?? older ?? {};
  const theta = numberOr(newer?.rope_theta, c.number("rope_theta", 10000));
  const frequencyType = frequencyTypeOf(source.frequency_dtype);
  return { kind: "rope", theta, scaling: ropeScaling(source, c), frequencyType };
}

function frequencyTypeOf(value: unknown): "bfloat16" | undefined {
  if (value === undefined || value === "float32") return undefined;
  if (value === "bfloat16") return value;
  throw new PlanishError(
    `config.json: rope frequency_dtype ${JSON.stringify(value)} is not supported; accepted: float32, bfloat16`,
  );
}

function ropeScaling(source: Record<string, unknown>, c: ConfigReader): RopeScaling {
  const type = source.rope_type ?? source.type ?? "default";
  const need = (key: string): number => {
    const value = source[key];
    if (typeof value !== "number") throw new PlanishError(`config.json: rope scaling ${JSON.stringify(type)} needs ${key}`);
    return value;
  };
  switch (type) {
    case "default":
      return { type: "default" };
    case "linear":
      return { type: "linear", factor: need("factor") };
    case "llama3":
      return {
        type: "llama3",
        factor: need("factor"),
        lowFreqFactor: need("low_freq_factor"),
        highFreqFactor: need("high_freq_factor"),
        originalMaxPositions: numberOr(
          source.original_max_position_embeddings,
          c.number("original_max_position_embeddings", 8192),
        ),
      };
    default:
      throw new PlanishError(`rope scaling ${JSON.stringify(type)} is not supported; accepted: default, linear, llama3`);
  }
}

export function activation(name: string): ModelConfig["mlp"]["activation"] {
  switch (name) {
    case "silu":
    case "swish":
      return "silu";
    case "relu":
      return "relu";
    case "gelu":
      return "gelu";
    case "gelu_new":
    case "gelu_pytorch_tanh":
      return "geluTanh";
    default:
      throw new PlanishError(`activation "${name}" is not supported; accepted: silu, relu, gelu, gelu_new, gelu_pytorch_tanh`);
  }
}

/** What LLaMA-shaped architectures have in common. */
export function llamaShape(
  c: ConfigReader,
  architecture: string,
  options: { qkNorm?: boolean; slidingWindow?: number; tied?: boolean } = {},
): ModelConfig {
  const hiddenSize = c.number("hidden_size");
  const numHeads = c.number("num_attention_heads");
  return {
    architecture,
    hiddenSize,
    intermediateSize: c.number("intermediate_size"),
    numLayers: c.number("num_hidden_layers"),
    numHeads,
    numKvHeads: c.number("num_key_value_heads", numHeads),
    headDim: numberOr(c.optional("head_dim"), hiddenSize / numHeads),
    vocabSize: c.number("vocab_size"),
    maxPositions: c.number("max_position_embeddings", 2048),
    norm: { kind: "rms", epsilon: c.number("rms_norm_eps", 1e-6) },
    positions: ropePositions(c),
    mlp: { gated: true, activation: activation(c.string("hidden_act", "silu")) },
    qkNorm: options.qkNorm ?? false,
    tiedEmbeddings: c.boolean("tie_word_embeddings", options.tied ?? false),
    slidingWindow: options.slidingWindow,
  };
}

/** Names shared by every architecture that follows LLaMA's layout. */
export const LLAMA_NAMES = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm.weight",
  lmHead: "lm_head.weight",
  blockPrefix: (layer: number) => `model.layers.${layer}.`,
  linears: {
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
  },
  norms: { input: "input_layernorm", post: "post_attention_layernorm" },
} as const;

function asRecord(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
}

function numberOr(value: unknown, fallback: number): number {
  return typeof value === "number" ? value : fallback;
}
