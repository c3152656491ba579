/** StarCoder2: layer norms, an MLP without a gate, biases everywhere, a window in all layers (arXiv 2402.19173). */
import type { Architecture } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { llamaShape, normEpsilon, window } from "./shape.js";

export const starcoder2: Architecture = {
  name: "starcoder2",
  modelTypes: ["starcoder2"],
  parse: (c) =>
    llamaShape(c, "starcoder2", {
      norm: { kind: "layer", epsilon: normEpsilon(c, "norm_epsilon", 1e-5) },
      tied: true,
      kvHeads: 2,
      maxPositions: 4096,
      slidingWindow: window(c),
      activation: { key: "hidden_act", fallback: "gelu_pytorch_tanh" },
      gated: false,
      biases: c.boolean("use_bias", true) ? ["q", "k", "v", "o", "up", "down"] : [],
    }),
  lower: (config, layer) =>
    decoderBlock(config, layer, { ...LLAMA_PATHS, mlp: { up: "mlp.c_fc", down: "mlp.c_proj" } }),
  names: LLAMA_NAMES,
};
