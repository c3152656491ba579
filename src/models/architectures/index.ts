/** The architecture table. Adding one touches this folder and nothing else (docs/contributing/architectures.md). */
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ModelConfig } from "../config.js";
import { configReader } from "./common.js";
import { llama } from "./llama.js";
import { mistral } from "./mistral.js";
import { opt } from "./opt.js";
import { qwen2, qwen3 } from "./qwen.js";

export const ARCHITECTURES: readonly Architecture[] = [llama, mistral, qwen2, qwen3, opt];

/**
 * Finds the architecture of a `config.json` and reads its sizes.
 * @throws PlanishError naming the model type and the accepted ones, or the key that is missing or wrong.
 */
export function parseModelConfig(config: Readonly<Record<string, unknown>>): {
  architecture: Architecture;
  config: ModelConfig;
} {
  const type = config.model_type;
  const architecture = ARCHITECTURES.find((a) => typeof type === "string" && a.modelTypes.includes(type));
  if (!architecture) {
    const accepted = ARCHITECTURES.flatMap((a) => a.modelTypes).join(", ");
    throw new PlanishError(`architecture ${JSON.stringify(type ?? null)} is not supported; accepted model_type: ${accepted}`);
  }
  const parsed = architecture.parse(configReader(config));
  checkSizes(parsed);
  return { architecture, config: parsed };
}

function checkSizes(c: ModelConfig): void {
  const sizes = {
    hidden_size: c.hiddenSize,
    word_embed_proj_dim: c.embeddingSize ?? c.hiddenSize,
    intermediate_size: c.intermediateSize,
    num_hidden_layers: c.numLayers,
    num_attention_heads: c.numHeads,
    num_key_value_heads: c.numKvHeads,
    head_dim: c.headDim,
    vocab_size: c.vocabSize,
    max_position_embeddings: c.maxPositions,
  };
  for (const [key, value] of Object.entries(sizes))
    if (!Number.isInteger(value) || value < 1)
      throw new PlanishError(`config.json: ${key} comes out as ${value}; it must be a positive whole number`);
  if (c.numHeads % c.numKvHeads !== 0)
    throw new PlanishError(`config.json: ${c.numHeads} attention heads cannot share ${c.numKvHeads} KV heads evenly`);
  if (c.positions.kind === "rope" && c.headDim % 2 !== 0)
    throw new PlanishError(`config.json: head_dim ${c.headDim} is odd; rotary embedding needs pairs`);
}
