/** Qwen2/2.5 (biases on q, k, v) and Qwen3 (norms on queries and keys, head size of its own). */
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, llamaShape } from "./common.js";

function refuseMixedWindows(c: ConfigReader): void {
  if (c.boolean("use_sliding_window", false))
    throw new PlanishError("Qwen models with use_sliding_window=true are not supported: only some of their layers have a window");
}

export const qwen2: Architecture = {
  name: "qwen2",
  modelTypes: ["qwen2"],
  parse: (c) => {
    refuseMixedWindows(c);
    return llamaShape(c, "qwen2");
  },
  lower: (config) => decoderBlock(config, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

export const qwen3: Architecture = {
  name: "qwen3",
  modelTypes: ["qwen3"],
  parse: (c) => {
    refuseMixedWindows(c);
    return llamaShape(c, "qwen3", { qkNorm: true });
  },
  lower: (config) =>
    decoderBlock(config, {
      ...LLAMA_PATHS,
      attention: { ...LLAMA_PATHS.attention, qNorm: "self_attn.q_norm", kNorm: "self_attn.k_norm" },
    }),
  names: LLAMA_NAMES,
};
