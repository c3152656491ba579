/** LLaMA 2/3/3.x and the models that share its shape (SmolLM2, TinyLlama, …). */
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { llamaBiases, llamaShape } from "./shape.js";

export const llama: Architecture = {
  name: "llama",
  modelTypes: ["llama"],
  parse: (c) => llamaShape(c, "llama", { biases: llamaBiases(c) }),
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};
