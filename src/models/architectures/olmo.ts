/**
 * OLMo 2 and 3: norms after attention and MLP only, and of whole queries and keys. OLMo 3 has windows in three of four
 * layers, and scales the rotary positions of the others only. Sources: arXiv 2501.00656, arXiv 2512.13961.
 */
import type { Architecture, ConfigReader } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import { everyFull, layerKinds, llamaShape, window, windowed } from "./shape.js";
import { ropeOfKinds, ropePositions } from "./rope-config.js";

const PATHS = {
  norms: { afterAttention: "post_attention_layernorm", afterMlp: "post_feedforward_layernorm" },
  attention: NORMED_ATTENTION,
  mlp: LLAMA_PATHS.mlp,
} as const;

const lower: Architecture["lower"] = (config, layer) =>
  decoderBlock(config, layer, PATHS, { headNorms: "row" });

const biases = (c: ConfigReader) =>
  c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : [];

export const olmo2: Architecture = {
  name: "olmo2",
  modelTypes: ["olmo2"],
  parse: (c) => llamaShape(c, "olmo2", { qkNorm: true, epsilon: 1e-5, biases: biases(c) }),
  lower,
  names: LLAMA_NAMES,
};

export const olmo3: Architecture = {
  name: "olmo3",
  modelTypes: ["olmo3"],
  parse: (c) => {
    const kinds = layerKinds(c, everyFull(4));
    const widths = windowed(kinds, window(c, 4096));
    const config = llamaShape(c, "olmo3", {
      qkNorm: true,
      epsilon: 1e-5,
      biases: biases(c),
      layers: widths,
      positions: ropeOfKinds(c)?.full_attention,
    });
    const { positions } = config;
    if (positions.kind !== "rope") return config;
    const sliding = ropeOfKinds(c)?.sliding_attention ?? {
      ...ropePositions(c),
      scaling: { type: "default" as const },
    };
    const layers = widths.map((layer, i) =>
      kinds[i] === "full_attention" ? layer : { ...layer, positions: sliding },
    );
    return { ...config, layers };
  },
  lower,
  names: LLAMA_NAMES,
};
