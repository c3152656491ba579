/** StableLM 2: layer norms, a turning part of each head; optionally norms of heads, and attention and MLP side by side. */
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, parallelBlock } from "./common.js";
import { llamaShape, normEpsilon } from "./shape.js";

export const stablelm: Architecture = {
  name: "stablelm",
  modelTypes: ["stablelm"],
  parse: (c) => ({
    ...llamaShape(c, "stablelm", {
      norm: { kind: "layer", epsilon: normEpsilon(c, "layer_norm_eps", 1e-5) },
      maxPositions: 4096,
      rotaryShare: 0.25,
      qkNorm: c.boolean("qk_layernorm", false),
      biases: c.boolean("use_qkv_bias", false) ? ["q", "k", "v"] : [],
    }),
    parallel: c.boolean("use_parallel_residual", false),
  }),
  lower: (config, layer) => {
    const attention = config.qkNorm
      ? { ...LLAMA_PATHS.attention, qNorm: "self_attn.q_layernorm", kNorm: "self_attn.k_layernorm" }
      : LLAMA_PATHS.attention;
    const block = config.parallel ? parallelBlock : decoderBlock;
    return block(config, layer, { ...LLAMA_PATHS, attention }, { headNorms: "each" });
  },
  names: LLAMA_NAMES,
};
