/**
 * LFM2, dense and with experts (Liquid AI, 2025): blocks of a gated short convolution, or of attention with norms of heads. The
 * experts' router is a sigmoid whose correction counts for the choice only.
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, LayerConfig, ModelConfig } from "../config.js";
import type { ShortConvConfig } from "../recurrent-config.js";
import type { BlockProgram, ValueName } from "../../backend/contract/program.js";
import { attentionPart, blockNorms, LLAMA_NAMES } from "./common.js";
import { expertCounts, feedForward } from "./experts.js";
import { layerMixers, requireValue } from "./hybrid.js";
import { llamaShape, normEpsilon } from "./shape.js";

const PATHS = {
  norms: { input: "operator_norm", post: "ffn_norm" },
  attention: {
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.out_proj",
    qNorm: "self_attn.q_layernorm",
    kNorm: "self_attn.k_layernorm",
  },
  mlp: { gate: "feed_forward.w1", up: "feed_forward.w3", down: "feed_forward.w2" },
  experts: {
    router: "feed_forward.gate.weight",
    correction: "feed_forward.expert_bias",
    expert: (e: number) => ({
      gate: `feed_forward.experts.${e}.w1`,
      up: `feed_forward.experts.${e}.w3`,
      down: `feed_forward.experts.${e}.w2`,
    }),
  },
};

const NAMES = { ...LLAMA_NAMES, finalNorm: "model.embedding_norm.weight" };

/** Attention in all layers, or in those of `full_attn_idxs`, unless `layer_types` says. */
function layers(c: ConfigReader): LayerConfig[] {
  const full = c.optional("full_attn_idxs") ?? undefined;
  if (full !== undefined && (!Array.isArray(full) || !full.every((i) => Number.isInteger(i))))
    throw new PlanishError(
      `config.json: full_attn_idxs must be a list of layers' numbers, found ${shown(full)}`,
    );
  const words = { conv: "recurrent", full_attention: "attention" } as const;
  return layerMixers(c, words, (layer) =>
    full === undefined || full.includes(layer) ? "attention" : "recurrent",
  ).map((mixer) => ({ mixer }));
}

/** Keys of older files that repeat a size, or say what is always so here. */
function checkRepeated(c: ConfigReader): void {
  const hidden = c.integer("hidden_size", LIMITS.width);
  for (const key of ["block_dim", "conv_dim", "conv_dim_out"]) requireValue(c, key, hidden);
  for (const key of ["block_use_swiglu", "use_pos_enc"]) requireValue(c, key, true);
  for (const key of ["block_mlp_init_scale", "block_out_init_scale"]) c.optional(key);
  for (const key of ["block_use_xavier_init", "conv_use_xavier_init"]) c.optional(key);
  requireValue(c, "block_norm_eps", normEpsilon(c, "norm_eps", 1e-5));
}

function shape(c: ConfigReader, name: string): ModelConfig {
  checkRepeated(c);
  const bias = c.boolean("conv_bias", false);
  const recurrent: ShortConvConfig = {
    kind: "conv",
    taps: c.integer("conv_L_cache", LIMITS.width, 3),
    bias,
  };
  const config = llamaShape(c, name, {
    ...{ qkNorm: true, layers: layers(c), kvHeads: 8, maxPositions: 128_000 },
    tied: true,
    norm: { kind: "rms", epsilon: normEpsilon(c, "norm_eps", 1e-5) },
    rope: { theta: 1_000_000 },
    biases: bias ? ["conv_b", "conv_c", "conv_x", "out"] : [],
  });
  return {
    ...config,
    recurrent,
    // The older name comes first where both are there.
    tiedEmbeddings: c.boolean("tie_embedding", config.tiedEmbeddings),
  };
}

/** Of the MLP: two thirds of what the key says, times a factor, rounded up to a multiple; unless it says to leave it. */
function adjustedWidth(c: ConfigReader, width: number): number {
  const given = c.optional("block_ff_dim") ?? undefined;
  const own = given === undefined ? width : c.integer("block_ff_dim", LIMITS.width);
  const multiple = c.integer("block_multiple_of", LIMITS.width, 256);
  const factor = c.optional("block_ffn_dim_multiplier");
  const times = factor === null ? null : c.number("block_ffn_dim_multiplier", 1, { above: 0 });
  if (!c.boolean("block_auto_adjust_ff_dim", true)) return own;
  const reduced = Math.floor((2 * own) / 3);
  return times === null ? reduced : multiple * Math.ceil(Math.floor(times * reduced) / multiple);
}

/** From the normed residual stream to out's output: out(C ⊙ conv(B ⊙ x)). */
function shortConvolution(
  b: BlockBuilder,
  { hiddenSize, residualScale }: ModelConfig,
  { taps, bias }: ShortConvConfig,
  x: ValueName,
): ValueName {
  const part = (name: string, index: number) => ({
    name: `conv_${name}`,
    path: `conv.in_proj_${name}`,
    out: hiddenSize,
    stored: {
      parts: [{ path: "conv.in_proj", rows: 3 * hiddenSize }],
      order: Array.from({ length: hiddenSize }, (_, i) => index * hiddenSize + i),
    },
  });
  const [before, after, value] = b.site(
    x,
    "mixer_in",
    [part("b", 0), part("c", 1), part("x", 2)],
    hiddenSize,
  );
  const mixed = b.conv(b.multiply(before, value), {
    weight: b.kept("conv", "conv.conv.weight", [hiddenSize, 1, taps]),
    bias: bias ? b.kept("conv_bias", "conv.conv.bias", [hiddenSize]) : undefined,
    channels: hiddenSize,
    taps,
  });
  const out = {
    name: "out",
    path: "conv.out_proj",
    ...{ out: hiddenSize, factor: residualScale },
  };
  return b.site(b.multiply(after, mixed), "mixer_out", [out], hiddenSize)[0];
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const read = blockNorms(b, config)(b.input, "input", PATHS.norms.input);
  const { recurrent } = config;
  const mixed =
    recurrent?.kind === "conv" && config.layers?.[layer].mixer === "recurrent"
      ? shortConvolution(b, config, recurrent, read)
      : attentionPart(b, config, layer, read, PATHS.attention);
  return b.finish(feedForward(b, config, layer, b.add(b.input, mixed), PATHS));
}

export const lfm2: Architecture = {
  name: "lfm2",
  modelTypes: ["lfm2"],
  parse: (c) => {
    const config = shape(c, "lfm2");
    return { ...config, intermediateSize: adjustedWidth(c, config.intermediateSize) };
  },
  lower,
  names: NAMES,
};

export const lfm2Moe: Architecture = {
  name: "lfm2_moe",
  modelTypes: ["lfm2_moe"],
  parse: (c) => {
    const config = shape(c, "lfm2_moe");
    const dense = c.integer("num_dense_layers", LIMITS.layers, 2, 0);
    return {
      ...config,
      experts: {
        ...expertCounts(c, ["num_experts", "num_local_experts"], { experts: 32, chosen: 4 }),
        width: c.integer("moe_intermediate_size", LIMITS.width, 1792),
        scores: "sigmoid",
        normalize: c.boolean("norm_topk_prob", true),
        factor: c.number("routed_scaling_factor", 1, { above: 0 }),
        correction: c.boolean("use_expert_bias", true),
        dense: Array.from({ length: config.numLayers }, (_, layer) => layer < dense),
      },
    };
  },
  lower,
  names: NAMES,
};
