/**
 * OPT: learned positions with an offset of 2, layer norms and biases everywhere, a two-layer ReLU MLP. Norms come first,
 * except in the 350M model, whose norms follow the residual sums, whose embedding is narrower than its hidden
 * states, and which has no final norm (Zhang et al. 2022, arXiv 2205.01068; Hugging Face's OPTDecoder).
 */
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ModelConfig } from "../config.js";
import type { BlockProgram, ValueName } from "../../backend/contract/program.js";
import { attentionPart, decoderBlock, mlpPart } from "./common.js";
import { activation } from "./reader.js";

export const opt: Architecture = {
  name: "opt",
  modelTypes: ["opt"],
  parse: (c) => {
    const hiddenSize = c.integer("hidden_size", LIMITS.width);
    const numHeads = c.integer("num_attention_heads", LIMITS.heads);
    const normsFirst = c.boolean("do_layer_norm_before", true);
    const embeddingSize = c.integer("word_embed_proj_dim", LIMITS.width, hiddenSize);
    if (!c.boolean("layer_norm_elementwise_affine", true))
      throw new PlanishError(
        "config.json: layer_norm_elementwise_affine is false, but OPT is read with norms that have weights; only true is accepted",
      );
    return {
      architecture: "opt",
      hiddenSize,
      intermediateSize: c.integer("ffn_dim", LIMITS.width),
      numLayers: c.integer("num_hidden_layers", LIMITS.layers),
      numHeads,
      numKvHeads: numHeads,
      headDim: hiddenSize / numHeads,
      vocabSize: c.integer("vocab_size", LIMITS.vocabulary),
      maxPositions: c.integer("max_position_embeddings", LIMITS.positions, 2048),
      norm: { kind: "layer", epsilon: 1e-5 },
      normPlacement: normsFirst ? "before" : "after",
      finalNorm: normsFirst && !c.boolean("_remove_final_layer_norm", false),
      embeddingSize: embeddingSize === hiddenSize ? undefined : embeddingSize,
      positions: { kind: "learned", offset: 2 },
      mlp: { gated: false, activation: activation(c.string("activation_function", "relu")) },
      qkNorm: false,
      tiedEmbeddings: c.boolean("tie_word_embeddings", true),
      biases: c.boolean("enable_bias", true) ? ["q", "k", "v", "o", "up", "down"] : [],
    };
  },
  lower: (config, layer) =>
    config.normPlacement === "after"
      ? normsAfter(config, layer)
      : decoderBlock(config, layer, PATHS),
  names: {
    embedding: "model.decoder.embed_tokens.weight",
    positions: "model.decoder.embed_positions.weight",
    finalNorm: "model.decoder.final_layer_norm.weight",
    lmHead: "lm_head.weight",
    projectIn: "model.decoder.project_in.weight",
    projectOut: "model.decoder.project_out.weight",
    blockPrefix: (layer) => `model.decoder.layers.${layer}.`,
  },
};

const PATHS = {
  norms: { input: "self_attn_layer_norm", post: "final_layer_norm" },
  attention: {
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.out_proj",
  },
  mlp: { up: "fc1", down: "fc2" },
} as const;

/** y = norm(x + attention(x)), then norm(y + mlp(y)): the linears read the residual stream itself. */
function normsAfter(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const normed = (x: ValueName, name: "input" | "post") =>
    b.norm(x, { name, path: PATHS.norms[name] }, config.hiddenSize, config.norm);
  const y = normed(
    b.add(b.input, attentionPart(b, config, layer, b.input, PATHS.attention)),
    "input",
  );
  return b.finish(normed(b.add(y, mlpPart(b, config, y, PATHS.mlp)), "post"));
}
