/** config.json: parsed for its architecture, lowered to block programs. */
import { readFileSync } from "node:fs";
import { isJsonObject } from "../../../src/checkpoint/file-reader.js";
import { LIMITS, parseJson } from "../../../src/common/bounds.js";
import { PlanishError } from "../../../src/common/errors.js";
import { blockProgram, parseModelConfig } from "../../../src/models/architectures/index.js";
import { expectedNames } from "../../../src/models/source.js";
import { ensure, ensureFinite, type Target } from "../target.js";
import { decode, encode, JsonBase, pick } from "../mutate.js";

const root = new URL("../../../", import.meta.url);

function json(path: string): unknown {
  return JSON.parse(readFileSync(new URL(path, root), "utf8"));
}

const KEYS = [
  "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers",
  "layer_types", "head_dim", "num_key_value_heads", "quantization_config", "partial_rotary_factor", "attention_bias",
  "mlp_bias", "original_max_position_embeddings", "do_layer_norm_before", "word_embed_proj_dim", "logit_scale",
]; // prettier-ignore

const VALUES = [
  "llama", "mistral", "qwen2", "qwen3", "opt", "silu", "gelu_pytorch_tanh", "relu",
  { rope_type: "linear", factor: 2 },
  { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 512 },
  { rope_type: "yarn", factor: 4 },
  ["sliding_attention", "full_attention"],
  ["LlamaForCausalLM"], ["Qwen3ForCausalLM"], ["OPTForCausalLM"], ["LlamaForSequenceClassification"],
]; // prettier-ignore

const PUBLISHED = json("test/fixtures/models/configs.json") as Record<string, unknown>;

const BASES = [
  json("models/tiny-llama/config.json"),
  json("models/tiny-opt/config.json"),
  ...Object.entries(PUBLISHED).flatMap(([name, value]) =>
    /^(llama|mistral|qwen2|qwen3|smollm|opt)\b(?!.*moe)/.test(name) ? [value] : [],
  ),
].map((value) => new JsonBase(value, KEYS, VALUES));

/** Keys that mean the same in every architecture of the table, and what they become. */
const SAME = {
  hidden_size: "hiddenSize",
  num_hidden_layers: "numLayers",
  num_attention_heads: "numHeads",
  vocab_size: "vocabSize",
  max_position_embeddings: "maxPositions",
} as const;

/** Reads a parsed config.json and holds the result against it. @throws PlanishError, Unsound */
export function checkConfig(document: Readonly<Record<string, unknown>>): void {
  const { architecture, config } = parseModelConfig(document);
  ensureFinite(config, "config");
  for (const [key, name] of Object.entries(SAME)) {
    const given = document[key];
    if (given !== undefined && given !== null)
      ensure(given === config[name], `${key} ${JSON.stringify(given)} became ${config[name]}`);
  }
  const sizes = [
    config.hiddenSize,
    config.intermediateSize,
    config.numLayers,
    config.numHeads,
    config.numKvHeads,
  ];
  for (const size of [...sizes, config.headDim, config.vocabSize, config.maxPositions])
    ensure(
      Number.isSafeInteger(size) && size >= 1 && size <= LIMITS.positions,
      `a size of ${size}`,
    );
  ensure(config.numLayers <= LIMITS.layers, `${config.numLayers} layers`);
  ensure(config.numHeads % config.numKvHeads === 0, "heads that share unevenly");
  const window = config.slidingWindow;
  ensure(
    window === undefined || (Number.isSafeInteger(window) && window >= 1),
    `a window of ${window}`,
  );
  ensure(config.norm.epsilon >= 0, `epsilon ${config.norm.epsilon}`);
  if (config.positions.kind === "rope")
    ensure(config.positions.theta > 0, `theta ${config.positions.theta}`);
  for (const layer of new Set([0, config.numLayers - 1]))
    ensureFinite(blockProgram(config, layer), "program");
  if (config.numLayers <= 16) expectedNames(architecture, config);
}

export const configTarget: Target = {
  name: "config.json",
  generate: (random) => encode(pick(random, BASES).mutated(random)),
  run(input) {
    const document = parseJson(decode(input), "config.json");
    if (!isJsonObject(document)) throw new PlanishError("config.json must hold an object");
    checkConfig(document);
  },
};
