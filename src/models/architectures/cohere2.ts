/**
 * Command R7B and its relatives: attention and MLP side by side of one layer norm without bias, neighbours as rotary pairs,
 * positions in windowed layers only, logits times a constant (Cohere, 2024).
 */
import { LIMITS } from "../../common/bounds.js";
import type { Architecture } from "../config.js";
import { LLAMA_NAMES, LLAMA_PATHS, parallelBlock } from "./common.js";
import {
  everyFull,
  factor,
  layerKinds,
  llamaShape,
  normEpsilon,
  window,
  windowed,
} from "./shape.js";

export const cohere2: Architecture = {
  name: "cohere2",
  modelTypes: ["cohere2"],
  parse: (c) => {
    const pattern = c.integer("sliding_window_pattern", LIMITS.layers, 4);
    return llamaShape(c, "cohere2", {
      norm: { kind: "layer", epsilon: normEpsilon(c, "layer_norm_eps", 1e-5) },
      tied: true,
      maxPositions: 8192,
      interleaved: true,
      logitScale: factor(c, "logit_scale", 0.0625),
      biases: c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : [],
      layers: windowed(layerKinds(c, everyFull(pattern)), window(c, 4096)).map((layer) =>
        layer.window === undefined ? { positions: null } : layer,
      ),
    });
  },
  lower: (config, layer) =>
    parallelBlock(config, layer, { ...LLAMA_PATHS, norms: { input: "input_layernorm" } }),
  names: LLAMA_NAMES,
};
