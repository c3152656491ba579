/** Parts of config parsing that architectures share. */
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder, type Named } from "../builder.js";
import type { ConfigReader, ModelConfig } from "../config.js";
import type { BlockProgram, RopeScaling, Rotary, ValueName } from "../program.js";

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
} as const;

/** Paths of a block that follows LLaMA's layout. */
export const LLAMA_PATHS = {
  norms: { input: "input_layernorm", post: "post_attention_layernorm" },
  attention: {
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
  },
  mlp: { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
} as const;

/** Paths of attention's linears, and of the norms of queries and keys where there are some. */
export interface AttentionPaths {
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly o: string;
  readonly qNorm?: string;
  readonly kNorm?: string;
}

/** Rotary positions of whole heads; undefined for models whose positions are learned. */
export function rotaryOf({ positions, headDim }: ModelConfig): Rotary | undefined {
  if (positions.kind !== "rope") return undefined;
  const { theta, scaling, frequencyType } = positions;
  return { dims: headDim, theta, scaling, frequencyType };
}

/** Attention from what q, k and v read to o's output. Norms of queries and keys are RMS norms over each head. */
export function attentionPart(
  b: BlockBuilder,
  config: ModelConfig,
  x: ValueName,
  paths: AttentionPaths,
): ValueName {
  const { hiddenSize, numHeads, numKvHeads, headDim, norm, slidingWindow } = config;
  const width = numHeads * headDim;
  const kvWidth = numKvHeads * headDim;
  const [query, key, v] = b.site(
    x,
    "attn_in",
    [
      { name: "q", path: paths.q, out: width },
      { name: "k", path: paths.k, out: kvWidth },
      { name: "v", path: paths.v, out: kvWidth },
    ],
    hiddenSize,
  );
  let [q, k] = [query, key];
  const headNorm = { kind: "rms", epsilon: norm.epsilon } as const;
  if (paths.qNorm !== undefined) q = b.norm(q, { name: "q", path: paths.qNorm }, headDim, headNorm);
  if (paths.kNorm !== undefined) k = b.norm(k, { name: "k", path: paths.kNorm }, headDim, headNorm);
  const rotary = rotaryOf(config);
  if (rotary) {
    q = b.rope(q, rotary, numHeads, headDim);
    k = b.rope(k, rotary, numKvHeads, headDim);
  }
  const mixed = b.attention(
    { q, k, v },
    { heads: numHeads, kvHeads: numKvHeads, headDim, scale: 1 / Math.sqrt(headDim), window: slidingWindow },
  );
  return b.site(mixed, "attn_out", [{ name: "o", path: paths.o, out: hiddenSize }], width)[0];
}

/** act(gate)·up through down, or act(up) through down where there is no gate. */
export function mlpPart(
  b: BlockBuilder,
  { hiddenSize, intermediateSize, mlp }: ModelConfig,
  x: ValueName,
  paths: { readonly gate?: string; readonly up: string; readonly down: string },
): ValueName {
  const linear = (name: string, path: string) => ({ name, path, out: intermediateSize });
  const up = linear("up", paths.up);
  const read = paths.gate === undefined ? [up] : [linear("gate", paths.gate), up];
  const outputs = b.site(x, "mlp_in", read, hiddenSize);
  const activated = b.activation(
    mlp.activation,
    outputs[outputs.length - 1],
    paths.gate === undefined ? undefined : outputs[0],
  );
  return b.site(activated, "mlp_down", [{ name: "down", path: paths.down, out: hiddenSize }], intermediateSize)[0];
}

/** The usual block: y = x + attention(norm(x)), then y + mlp(norm(y)). */
export function decoderBlock(
  config: ModelConfig,
  paths: {
    readonly norms: { readonly input: string; readonly post: string };
    readonly attention: AttentionPaths;
    readonly mlp: { readonly gate?: string; readonly up: string; readonly down: string };
  },
): BlockProgram {
  const b = new BlockBuilder();
  const normed = (x: ValueName, norm: Named) => b.norm(x, norm, config.hiddenSize, config.norm);
  const read = normed(b.input, { name: "input", path: paths.norms.input });
  const y = b.add(b.input, attentionPart(b, config, read, paths.attention));
  const middle = normed(y, { name: "post", path: paths.norms.post });
  return b.finish(b.add(y, mlpPart(b, config, middle, paths.mlp)));
}

function asRecord(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
}

function numberOr(value: unknown, fallback: number): number {
  return typeof value === "number" ? value : fallback;
}
