/**
 * A checkpoint directory in Hugging Face's form: `config.json`, `generation_config.json`, tokenizer files,
 * and weights in `model.safetensors` or in shards with an index.
 */

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { PlanishError } from "../common/errors.js";
import { MAX_SETTINGS_BYTES, readUserText } from "../common/read-file.js";
import type { Checkpoint, StoredTensor, TokenizerFiles } from "./checkpoint.js";
import { readJsonObject } from "./file-reader.js";
import { findQuantization, openQuantized } from "./quantized/index.js";
import { mergeSpecialTokensMap } from "./tokenizer/special-tokens.js";
import { INDEX_FILE, SINGLE_FILE, openSafetensors } from "./safetensors.js";

/** Model types whose files are often saved without the name that the language model gives its blocks and embeddings. */
const BARE: Readonly<Record<string, string>> = { gpt2: "transformer.", bloom: "transformer." };

/** NVIDIA's ModelOpt leaves its settings here. */
const MODEL_OPT = "hf_quant_config.json";

/**
 * Opens a directory. `weightsFile` names the safetensors file (or index) in it when it is not one of the
 * usual two. Throws PlanishError when the configuration or the weights are missing or damaged.
 */
export function openHfDirectory(directory: string, weightsFile?: string): Checkpoint {
  const configPath = join(directory, "config.json");
  if (!existsSync(configPath)) {
    throw new PlanishError(
      `${directory} has no config.json; a model directory holds config.json, ${SINGLE_FILE} (or ${INDEX_FILE} and its shards) and tokenizer.json`,
    );
  }
  const config = readJsonObject(configPath, { python: true });
  // Before the weights: their types may be ones that only this format has.
  const quantization = findQuantization(directory, config);
  if (existsSync(join(directory, MODEL_OPT)))
    throw new PlanishError(
      `${directory} is quantized already: it holds ${MODEL_OPT}; give the original full-precision model instead`,
    );
  const generationConfigPath = join(directory, "generation_config.json");
  const generationConfig = existsSync(generationConfigPath)
    ? readJsonObject(generationConfigPath)
    : undefined;
  const { store, metadata } = openSafetensors(
    join(directory, weightsFile ?? findWeights(directory)),
  );
  const stored = storedNames(config, store.tensors);
  const plain = {
    path: directory,
    format: "safetensors",
    config,
    generationConfig,
    metadata,
    tensors: stored.tensors,
    read: (name) => store.read(stored.nameOf(name)),
    readBytes: (name) => store.readBytes(stored.nameOf(name)),
    tokenizerFiles: () => readTokenizerFiles(directory),
    hash: () => store.hash(),
    [Symbol.dispose]: () => store[Symbol.dispose](),
  } satisfies Checkpoint;
  if (!quantization) return plain;
  try {
    return { ...plain, ...openQuantized(directory, config, quantization, store) };
  } catch (error) {
    store[Symbol.dispose]();
    throw error;
  }
}

/** Tensors by the names that a whole language model gives them, and the names that they are stored under. */
function storedNames(
  { model_type: type }: Readonly<Record<string, unknown>>,
  tensors: ReadonlyMap<string, StoredTensor>,
): {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly nameOf: (name: string) => string;
} {
  const prefix = typeof type === "string" && Object.hasOwn(BARE, type) ? BARE[type] : undefined;
  const whole = prefix === undefined || [...tensors.keys()].some((name) => name.startsWith(prefix));
  if (whole) return { tensors, nameOf: (name) => name };
  // The head stands outside.
  const outside = (name: string): boolean => name.startsWith("lm_head.");
  const named = (name: string): string => (outside(name) ? name : prefix + name);
  return {
    tensors: new Map(
      [...tensors].map(([name, tensor]) => [named(name), { ...tensor, name: named(name) }]),
    ),
    nameOf: (name) => (name.startsWith(prefix) ? name.slice(prefix.length) : name),
  };
}

function findWeights(directory: string): string {
  for (const name of [SINGLE_FILE, INDEX_FILE]) {
    if (existsSync(join(directory, name))) return name;
  }
  const pickled = readdirSync(directory).find((name) => /^pytorch_model.*\.bin$/.test(name));
  throw new PlanishError(
    `${directory} has neither ${SINGLE_FILE} nor ${INDEX_FILE}` +
      (pickled
        ? `; ${pickled} is a pickle file, which is not read: save the model as safetensors`
        : "; give a directory with safetensors weights, or a .gguf file"),
  );
}

/**
 * Reads `tokenizer.json`, `tokenizer_config.json` with `special_tokens_map.json` and, where it is apart from them, the chat template
 * (`chat_template.jinja`, `chat_template.json`). Throws PlanishError when there is no `tokenizer.json`.
 */
export function readTokenizerFiles(directory: string): TokenizerFiles {
  const tokenizerPath = join(directory, "tokenizer.json");
  if (!existsSync(tokenizerPath)) {
    const others = ["tokenizer.model", "vocab.json", "vocab.txt"].filter((name) =>
      existsSync(join(directory, name)),
    );
    throw new PlanishError(
      `${directory} has no tokenizer.json` +
        (others.length > 0
          ? `; ${others.join(" and ")} alone cannot be read: save the tokenizer in its fast form (tokenizer.json) beside it`
          : "; copy the tokenizer files of the model into it"),
    );
  }
  const tokenizer = readJsonObject(tokenizerPath);
  const configPath = join(directory, "tokenizer_config.json");
  const mapPath = join(directory, "special_tokens_map.json");
  const config = mergeSpecialTokensMap(
    existsSync(configPath) ? readJsonObject(configPath, { python: true }) : {},
    existsSync(mapPath) ? readJsonObject(mapPath) : {},
  );
  if (config["chat_template"] === undefined) {
    const template = readChatTemplate(directory);
    if (template !== undefined) config["chat_template"] = template;
  }
  return { tokenizer, config };
}

function readChatTemplate(directory: string): unknown {
  const jinja = join(directory, "chat_template.jinja");
  if (existsSync(jinja))
    return readUserText(jinja, { what: "chat template", most: MAX_SETTINGS_BYTES });
  const json = join(directory, "chat_template.json");
  if (existsSync(json)) return readJsonObject(json)["chat_template"];
  return undefined;
}
