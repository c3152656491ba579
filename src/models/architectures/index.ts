/** The architecture table. Adding one touches this folder and nothing else (docs/contributing/architectures.md). */
import { refuseQuantizedConfig } from "../../checkpoint/quantized-source.js";
import { countIn, LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ModelConfig } from "../config.js";
import type { BlockProgram } from "../../backend/contract/program.js";
import { refuseUnreadKeys } from "./keys.js";
import { configReader } from "./reader.js";
import { bloom } from "./bloom.js";
import { cohere2 } from "./cohere2.js";
import { exaone4 } from "./exaone4.js";
import { gemma2, gemma3 } from "./gemma.js";
import { glm4 } from "./glm4.js";
import { gemma4 } from "./gemma4.js";
import { gpt2 } from "./gpt2.js";
import { granite } from "./granite.js";
import { llama } from "./llama.js";
import { llama4 } from "./llama4.js";
import { ministral, ministral3, mistral } from "./mistral.js";
import { olmo2, olmo3 } from "./olmo.js";
import { deepseekV3 } from "./deepseek.js";
import { gptOss } from "./gpt-oss.js";
import { mixtral } from "./mixtral.js";
import { opt } from "./opt.js";
import { phi3 } from "./phi3.js";
import { qwen2, qwen3 } from "./qwen.js";
import { qwen2Moe, qwen3Moe } from "./qwen-moe.js";
import { qwen35, qwen35Inner, qwen35Moe, qwen35MoeInner, qwen3Next } from "./qwen-next.js";
import { falconH1 } from "./falcon-h1.js";
import { graniteHybrid } from "./granite-hybrid.js";
import { lfm2, lfm2Moe } from "./lfm2.js";
import { nemotronH } from "./nemotron-h.js";
import { smollm3 } from "./smollm3.js";
import { stablelm } from "./stablelm.js";
import { starcoder2 } from "./starcoder2.js";

export const ARCHITECTURES: readonly Architecture[] = [
  ...[llama, mistral, ministral, ministral3, qwen2, qwen3, gemma2, gemma3, phi3],
  ...[olmo2, olmo3, granite, smollm3, exaone4, glm4, stablelm, starcoder2, cohere2, opt],
  ...[mixtral, qwen2Moe, qwen3Moe, gptOss, deepseekV3, llama4, gpt2, bloom, gemma4],
  ...[qwen3Next, qwen35, qwen35Inner, qwen35Moe, qwen35MoeInner],
  ...[lfm2, lfm2Moe, graniteHybrid, falconH1, nemotronH],
];

/**
 * Finds the architecture of a `config.json` and reads its sizes.
 * @throws PlanishError naming the model type and the accepted ones, or the key that is missing or wrong.
 */
export function parseModelConfig(config: Readonly<Record<string, unknown>>): {
  architecture: Architecture;
  config: ModelConfig;
} {
  const type = config.model_type;
  const architecture = ARCHITECTURES.find(
    (a) => typeof type === "string" && a.modelTypes.includes(type),
  );
  if (!architecture) {
    const accepted = ARCHITECTURES.flatMap((a) => a.modelTypes);
    const near = typeof type === "string" ? nearest(type, accepted) : undefined;
    const nearby = near === undefined ? "" : `the nearest that is read is ${near}; `;
    throw new PlanishError(
      `architecture ${shown(type ?? null)} is not supported; ${nearby}docs/models.md lists the ${accepted.length} values of model_type that are accepted, such as llama, qwen3 and gemma3_text`,
    );
  }
  refuseQuantizedConfig(config, "config.json");
  refuseOtherHead(config, architecture);
  const { reader, read } = configReader(config);
  const parsed = architecture.parse(reader);
  checkSizes(parsed);
  refuseUnreadKeys(config, read, parsed);
  return { architecture, config: parsed };
}

/** The accepted type with the longest common beginning, of those that share at least three letters. */
function nearest(type: string, accepted: readonly string[]): string | undefined {
  const common = (other: string): number => {
    let length = 0;
    while (length < type.length && type[length] === other[length]) length++;
    return length;
  };
  const best = accepted.reduce((a, b) => (common(b) > common(a) ? b : a));
  return common(best) >= 3 ? best : undefined;
}

/**
 * The class says which head stands on the blocks; without one of its own a language model's is meant.
 * @throws PlanishError for classifiers, reward models, encoders and whatever else is no causal language model.
 */
function refuseOtherHead(
  config: Readonly<Record<string, unknown>>,
  { name, modelTypes, classes: own = [] }: Architecture,
): void {
  const classes = config.architectures;
  if (classes === undefined || classes === null) return;
  const accepted = [
    ...modelTypes.map((type) => `${type.replace(/_text$/, "").replaceAll("_", "")}forcausallm`),
    ...own.map((each) => each.toLowerCase()),
  ];
  if (
    Array.isArray(classes) &&
    classes.every(
      (item) =>
        typeof item === "string" && accepted.includes(item.toLowerCase().replaceAll("_", "")),
    )
  )
    return;
  throw new PlanishError(
    `config.json: architectures is ${shown(classes)}; of model_type ${name} only its causal language model (…ForCausalLM) is supported: other classes have another head, or none`,
  );
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
  const { numLayers, experts } = c;
  if (experts)
    countIn(numLayers * experts.count, "config.json: experts of all layers", LIMITS.allExperts);
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
      throw new PlanishError(
        `config.json: ${key} comes out as ${value}; it must be a positive whole number`,
      );
  if (c.numHeads % c.numKvHeads !== 0)
    throw new PlanishError(
      `config.json: ${c.numHeads} attention heads cannot share ${c.numKvHeads} KV heads evenly`,
    );
  if (c.positions.kind === "rope" && c.headDim % 2 !== 0)
    throw new PlanishError(
      `config.json: head_dim ${c.headDim} is odd; rotary embedding needs pairs`,
    );
}
