/** Mistral: LLaMA's shape with an optional sliding window. */
import { LIMITS } from "../../common/bounds.js";
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, llamaShape } from "./common.js";

export const mistral: Architecture = {
  name: "mistral",
  modelTypes: ["mistral"],
  parse: (c) => {
    const window = c.optional("sliding_window");
    return llamaShape(c, "mistral", {
      slidingWindow: (window ?? undefined) === undefined ? undefined : c.integer("sliding_window", LIMITS.positions),
      biases: [],
    });
  },
  lower: (config) => decoderBlock(config, LLAMA_PATHS),
  names: LLAMA_NAMES,
};
