/**
 * gpt-oss: experts in every layer with clamped gates, stored as stacks; heads with sinks; biases everywhere; a window in
 * every second layer (OpenAI, arXiv 2508.10925).
 */
import { LIMITS } from "../../common/bounds.js";
import type { Architecture, ModelConfig, RopePositions } from "../config.js";
import type { BlockProgram, StoredRows } from "../../backend/contract/program.js";
import { LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { expertCounts, expertsBlock, type GatedPaths } from "./experts.js";
import { factor, layerKinds, llamaShape, window, windowed } from "./shape.js";

/** Where the configuration says nothing of positions. */
const POSITIONS: RopePositions = {
  kind: "rope",
  theta: 150_000,
  scaling: {
    type: "yarn",
    factor: 32,
    originalMaxPositions: 4096,
    betaFast: 32,
    betaSlow: 1,
    truncate: false,
    attentionFactor: 0.1 * Math.log(32) + 1,
  },
};

/** Of an expert's gate and up, which alternate in one matrix, or of its down; all are stored as [in, out]. */
function stored(config: ModelConfig, expert: number, part: keyof GatedPaths): StoredRows {
  const count = config.experts?.count ?? 0;
  const name = `mlp.experts.${part === "down" ? "down" : "gate_up"}_proj`;
  const rows = part === "down" ? config.hiddenSize : 2 * config.intermediateSize;
  const stack = { index: expert, count, weight: name, bias: `${name}_bias` };
  const parts = [{ path: name, rows, transposed: true, stack }];
  if (part === "down") return { parts };
  const first = part === "gate" ? 0 : 1;
  return {
    parts,
    order: Array.from({ length: config.intermediateSize }, (_, i) => 2 * i + first),
  };
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const experts = {
    router: "mlp.router.weight",
    routerBias: "mlp.router.bias",
    expert: (e: number) => ({
      gate: `mlp.experts.${e}.gate_proj`,
      up: `mlp.experts.${e}.up_proj`,
      down: `mlp.experts.${e}.down_proj`,
    }),
    stored: config.singleExperts
      ? undefined
      : (e: number, part: keyof GatedPaths) => stored(config, e, part),
  };
  return expertsBlock(config, layer, { ...LLAMA_PATHS, experts }, { sinks: "self_attn.sinks" });
}

export const gptOss: Architecture = {
  name: "gpt_oss",
  modelTypes: ["gpt_oss"],
  parse: (c) => {
    const counts = expertCounts(c, ["num_local_experts", "num_experts"], {
      experts: 128,
      chosen: 4,
    });
    const attention = c.boolean("attention_bias", true) ? ["q", "k", "v", "o"] : [];
    const experts = Array.from({ length: counts.count }, (_, e) =>
      ["gate", "up", "down"].map((part) => `experts.${e}.${part}`),
    );
    const silent = ["rope_parameters", "rope_scaling"].every(
      (key) => (c.optional(key) ?? undefined) === undefined,
    );
    const base = llamaShape(c, "gpt_oss", {
      layers: windowed(
        layerKinds(c, (layer) => (layer % 2 === 0 ? "sliding_attention" : "full_attention")),
        window(c, 128),
      ),
      biases: [...attention, ...experts.flat()],
      headDim: 64,
      kvHeads: 8,
      epsilon: 1e-5,
      maxPositions: 131_072,
      rope: { theta: 150_000 },
      positions: silent
        ? { ...POSITIONS, theta: factor(c, "rope_theta", POSITIONS.theta) }
        : undefined,
    });
    return {
      ...base,
      // GGUF has each expert's matrices by themselves.
      singleExperts: c.optional("experts_stored") === "single",
      mlp: {
        ...base.mlp,
        clamp: {
          alpha: factor(c, "swiglu_alpha", 1.702),
          limit: factor(c, "swiglu_limit", 7),
        },
      },
      experts: {
        ...counts,
        width: c.integer("intermediate_size", LIMITS.width),
        scores: "softmax",
        normalize: true,
        factor: 1,
      },
    };
  },
  lower,
  names: LLAMA_NAMES,
};
