/** GLM-4-0414: norms before and after attention and MLP, neighbours as rotary pairs of half the head, fused gate and up. */
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { llamaShape } from "./shape.js";

export const glm4: Architecture = {
  name: "glm4",
  modelTypes: ["glm4"],
  parse: (c) =>
    llamaShape(c, "glm4", {
      epsilon: 1.5625e-7,
      kvHeads: 2,
      headDim: 128,
      maxPositions: 131_072,
      rotaryShare: 0.5,
      interleaved: true,
      biases: c.boolean("attention_bias", false) ? ["q", "k", "v"] : [],
    }),
  lower: (config, layer) =>
    decoderBlock(config, layer, {
      norms: {
        input: "input_layernorm",
        afterAttention: "post_self_attn_layernorm",
        post: "post_attention_layernorm",
        afterMlp: "post_mlp_layernorm",
      },
      attention: LLAMA_PATHS.attention,
      mlp: { ...LLAMA_PATHS.mlp, fused: "mlp.gate_up_proj" },
    }),
  names: LLAMA_NAMES,
};
