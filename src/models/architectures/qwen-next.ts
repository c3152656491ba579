/**
 * Qwen3-Next and Qwen3.5 (text): gated delta nets in most layers, in the others attention whose output a gate of q's tensor
 * weighs; partial rotary positions, gains stored as differences from 1. Dense, or experts beside a shared one.
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type {
  Architecture,
  ConfigReader,
  ExpertsConfig,
  LayerConfig,
  ModelConfig,
} from "../config.js";
import type { DeltaConfig } from "../recurrent-config.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import { attentionPart, blockNorms, LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import { deltaNet, type DeltaStorage } from "./delta-net.js";
import { expertCounts, feedForward } from "./experts.js";
import { checkShared, layerMixers, requireValue } from "./hybrid.js";
import { refuseUnreadKeys } from "./keys.js";
import { denseLayers, QWEN_EXPERTS } from "./qwen-moe.js";
import { activation, configReader } from "./reader.js";
import { boundHeads, llamaShape } from "./shape.js";

const NAMES = { ...LLAMA_NAMES, unused: /^mtp\./ };
/** The language model inside one that sees pictures, whose part for that is not read. */
const INNER_NAMES = {
  embedding: "model.language_model.embed_tokens.weight",
  finalNorm: "model.language_model.norm.weight",
  lmHead: "lm_head.weight",
  blockPrefix: (layer: number) => `model.language_model.layers.${layer}.`,
  unused: /^(?:mtp|model\.visual)\./,
};

function layers(c: ConfigReader): LayerConfig[] {
  const interval = c.integer("full_attention_interval", LIMITS.layers, 4);
  const words = { linear_attention: "recurrent", full_attention: "attention" } as const;
  return layerMixers(c, words, (layer) =>
    (layer + 1) % interval === 0 ? "attention" : "recurrent",
  ).map((mixer) => ({ mixer }));
}

function delta(c: ConfigReader): DeltaConfig {
  const [keyHeads, valueHeads] = [
    c.integer("linear_num_key_heads", LIMITS.heads, 16),
    c.integer("linear_num_value_heads", LIMITS.heads, 32),
  ];
  checkShared(valueHeads, keyHeads, "linear_num_value_heads");
  const keyDim = c.integer("linear_key_head_dim", LIMITS.width, 128);
  const valueDim = c.integer("linear_value_head_dim", LIMITS.width, 128);
  boundHeads("linear_num_key_heads", keyHeads, keyDim);
  boundHeads("linear_num_value_heads", valueHeads, valueDim);
  return {
    kind: "delta",
    ...{ keyHeads, valueHeads, keyDim, valueDim },
    taps: c.integer("linear_conv_kernel_dim", LIMITS.width, 4),
    activation: activation(c.string("hidden_act", "silu")),
  };
}

function shape(c: ConfigReader, name: string, kvHeads: number, intermediate?: number): ModelConfig {
  requireValue(c, "attn_output_gate", true);
  // States are float32 in any case, and layers that predict further tokens are not read.
  for (const key of ["mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"])
    c.optional(key);
  const attention = c.boolean("attention_bias", false) ? ["q", "k", "v", "o", "attn_gate"] : [];
  return {
    ...llamaShape(c, name, {
      ...{ qkNorm: true, layers: layers(c), kvHeads, intermediate },
      ...{ headDim: 256, maxPositions: 32_768, gainOffset: 1, rotaryShare: 0.25 },
      // Of positions in three dimensions, a text's are all the same.
      rope: { known: ["mrope_section", "mrope_interleaved"] },
      biases: attention,
    }),
    recurrent: delta(c),
  };
}

/** Experts behind a softmax, and one that all rows go through behind a gate. */
function experts(c: ConfigReader, count: number, chosen: number): ExpertsConfig {
  return {
    ...expertCounts(c, ["num_experts", "num_local_experts"], { experts: count, chosen }),
    width: c.integer("moe_intermediate_size", LIMITS.width, 512),
    scores: "softmax",
    normalize: true,
    factor: 1,
    sharedWidth: c.integer("shared_expert_intermediate_size", LIMITS.width, 512),
    sharedGate: true,
  };
}

function lower(config: ModelConfig, layer: number, storage: DeltaStorage): BlockProgram {
  const b = new BlockBuilder();
  const read = blockNorms(b, config)(b.input, "input", LLAMA_PATHS.norms.input);
  const { recurrent } = config;
  const mixed =
    recurrent?.kind === "delta" && config.layers?.[layer].mixer === "recurrent"
      ? deltaNet(b, config, recurrent, read, storage)
      : attentionPart(b, config, layer, read, NORMED_ATTENTION, { gated: true });
  const y = b.add(b.input, mixed);
  return b.finish(feedForward(b, config, layer, y, { ...LLAMA_PATHS, experts: QWEN_EXPERTS }));
}

export const qwen3Next: Architecture = {
  name: "qwen3_next",
  modelTypes: ["qwen3_next"],
  parse: (c) => {
    const config = shape(c, "qwen3_next", 2);
    const normalize = c.boolean("norm_topk_prob", true);
    const dense = denseLayers(c);
    if (c.optional("num_experts") === 0) return config;
    return { ...config, experts: { ...experts(c, 512, 10), normalize, dense } };
  },
  lower: (config, layer) => lower(config, layer, "fused"),
  names: NAMES,
};

/**
 * The same model inside one that sees pictures: everything that is said of it stands in `text_config`, but for tied embeddings,
 * which may stand outside.
 */
function inner(text: Architecture, name: string): Architecture {
  return {
    name,
    modelTypes: [name],
    classes: [`${name.replaceAll("_", "")}ForConditionalGeneration`],
    parse(c) {
      const given = c.optional("text_config");
      c.optional("vision_config");
      if (typeof given !== "object" || given === null || Array.isArray(given))
        throw new PlanishError(
          `config.json: text_config must be an object that describes the language model, found ${shown(given)}`,
        );
      const json = given as Readonly<Record<string, unknown>>;
      const { reader, read } = configReader(json);
      const parsed = text.parse(reader);
      refuseUnreadKeys(json, read, parsed);
      const tiedEmbeddings = c.boolean("tie_word_embeddings", parsed.tiedEmbeddings);
      return { ...parsed, architecture: name, tiedEmbeddings };
    },
    lower: (config, layer) => text.lower(config, layer),
    names: INNER_NAMES,
  };
}

export const qwen35: Architecture = {
  name: "qwen3_5_text",
  modelTypes: ["qwen3_5_text"],
  parse: (c) => shape(c, "qwen3_5_text", 4),
  lower: (config, layer) => lower(config, layer, "separate"),
  names: NAMES,
};

export const qwen35Moe: Architecture = {
  name: "qwen3_5_moe_text",
  modelTypes: ["qwen3_5_moe_text"],
  parse: (c) => {
    // Without layers of another kind, the width of a dense one plays no part.
    const config = shape(c, "qwen3_5_moe_text", 2, 512);
    return { ...config, experts: experts(c, 256, 8) };
  },
  lower: (config, layer) => lower(config, layer, "separate"),
  names: NAMES,
};

export const qwen35Inner = inner(qwen35, "qwen3_5");
export const qwen35MoeInner = inner(qwen35Moe, "qwen3_5_moe");
