/** Qwen2/2.5 (biases on q, k, v) and Qwen3 (norms on queries and keys, head size of its own). */
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader, LayerConfig } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import { layerKinds, llamaBiases, llamaShape, window, windowed } from "./shape.js";

/** The window is one of the layers from `max_window_layers` on unless `layer_types` says which, where it is used at all. */
export function qwenLayers(c: ConfigReader): LayerConfig[] | undefined {
  const used = c.boolean("use_sliding_window", false);
  // Published files give a window that is not used, and 0 for none.
  const width = used ? window(c, 4096) : undefined;
  if (!used) c.optional("sliding_window");
  const full = c.integer("max_window_layers", LIMITS.positions, 28, 0);
  if (!used) return undefined;
  return windowed(
    layerKinds(c, (layer) =>
      width !== undefined && layer >= full ? "sliding_attention" : "full_attention",
    ),
    width,
  );
}

export const qwen2: Architecture = {
  name: "qwen2",
  modelTypes: ["qwen2"],
  parse: (c) => {
    // Its biases are part of the architecture: the key, where somebody wrote it, can only say so.
    if (!c.boolean("attention_bias", true))
      throw new PlanishError(
        "config.json: attention_bias is false, but Qwen2 has biases on q, k and v; only true is accepted",
      );
    return llamaShape(c, "qwen2", { layers: qwenLayers(c), biases: ["q", "k", "v"] });
  },
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

export const qwen3: Architecture = {
  name: "qwen3",
  modelTypes: ["qwen3"],
  parse: (c) =>
    llamaShape(c, "qwen3", { qkNorm: true, layers: qwenLayers(c), biases: llamaBiases(c) }),
  lower: (config, layer) =>
    decoderBlock(config, layer, { ...LLAMA_PATHS, attention: NORMED_ATTENTION }),
  names: LLAMA_NAMES,
};
