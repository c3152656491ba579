/** Parts of config parsing that architectures share. */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder, type Named } from "../builder.js";
import type { ConfigReader, ModelConfig } from "../config.js";
import type { BlockProgram, Rotary, ValueName } from "../../backend/contract/program.js";
import { activation } from "./reader.js";
import { ropePositions } from "./rope-config.js";

/** Biases of LLaMA-shaped blocks where `attention_bias` and `mlp_bias` say so. */
export function llamaBiases(c: ConfigReader): string[] {
  return [
    ...(c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : []),
    ...(c.boolean("mlp_bias", false) ? ["gate", "up", "down"] : []),
  ];
}

/**
 * What LLaMA-shaped architectures have in common.
 * @throws PlanishError when `layer_types` gives some layers another attention than the rest.
 */
export function llamaShape(
  c: ConfigReader,
  architecture: string,
  options: { qkNorm?: boolean; slidingWindow?: number; biases?: readonly string[] } = {},
): ModelConfig {
  const hiddenSize = c.integer("hidden_size", LIMITS.width);
  const numHeads = c.integer("num_attention_heads", LIMITS.heads);
  const numLayers = c.integer("num_hidden_layers", LIMITS.layers);
  const { slidingWindow } = options;
  checkLayerTypes(c, numLayers, slidingWindow === undefined ? "full_attention" : "sliding_attention");
  return {
    architecture,
    hiddenSize,
    intermediateSize: c.integer("intermediate_size", LIMITS.width),
    numLayers,
    numHeads,
    numKvHeads: c.integer("num_key_value_heads", LIMITS.heads, numHeads),
    headDim: (c.optional("head_dim") ?? undefined) === undefined ? hiddenSize / numHeads : c.integer("head_dim", LIMITS.width),
    vocabSize: c.integer("vocab_size", LIMITS.vocabulary),
    maxPositions: c.integer("max_position_embeddings", LIMITS.positions, 2048),
    norm: { kind: "rms", epsilon: c.number("rms_norm_eps", 1e-6, { min: 0, max: 1 }) },
    positions: ropePositions(c),
    mlp: { gated: true, activation: activation(c.string("hidden_act", "silu")) },
    qkNorm: options.qkNorm ?? false,
    tiedEmbeddings: c.boolean("tie_word_embeddings", false),
    slidingWindow,
    biases: options.biases,
  };
}

function checkLayerTypes(c: ConfigReader, layers: number, accepted: string): void {
  const types = c.optional("layer_types");
  if (types === undefined || types === null) return;
  if (!Array.isArray(types) || types.length !== layers || types.some((type) => type !== accepted))
    throw new PlanishError(
      `config.json: layer_types must be ${JSON.stringify(accepted)} for each of ${layers} layers with this architecture and window, found ${shown(types)}`,
    );
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
