/**
 * Granite 4 (IBM, 2025): Mamba-2 in most layers and attention in the others, Granite's multipliers, and experts beside a shared
 * MLP, or that MLP alone.
 */
import { LIMITS } from "../../common/bounds.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, ExpertsConfig, ModelConfig } from "../config.js";
import type { Mixer } from "../recurrent-config.js";
import type { BlockProgram, StoredRows } from "../../backend/contract/program.js";
import { attentionPart, blockNorms, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { expertCounts, feedForward, type GatedPaths } from "./experts.js";
import { layerMixers } from "./hybrid.js";
import { mambaConfig, mambaMixer } from "./mamba.js";
import { factor, llamaShape } from "./shape.js";

const MOE = "block_sparse_moe";
const SHARED = "shared_mlp";

const MIXERS: Readonly<Record<string, Mixer>> = {
  ...{ linear_attention: "recurrent", mamba: "recurrent" },
  ...{ full_attention: "attention", attention: "attention" },
};

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

/** Rows of a tensor of gate and up, or of the other one. */
function halves(
  part: keyof GatedPaths,
  width: number,
  hidden: number,
  place: (name: string) => Pick<StoredRows["parts"][number], "path" | "stack">,
): StoredRows {
  if (part === "down") return { parts: [{ ...place("output_linear"), rows: hidden }] };
  const order = range(part === "gate" ? 0 : width, width);
  return { parts: [{ ...place("input_linear"), rows: 2 * width }], order };
}

function experts(c: ConfigReader): ExpertsConfig | undefined {
  if (c.optional("num_local_experts") === 0) {
    c.optional("num_experts_per_tok");
    return undefined;
  }
  return {
    ...expertCounts(c, ["num_local_experts", "num_experts"], { experts: 8, chosen: 2 }),
    width: c.integer("intermediate_size", LIMITS.width),
    // Softmax of the chosen logits is that of all, divided by the chosen ones' sum.
    scores: "softmax",
    normalize: true,
    factor: 1,
    sharedWidth: c.integer("shared_intermediate_size", LIMITS.width, 1024),
  };
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const { recurrent, experts: mixture, hiddenSize } = config;
  const read = blockNorms(b, config)(b.input, "input", LLAMA_PATHS.norms.input);
  const mixed =
    recurrent?.kind === "mamba" && config.layers?.[layer].mixer === "recurrent"
      ? mambaMixer(b, config, recurrent, read)
      : attentionPart(b, config, layer, read, LLAMA_PATHS.attention);
  const paths = (prefix: string): GatedPaths => ({
    gate: `${prefix}.gate_linear`,
    up: `${prefix}.up_linear`,
    down: `${prefix}.output_linear`,
  });
  return b.finish(
    feedForward(b, config, layer, b.add(b.input, mixed), {
      norms: LLAMA_PATHS.norms,
      mlp: { ...paths(SHARED), fused: `${SHARED}.input_linear` },
      experts: {
        router: `${MOE}.router.layer.weight`,
        expert: (e) => paths(`${MOE}.${e}`),
        stored: (index, part) =>
          halves(part, mixture?.width ?? 0, hiddenSize, (name) => ({
            path: `${MOE}.${name}`,
            stack: {
              ...{ index, count: mixture?.count ?? 0 },
              weight: `${MOE}.${name}.weight`,
              bias: `${MOE}.${name}.bias`,
            },
          })),
        shared: paths(SHARED),
        sharedStored: (part) =>
          halves(part, mixture?.sharedWidth ?? 0, hiddenSize, (name) => ({
            path: `${SHARED}.${name}`,
          })),
      },
    }),
  );
}

export const graniteHybrid: Architecture = {
  name: "granitemoehybrid",
  modelTypes: ["granitemoehybrid"],
  parse: (c) => {
    const hidden = c.integer("hidden_size", LIMITS.width);
    const mixers = layerMixers(c, MIXERS, () => "recurrent", ["layer_types", "layers_block_type"]);
    // Positions are the exception here: other words, or none, mean that there are none.
    const positions = c.optional("position_embedding_type") === "rope" ? undefined : null;
    const mixture = experts(c);
    const projections = c.boolean("mamba_proj_bias", false) ? ["z", "xbc", "step", "out"] : [];
    const config = llamaShape(c, "granitemoehybrid", {
      layers: mixers.map((mixer) => ({ mixer, positions })),
      biases: [...(c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : []), ...projections],
      embeddingScale: factor(c, "embedding_multiplier", 1),
      attention: { scale: factor(c, "attention_multiplier", 1) },
      residualScale: factor(c, "residual_multiplier", 1),
      logitScale: 1 / factor(c, "logits_scaling", 1),
    });
    const inner = c.integer("mamba_expand", LIMITS.width, 2) * hidden;
    return {
      ...config,
      // Without experts the shared MLP is the only one.
      intermediateSize: mixture
        ? config.intermediateSize
        : c.integer("shared_intermediate_size", LIMITS.width, 1024),
      recurrent: mambaConfig(c, inner, { heads: 128, groups: 1, state: 256 }),
      experts: mixture,
    };
  },
  lower,
  names: LLAMA_NAMES,
};
