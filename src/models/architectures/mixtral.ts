/** Mixtral: Mistral with experts in every layer, of which the two best share the weight (arXiv 2401.04088). */
import type { Architecture } from "../config.js";
import { LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { expertCounts, expertsBlock } from "./experts.js";
import { llamaShape, window } from "./shape.js";

const PATHS = {
  ...LLAMA_PATHS,
  experts: {
    router: "block_sparse_moe.gate.weight",
    expert: (e: number) => ({
      gate: `block_sparse_moe.experts.${e}.w1`,
      up: `block_sparse_moe.experts.${e}.w3`,
      down: `block_sparse_moe.experts.${e}.w2`,
    }),
  },
};

export const mixtral: Architecture = {
  name: "mixtral",
  modelTypes: ["mixtral"],
  parse: (c) => {
    const config = llamaShape(c, "mixtral", {
      slidingWindow: window(c),
      biases: [],
      epsilon: 1e-5,
      kvHeads: 8,
      maxPositions: 131_072,
      rope: { theta: 1e6 },
    });
    return {
      ...config,
      experts: {
        ...expertCounts(c, ["num_local_experts", "num_experts"], { experts: 8, chosen: 2 }),
        width: config.intermediateSize,
        scores: "softmax",
        normalize: true,
        factor: 1,
      },
    };
  },
  lower: (config, layer) => expertsBlock(config, layer, PATHS),
  names: LLAMA_NAMES,
};
