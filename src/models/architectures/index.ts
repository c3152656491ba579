/** The architecture table. Adding one touches this folder and nothing else (docs/contributing/architectures.md). */
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ModelConfig } from "../config.js";
import type { BlockProgram } from "../program.js";
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

const PROGRAMS = new WeakMap<ModelConfig, Map<number, BlockProgram>>();

/**
 * The program of a model's block, lowered once.
 * @throws PlanishError when the configuration names no architecture of the table.
 */
export function blockProgram(config: ModelConfig, layer: number): BlockProgram {
  const architecture = ARCHITECTURES.find(({ name }) => name === config.architecture);
  if (!architecture)
    throw new PlanishError(
      `no architecture is called ${JSON.stringify(config.architecture)}; known: ${ARCHITECTURES.map(({ name }) => name).join(", ")}`,
    );
  const known = PROGRAMS.get(config) ?? new Map<number, BlockProgram>();
  PROGRAMS.set(config, known);
  const program = known.get(layer) ?? architecture.lower(config, layer);
  known.set(layer, program);
  return program;
}

/** The programs of all of a model's blocks in order. */
export function blockPrograms(config: ModelConfig): readonly BlockProgram[] {
  return Array.from({ length: config.numLayers }, (_, layer) => blockProgram(config, layer));
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
