/**
 * Gemma 2 and Gemma 3 (text): norms before and after attention and MLP, gains stored as differences from 1, embeddings times
 * √hidden, windows in some layers. Gemma 2 caps scores and logits; Gemma 3 norms queries and keys, and has a rotary base of
 * its own for windowed layers. Sources: arXiv 2408.00118, arXiv 2503.19786.
 */
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader, ModelConfig } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import {
  everyFull,
  factor,
  layerKinds,
  llamaShape,
  optionalFactor,
  window,
  windowed,
  type ShapeOptions,
} from "./shape.js";
import { ropeOfKinds, ropePositions } from "./rope-config.js";

const NORMS = {
  input: "input_layernorm",
  afterAttention: "post_attention_layernorm",
  post: "pre_feedforward_layernorm",
  afterMlp: "post_feedforward_layernorm",
} as const;

function gemmaShape(c: ConfigReader, name: string, options: ShapeOptions): ModelConfig {
  if (c.optional("use_bidirectional_attention") === true)
    throw new PlanishError(
      "config.json: use_bidirectional_attention is true: that is an encoder; only causal Gemma models are supported",
    );
  return llamaShape(c, name, {
    tied: true,
    headDim: 256,
    kvHeads: 4,
    gainOffset: 1,
    embeddingScale: Math.sqrt(c.integer("hidden_size", LIMITS.width)),
    attention: {
      scale: factor(c, "query_pre_attn_scalar", 256) ** -0.5,
      softcap: optionalFactor(c, "attn_logit_softcapping", name === "gemma2" ? 50 : undefined),
    },
    logitSoftcap: optionalFactor(c, "final_logit_softcapping", name === "gemma2" ? 30 : undefined),
    activation: { key: "hidden_activation", fallback: "gelu_pytorch_tanh" },
    biases: c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : [],
    ...options,
  });
}

export const gemma2: Architecture = {
  name: "gemma2",
  modelTypes: ["gemma2"],
  parse: (c) =>
    gemmaShape(c, "gemma2", {
      maxPositions: 8192,
      // Every second layer sees everything.
      layers: windowed(layerKinds(c, everyFull(2)), window(c, 4096)),
    }),
  lower: (config, layer) => decoderBlock(config, layer, { ...LLAMA_PATHS, norms: NORMS }),
  names: LLAMA_NAMES,
};

export const gemma3: Architecture = {
  name: "gemma3",
  modelTypes: ["gemma3_text"],
  parse: (c) => {
    const pattern = c.integer(
      "sliding_window_pattern",
      LIMITS.layers,
      c.integer("_sliding_window_pattern", LIMITS.layers, 6),
    );
    const kinds = layerKinds(c, everyFull(pattern));
    const widths = windowed(kinds, window(c, 4096));
    const local = factor(c, "rope_local_base_freq", 10_000);
    const { full_attention: full, sliding_attention: sliding } = ropeOfKinds(c, { theta: 1e6 }) ?? {
      full_attention: ropePositions(c, { theta: 1e6 }),
      sliding_attention: { kind: "rope", theta: local, scaling: { type: "default" } } as const,
    };
    return gemmaShape(c, "gemma3", {
      maxPositions: 131_072,
      qkNorm: true,
      positions: full,
      layers: widths.map((layer, i) =>
        kinds[i] === "full_attention" ? layer : { ...layer, positions: sliding },
      ),
    });
  },
  lower: (config, layer) =>
    decoderBlock(config, layer, { ...LLAMA_PATHS, norms: NORMS, attention: NORMED_ATTENTION }),
  names: LLAMA_NAMES,
};
