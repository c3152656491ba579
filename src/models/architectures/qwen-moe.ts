/** Qwen2-MoE (a shared expert behind a gate; biases on q, k, v) and Qwen3-MoE (no shared expert, norms of heads). */
import { LIMITS } from "../../common/bounds.js";
import { shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader, ExpertsConfig } from "../config.js";
import { LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import { expertCounts, expertsBlock } from "./experts.js";
import { qwenLayers } from "./qwen.js";
import { llamaBiases, llamaShape } from "./shape.js";

export const QWEN_EXPERTS = {
  router: "mlp.gate.weight",
  expert: (e: number) => ({
    gate: `mlp.experts.${e}.gate_proj`,
    up: `mlp.experts.${e}.up_proj`,
    down: `mlp.experts.${e}.down_proj`,
  }),
  shared: {
    gate: "mlp.shared_expert.gate_proj",
    up: "mlp.shared_expert.up_proj",
    down: "mlp.shared_expert.down_proj",
  },
  sharedGate: "mlp.shared_expert_gate.weight",
};

/** Layers have experts by `decoder_sparse_step`, unless `mlp_only_layers` lists them. */
export function denseLayers(c: ConfigReader): boolean[] {
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const step = c.integer("decoder_sparse_step", LIMITS.layers, 1);
  const only = c.optional("mlp_only_layers") ?? [];
  if (!Array.isArray(only) || !only.every((layer) => Number.isInteger(layer)))
    throw new PlanishError(
      `config.json: mlp_only_layers must be a list of layers' numbers, found ${shown(only)}`,
    );
  return Array.from(
    { length: layers },
    (_, layer) => only.includes(layer) || (layer + 1) % step !== 0,
  );
}

function experts(
  c: ConfigReader,
  fallback: { readonly experts: number; readonly chosen: number; readonly width: number },
): ExpertsConfig {
  return {
    ...expertCounts(c, ["num_experts", "num_local_experts"], fallback),
    width: c.integer("moe_intermediate_size", LIMITS.width, fallback.width),
    scores: "softmax",
    normalize: c.boolean("norm_topk_prob", false),
    factor: 1,
    dense: denseLayers(c),
  };
}

export const qwen2Moe: Architecture = {
  name: "qwen2_moe",
  modelTypes: ["qwen2_moe"],
  parse: (c) => ({
    ...llamaShape(c, "qwen2_moe", {
      layers: qwenLayers(c),
      biases: c.boolean("qkv_bias", true) ? ["q", "k", "v"] : [],
      kvHeads: 16,
      maxPositions: 32_768,
    }),
    experts: {
      ...experts(c, { experts: 60, chosen: 4, width: 1408 }),
      sharedWidth: c.integer("shared_expert_intermediate_size", LIMITS.width, 5632),
      sharedGate: true,
    },
  }),
  lower: (config, layer) => expertsBlock(config, layer, { ...LLAMA_PATHS, experts: QWEN_EXPERTS }),
  names: LLAMA_NAMES,
};

export const qwen3Moe: Architecture = {
  name: "qwen3_moe",
  modelTypes: ["qwen3_moe"],
  parse: (c) => ({
    ...llamaShape(c, "qwen3_moe", {
      qkNorm: true,
      layers: qwenLayers(c),
      biases: llamaBiases(c),
      kvHeads: 4,
      maxPositions: 32_768,
    }),
    experts: experts(c, { experts: 128, chosen: 8, width: 768 }),
  }),
  lower: (config, layer) =>
    expertsBlock(config, layer, {
      ...LLAMA_PATHS,
      attention: NORMED_ATTENTION,
      experts: QWEN_EXPERTS,
    }),
  names: LLAMA_NAMES,
};
