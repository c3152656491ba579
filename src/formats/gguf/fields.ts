/**
 * A model's configuration as GGUF metadata. What is written is read back by our own reader and must give the same
 * configuration: whatever GGUF has no key for is refused by name, and no list of such things has to be kept.
 */
import { isDeepStrictEqual } from "node:util";
import { rotaryFrequencies } from "../../backend/contract/rotary.js";
import { ggufArchitecture, rebuildConfig } from "../../checkpoint/gguf-config.js";
import { GgufMetadata } from "../../checkpoint/gguf-metadata.js";
import { plainValues, type GgufField } from "../../checkpoint/gguf-writer.js";
import { shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { parseModelConfig } from "../../models/architectures/index.js";
import type { ModelConfig } from "../../models/config.js";

/** GGUF's names of architectures by ours; llama.cpp computes Mistral as "llama". */
const NAMES: Readonly<Record<string, string>> = {
  llama: "llama",
  mistral: "llama",
  qwen2: "qwen2",
  qwen3: "qwen3",
  gemma2: "gemma2",
  gemma3: "gemma3",
};

export type Fields = Map<string, GgufField>;

/** What llama.cpp calls the architecture. @throws PlanishError naming those that are written. */
export function ggufArchitectureName({ architecture }: ModelConfig, path: string): string {
  if (!Object.hasOwn(NAMES, architecture))
    throw new PlanishError(
      `${path}: architecture ${architecture} is not written as GGUF; accepted: ${Object.keys(NAMES).join(", ")}`,
    );
  return NAMES[architecture];
}

/**
 * Divisors of the rotary frequencies, for scalings that GGUF has no key for and llama.cpp takes from `rope_freqs.weight`;
 * undefined where there are none.
 */
export function ropeFactors(config: ModelConfig): Float32Array | undefined {
  const { positions, headDim } = config;
  if (positions.kind !== "rope") return undefined;
  const { kind: _, ...rotary } = positions;
  if (rotary.scaling.type !== "llama3" && rotary.frequencyType === undefined) return undefined;
  const plain = { dims: headDim, theta: rotary.theta, scaling: { type: "default" } } as const;
  const wanted = rotaryFrequencies({ ...rotary, dims: headDim }, config.maxPositions);
  const exact = rotaryFrequencies(plain, config.maxPositions);
  return Float32Array.from(wanted, (frequency, i) => exact[i] / frequency);
}

/** Metadata of the model itself. @throws PlanishError for settings that GGUF cannot say. */
export function modelFields(
  config: ModelConfig,
  path: string,
  tensors: { readonly hasOutput: boolean; readonly hasAttentionBias: boolean },
): Fields {
  const name = ggufArchitectureName(config, path);
  const { positions } = config;
  const fields: Fields = new Map();
  const key = (suffix: string): string => `${name}.${suffix}`;
  const u32 = (suffix: string, value: number) => fields.set(key(suffix), { type: "u32", value });
  const f32 = (suffix: string, value: number) => fields.set(key(suffix), { type: "f32", value });
  fields.set("general.architecture", { type: "string", value: name });
  fields.set("general.type", { type: "string", value: "model" });
  u32("block_count", config.numLayers);
  u32("context_length", config.maxPositions);
  u32("embedding_length", config.hiddenSize);
  u32("feed_forward_length", config.intermediateSize);
  u32("attention.head_count", config.numHeads);
  u32("attention.head_count_kv", config.numKvHeads);
  u32("attention.key_length", config.headDim);
  u32("attention.value_length", config.headDim);
  f32("attention.layer_norm_rms_epsilon", config.norm.epsilon);
  u32("vocab_size", config.vocabSize);
  if (positions.kind === "rope") {
    const { theta, scaling } = positions;
    u32("rope.dimension_count", config.headDim);
    f32("rope.freq_base", theta);
    if (scaling.type === "linear" || scaling.type === "yarn") {
      fields.set(key("rope.scaling.type"), { type: "string", value: scaling.type });
      f32("rope.scaling.factor", scaling.factor);
    }
    if (scaling.type === "yarn")
      u32("rope.scaling.original_context_length", scaling.originalMaxPositions);
  }
  const window = config.layers?.find((layer) => layer.window !== undefined)?.window;
  if (window !== undefined) u32("attention.sliding_window", window);
  const { softcap } = config.attention ?? {};
  if (softcap !== undefined) f32("attn_logit_softcapping", softcap);
  if (config.logitSoftcap !== undefined) f32("final_logit_softcapping", config.logitSoftcap);
  refuseOther(config, path, fields, tensors);
  return fields;
}

/** Fields of the configuration that say the same in GGUF otherwise: its tensors tell of biases, and Mistral is Llama. */
const TOLD_OTHERWISE: readonly string[] = ["architecture", "biases"];

function refuseOther(
  config: ModelConfig,
  path: string,
  fields: Fields,
  { hasOutput, hasAttentionBias }: { hasOutput: boolean; hasAttentionBias: boolean },
): void {
  const metadata = new GgufMetadata(plainValues(fields), path);
  ggufArchitecture(metadata);
  const rebuilt = rebuildConfig(metadata, {
    vocabSize: config.vocabSize,
    hasOutput,
    hasAttentionBias,
    ropeFactors: ropeFactors(config),
    has: () => false,
  });
  const read: object = parseModelConfig(rebuilt).config;
  const names = new Set([...Object.keys(config), ...Object.keys(read)]);
  for (const name of names) {
    if (TOLD_OTHERWISE.includes(name)) continue;
    const [own, theirs] = [config, read].map(
      (of) =>
        JSON.parse(JSON.stringify({ is: (of as Record<string, unknown>)[name] })) as {
          readonly is?: unknown;
        },
    );
    if (!isDeepStrictEqual(own, theirs))
      throw new PlanishError(
        `${path}: GGUF cannot say what this model's ${name} is: ${shown(own.is)} would be read back as ${shown(theirs.is)}`,
      );
  }
}
