/** Phi-3, 3.5 and 4-mini: LLaMA with one tensor of q, k, v and one of gate and up; long contexts by longrope. */
import { LIMITS } from "../../common/bounds.js";
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { llamaShape, window } from "./shape.js";

const PATHS = { ...LLAMA_PATHS, mlp: { ...LLAMA_PATHS.mlp, fused: "mlp.gate_up_proj" } } as const;

export const phi3: Architecture = {
  name: "phi3",
  modelTypes: ["phi3"],
  parse: (c) => {
    c.integer("original_max_position_embeddings", LIMITS.positions, 4096);
    return llamaShape(c, "phi3", {
      slidingWindow: window(c),
      maxPositions: 4096,
      epsilon: 1e-5,
      rotaryShare: 1,
      biases: [],
    });
  },
  lower: (config, layer) => decoderBlock(config, layer, PATHS, { fused: "self_attn.qkv_proj" }),
  names: LLAMA_NAMES,
};
