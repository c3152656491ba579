/** Qwen2/2.5 (biases on q, k, v) and Qwen3 (norms on queries and keys, head size of its own). */
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, llamaBiases, llamaShape } from "./common.js";

/** The window is one of the layers from `max_window_layers` on, where it is used at all. */
function refuseMixedWindows(c: ConfigReader): void {
  c.optional("sliding_window");
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const full = c.number("max_window_layers", 0, { min: 0 });
  if (c.boolean("use_sliding_window", false) && full < layers)
    throw new PlanishError("Qwen models with use_sliding_window=true are not supported: only some of their layers have a window");
}

export const qwen2: Architecture = {
  name: "qwen2",
  modelTypes: ["qwen2"],
  parse: (c) => {
    refuseMixedWindows(c);
    // Its biases are part of the architecture: the key, where somebody wrote it, can only say so.
    if (!c.boolean("attention_bias", true))
      throw new PlanishError("config.json: attention_bias is false, but Qwen2 has biases on q, k and v; only true is accepted");
    return llamaShape(c, "qwen2", { biases: ["q", "k", "v"] });
  },
  lower: (config) => decoderBlock(config, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

export const qwen3: Architecture = {
  name: "qwen3",
  modelTypes: ["qwen3"],
  parse: (c) => {
    refuseMixedWindows(c);
    return llamaShape(c, "qwen3", { qkNorm: true, biases: llamaBiases(c) });
  },
  lower: (config) =>
    decoderBlock(config, {
      ...LLAMA_PATHS,
      attention: { ...LLAMA_PATHS.attention, qNorm: "self_attn.q_norm", kNorm: "self_attn.k_norm" },
    }),
  names: LLAMA_NAMES,
};
