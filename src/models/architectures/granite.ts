/** Granite 3: LLaMA with multipliers of embeddings, scores, residual sums and logits (IBM, 2024). */
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { factor, llamaBiases, llamaShape } from "./shape.js";

export const granite: Architecture = {
  name: "granite",
  modelTypes: ["granite"],
  parse: (c) =>
    llamaShape(c, "granite", {
      biases: llamaBiases(c),
      embeddingScale: factor(c, "embedding_multiplier", 1),
      attention: { scale: factor(c, "attention_multiplier", 1) },
      residualScale: factor(c, "residual_multiplier", 1),
      logitScale: 1 / factor(c, "logits_scaling", 1),
    }),
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};
