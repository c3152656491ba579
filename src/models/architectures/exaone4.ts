/**
 * EXAONE 4: norms after attention and MLP only, norms of queries' and keys' heads; where there are windows, layers that see
 * everything have no positions. Source: arXiv 2507.11407.
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader } from "../config.js";
import { decoderBlock, LLAMA_NAMES, LLAMA_PATHS, NORMED_ATTENTION } from "./common.js";
import { layerKinds, llamaShape, window, windowed } from "./shape.js";
import type { LayerKind } from "./rope-config.js";

/** A number n, every n-th layer sees everything; or a text such as "LLLG", repeated. */
function pattern(c: ConfigReader, width: number | undefined): (layer: number) => LayerKind {
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const value = c.optional("sliding_window_pattern") ?? 4;
  const text =
    typeof value === "number"
      ? `${"L".repeat(Math.max(0, Math.min(value, LIMITS.layers) - 1))}G`
      : value;
  if (typeof text !== "string" || !/^[LG]+$/.test(text) || value === 0)
    throw new PlanishError(
      `config.json: sliding_window_pattern must be a number of layers or a text of L and G, found ${shown(value)}`,
    );
  return (layer) =>
    width === undefined ||
    text[layer % text.length] === "G" ||
    (typeof value === "string" && layer === layers - 1)
      ? "full_attention"
      : "sliding_attention";
}

export const exaone4: Architecture = {
  name: "exaone4",
  modelTypes: ["exaone4"],
  parse: (c) => {
    const width = window(c, 4096);
    const kinds = layerKinds(c, pattern(c, width));
    return llamaShape(c, "exaone4", {
      qkNorm: true,
      epsilon: 1e-5,
      biases: [],
      layers: windowed(kinds, width).map((layer) =>
        width !== undefined && layer.window === undefined ? { positions: null } : layer,
      ),
    });
  },
  lower: (config, layer) =>
    decoderBlock(config, layer, {
      norms: { afterAttention: "post_attention_layernorm", afterMlp: "post_feedforward_layernorm" },
      attention: NORMED_ATTENTION,
      mlp: LLAMA_PATHS.mlp,
    }),
  names: LLAMA_NAMES,
};
