/**
 * GPT-2: learned positions, layer norms and biases everywhere, one tensor of queries, keys and values, matrices stored as
 * [in, out] (Radford et al. 2019; Hugging Face's GPT2Model).
 */
import { LIMITS } from "../../common/bounds.js";
import type { Architecture, ConfigReader, ModelConfig } from "../config.js";
import { decoderBlock } from "./common.js";
import { activation } from "./reader.js";
import { eitherSize, normEpsilon } from "./shape.js";

function parse(c: ConfigReader): ModelConfig {
  const hiddenSize = eitherSize(c, ["n_embd", "hidden_size"], LIMITS.width, 768);
  const numHeads = eitherSize(c, ["n_head", "num_attention_heads"], LIMITS.heads, 12);
  const numLayers = eitherSize(c, ["n_layer", "num_hidden_layers"], LIMITS.layers, 12);
  const headDim = hiddenSize / numHeads;
  // Which of two products is scaled, and in which precision, changes no number beyond rounding.
  c.boolean("reorder_and_upcast_attn", false);
  const scale = c.boolean("scale_attn_weights", true) ? 1 / Math.sqrt(headDim) : 1;
  const shrinking = c.boolean("scale_attn_by_inverse_layer_idx", false);
  return {
    architecture: "gpt2",
    hiddenSize,
    intermediateSize: c.integer("n_inner", LIMITS.width, 4 * hiddenSize),
    numLayers,
    numHeads,
    numKvHeads: numHeads,
    headDim,
    vocabSize: c.integer("vocab_size", LIMITS.vocabulary, 50257),
    maxPositions: eitherSize(
      c,
      ["n_positions", "max_position_embeddings", "n_ctx"],
      LIMITS.positions,
      1024,
    ),
    norm: { kind: "layer", epsilon: normEpsilon(c, "layer_norm_epsilon", 1e-5) },
    positions: { kind: "learned", offset: 0 },
    mlp: { gated: false, activation: activation(c.string("activation_function", "gelu_new")) },
    qkNorm: false,
    tiedEmbeddings: c.boolean("tie_word_embeddings", true),
    biases: ["q", "k", "v", "o", "up", "down"],
    attention: { scale },
    layers: shrinking
      ? Array.from({ length: numLayers }, (_, layer) => ({ scale: scale / (layer + 1) }))
      : undefined,
  };
}

export const gpt2: Architecture = {
  name: "gpt2",
  modelTypes: ["gpt2"],
  classes: ["GPT2LMHeadModel"],
  parse,
  lower: (config, layer) =>
    decoderBlock(
      config,
      layer,
      {
        norms: { input: "ln_1", post: "ln_2" },
        attention: { q: "attn.q", k: "attn.k", v: "attn.v", o: "attn.c_proj" },
        mlp: { up: "mlp.c_fc", down: "mlp.c_proj" },
      },
      { fused: "attn.c_attn", transposed: true },
    ),
  names: {
    embedding: "transformer.wte.weight",
    positions: "transformer.wpe.weight",
    finalNorm: "transformer.ln_f.weight",
    lmHead: "lm_head.weight",
    blockPrefix: (layer) => `transformer.h.${layer}.`,
  },
};
