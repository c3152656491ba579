/** Mistral: LLaMA's shape with an optional sliding window. Ministral: in some layers; Ministral 3: yarn, growing queries. */
import { PlanishError } from "../../common/errors.js";
import { finiteIn } from "../../common/bounds.js";
import type { Architecture, ModelConfig } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { layerKinds, llamaShape, window, windowed } from "./shape.js";

export const mistral: Architecture = {
  name: "mistral",
  modelTypes: ["mistral"],
  parse: (c) => llamaShape(c, "mistral", { slidingWindow: window(c), biases: [] }),
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

export const ministral: Architecture = {
  name: "ministral",
  modelTypes: ["ministral"],
  parse: (c) => {
    const width = window(c, 4096);
    const kinds = layerKinds(c, () =>
      width === undefined ? "full_attention" : "sliding_attention",
    );
    return llamaShape(c, "ministral", { layers: windowed(kinds, width), kvHeads: 8, biases: [] });
  },
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

export const ministral3: Architecture = {
  name: "ministral3",
  modelTypes: ["ministral3"],
  parse: (c) => {
    const config = llamaShape(c, "ministral3", {
      slidingWindow: window(c),
      biases: [],
      epsilon: 1e-5,
      kvHeads: 8,
      rope: { known: ["llama_4_scaling_beta"], theta: 1e6 },
    });
    return withGrowth(config, c.optional("rope_parameters"));
  },
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};

/** Queries grow with their position, in steps of the original length, by `llama_4_scaling_beta` of the rope's object. */
function withGrowth(config: ModelConfig, rope: unknown): ModelConfig {
  const { positions } = config;
  const beta =
    (rope as { readonly llama_4_scaling_beta?: unknown } | undefined)?.llama_4_scaling_beta ??
    undefined;
  if (beta === undefined || positions.kind !== "rope") return config;
  if (!("originalMaxPositions" in positions.scaling))
    throw new PlanishError(
      "config.json: rope_parameters.llama_4_scaling_beta needs original_max_position_embeddings beside it, and a rope type that has it",
    );
  const growth = {
    beta: finiteIn(beta, "config.json: rope_parameters.llama_4_scaling_beta", { min: 0 }),
    length: positions.scaling.originalMaxPositions,
  };
  return { ...config, positions: { ...positions, growth } };
}
