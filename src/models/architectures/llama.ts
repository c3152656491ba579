/** LLaMA 2/3/3.x and the models that share its shape (SmolLM2, TinyLlama, …). */
import type { Architecture } from "../config.js";
import { LLAMA_NAMES, llamaShape } from "./common.js";

export const llama: Architecture = {
  name: "llama",
  modelTypes: ["llama"],
  parse: (c) => llamaShape(c, "llama"),
  names: LLAMA_NAMES,
};
