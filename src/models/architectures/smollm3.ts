/** SmolLM3: LLaMA whose every fourth layer has no positions (Hugging Face, 2025). */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { layerKinds, llamaBiases, llamaShape, window, windowed } from "./shape.js";

/** Of each layer whether it has rotary positions: `no_rope_layers` has 1 for those. */
export function ropeLayers(c: ConfigReader): readonly boolean[] {
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const interval = c.integer("no_rope_layer_interval", LIMITS.layers, 4);
  const flags =
    c.optional("no_rope_layers") ??
    Array.from({ length: layers }, (_, i) => Number((i + 1) % interval !== 0));
  if (
    !Array.isArray(flags) ||
    flags.length !== layers ||
    flags.some((flag) => flag !== 0 && flag !== 1)
  )
    throw new PlanishError(
      `config.json: no_rope_layers must be 0 or 1 for each of ${layers} layers, found ${shown(flags)}`,
    );
  return flags.map((flag) => flag === 1);
}

export const smollm3: Architecture = {
  name: "smollm3",
  modelTypes: ["smollm3"],
  parse: (c) => {
    const rope = ropeLayers(c);
    const width = window(c);
    const used = c.boolean("use_sliding_window", false) && width !== undefined;
    const kinds = layerKinds(c, (layer) =>
      used && !rope[layer] ? "sliding_attention" : "full_attention",
    );
    return llamaShape(c, "smollm3", {
      tied: true,
      kvHeads: 4,
      maxPositions: 32768,
      rope: { theta: 2e6 },
      biases: llamaBiases(c),
      layers: windowed(kinds, width).map((layer, i) =>
        rope[i] ? layer : { ...layer, positions: null },
      ),
    });
  },
  lower: (config, layer) => decoderBlock(config, layer, LLAMA_PATHS),
  names: LLAMA_NAMES,
};
