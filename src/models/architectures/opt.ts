/** OPT: learned positions with an offset of 2, layer norms and biases everywhere, a two-layer ReLU MLP. */
import { PlanishError } from "../../common/errors.js";
import type { Architecture } from "../config.js";
import { activation } from "./common.js";

export const opt: Architecture = {
  name: "opt",
  modelTypes: ["opt"],
  parse: (c) => {
    const hiddenSize = c.number("hidden_size");
    const numHeads = c.number("num_attention_heads");
    if (!c.boolean("do_layer_norm_before", true))
      throw new PlanishError("OPT with do_layer_norm_before=false (the 350M post-norm variant) is not supported yet");
    if (c.number("word_embed_proj_dim", hiddenSize) !== hiddenSize)
      throw new PlanishError("OPT with word_embed_proj_dim ≠ hidden_size is not supported yet");
    return {
      architecture: "opt",
      hiddenSize,
      intermediateSize: c.number("ffn_dim"),
      numLayers: c.number("num_hidden_layers"),
      numHeads,
      numKvHeads: numHeads,
      headDim: hiddenSize / numHeads,
      vocabSize: c.number("vocab_size"),
      maxPositions: c.number("max_position_embeddings", 2048),
      norm: { kind: "layer", epsilon: 1e-5 },
      positions: { kind: "learned", offset: 2 },
      mlp: { gated: false, activation: activation(c.string("activation_function", "relu")) },
      qkNorm: false,
      tiedEmbeddings: c.boolean("tie_word_embeddings", true),
    };
  },
  names: {
    embedding: "model.decoder.embed_tokens.weight",
    positions: "model.decoder.embed_positions.weight",
    finalNorm: "model.decoder.final_layer_norm.weight",
    lmHead: "lm_head.weight",
    blockPrefix: (layer) => `model.decoder.layers.${layer}.`,
    linears: {
      q: "self_attn.q_proj",
      k: "self_attn.k_proj",
      v: "self_attn.v_proj",
      o: "self_attn.out_proj",
      up: "fc1",
      down: "fc2",
    },
    norms: { input: "self_attn_layer_norm", post: "final_layer_norm" },
  },
};
