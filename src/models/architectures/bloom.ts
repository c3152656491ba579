/**
 * BLOOM: no positions but a bias of scores that falls with distance, by a slope of each head (ALiBi, arXiv 2108.12409); a norm of
 * the embeddings; one tensor of queries, keys and values, which alternate by head (arXiv 2211.05100).
 */
import { LIMITS } from "../../common/bounds.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, ModelConfig } from "../config.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import { attentionPart, blockNorms, mlpPart } from "./common.js";
import { eitherSize, normEpsilon } from "./shape.js";

/** Slopes of the heads: a geometric sequence for a power of two, and between its numbers those of the next one. */
export function alibiSlopes(heads: number): readonly number[] {
  const power = 2 ** Math.floor(Math.log2(heads));
  const sequence = (count: number) => (i: number) => 2 ** ((-8 * (i + 1)) / count);
  const between = sequence(2 * power);
  return [
    ...Array.from({ length: power }, (_, i) => sequence(power)(i)),
    ...Array.from({ length: heads - power }, (_, i) => between(2 * i)),
  ];
}

function parse(c: ConfigReader): ModelConfig {
  // Older configurations have n_embed beside or instead of hidden_size, and it wins.
  const hiddenSize = eitherSize(c, ["n_embed", "hidden_size"], LIMITS.width, 64);
  const numHeads = eitherSize(c, ["n_head", "num_attention_heads"], LIMITS.heads, 8);
  // Sums in another order, in 16 bits: no number beyond rounding.
  c.boolean("slow_but_exact", false);
  return {
    architecture: "bloom",
    hiddenSize,
    intermediateSize: 4 * hiddenSize,
    numLayers: eitherSize(c, ["n_layer", "num_hidden_layers"], LIMITS.layers, 2),
    numHeads,
    numKvHeads: numHeads,
    headDim: hiddenSize / numHeads,
    vocabSize: c.integer("vocab_size", LIMITS.vocabulary, 250_880),
    // Nothing ends there: what it was trained on.
    maxPositions: c.integer("seq_length", LIMITS.positions, 2048),
    norm: { kind: "layer", epsilon: normEpsilon(c, "layer_norm_epsilon", 1e-5) },
    positions: { kind: "none" },
    mlp: { gated: false, activation: "geluTanh" },
    qkNorm: false,
    tiedEmbeddings: c.boolean("tie_word_embeddings", true),
    normedResidual: c.boolean("apply_residual_connection_post_layernorm", false),
    biases: ["q", "k", "v", "o", "up", "down"],
  };
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const normed = blockNorms(b, config);
  const embeddingNorm = {
    name: "embedding",
    path: "embedding_layernorm",
    stored: {
      parts: [{ path: "/transformer.word_embeddings_layernorm", rows: config.hiddenSize }],
    },
  };
  const x = layer > 0 ? b.input : b.norm(b.input, embeddingNorm, config.hiddenSize, config.norm);
  const read = normed(x, "input", "input_layernorm");
  const attention = { q: "attn.q", k: "attn.k", v: "attn.v", o: "self_attention.dense" };
  const mixed = attentionPart(b, config, layer, read, attention, {
    fused: "self_attention.query_key_value",
    fusedByHead: true,
    slopes: alibiSlopes(config.numHeads),
  });
  const y = b.add(config.normedResidual ? read : x, mixed);
  const middle = normed(y, "post", "post_attention_layernorm");
  const mlp = mlpPart(b, config, middle, {
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
  });
  return b.finish(b.add(config.normedResidual ? middle : y, mlp));
}

export const bloom: Architecture = {
  name: "bloom",
  modelTypes: ["bloom"],
  parse,
  lower,
  names: {
    embedding: "transformer.word_embeddings.weight",
    finalNorm: "transformer.ln_f.weight",
    lmHead: "lm_head.weight",
    blockPrefix: (layer) => `transformer.h.${layer}.`,
  },
};
