/**
 * An original model before any of its weights is used: configuration and tensors must say the same thing. What the
 * architecture has no place for is refused, since a model that is read in part runs and is another model.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { refuseQuantizedTensors } from "../checkpoint/quantized-source.js";
import { quoted } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import { blockPrograms, parseModelConfig } from "./architectures/index.js";
import type { Architecture, ModelConfig } from "./config.js";
import { readTensor, storedNames, wholeName } from "./weights.js";

/** Buffers that older exports hold beside the weights; they follow from the configuration. */
const HARMLESS = /\.(?:rotary_emb\.inv_freq|masked_bias|attn\.bias|position_ids|decoder\.version)$/;

/** Heads that stand in a language model's place. */
const OTHER_HEAD =
  /^(?:score|classifier|qa_outputs|v_head|value_head|reward_head|regression_head|pooler)\./;

/**
 * Reads the configuration of an unquantized model and checks its tensors' names, types and head against it.
 * @throws PlanishError naming what is quantized already, unknown, missing or contradictory.
 */
export function parseSource(checkpoint: Checkpoint): {
  architecture: Architecture;
  config: ModelConfig;
} {
  const { path, tensors } = checkpoint;
  const parsed = parseModelConfig(checkpoint.config);
  const { required, optional } = expectedNames(parsed.architecture, parsed.config);
  const known = new Set([...required, ...optional]);
  refuseQuantizedTensors(path, tensors.values(), known);
  for (const name of tensors.keys()) {
    if (known.has(name) || HARMLESS.test(name) || isUnused(name, parsed)) continue;
    const what = OTHER_HEAD.test(name)
      ? "is a head other than a language model's"
      : "has no place in it";
    throw new PlanishError(
      `${path}: tensor ${quoted(name, 120)} ${what} (architecture ${parsed.config.architecture}, ${parsed.config.numLayers} layers, as config.json says); give the causal language model itself`,
    );
  }
  checkBiases(checkpoint, parsed);
  checkHead(checkpoint, parsed);
  return parsed;
}

/** Tensors of layers that only predict further tokens, as they train with the model. */
function isUnused(
  name: string,
  { architecture, config }: ReturnType<typeof parseModelConfig>,
): boolean {
  if (architecture.unused?.(config, name)) return true;
  const { numLayers, unusedLayers = 0 } = config;
  if (architecture.names.unused?.test(name)) return true;
  return Array.from({ length: unusedLayers }, (_, i) =>
    architecture.names.blockPrefix(numLayers + i),
  ).some((prefix) => name.startsWith(prefix));
}

/** GGUF does not say which linears have biases: there the tensors do. */
function checkBiases(
  checkpoint: Checkpoint,
  { architecture, config }: ReturnType<typeof parseModelConfig>,
): void {
  const { biases } = config;
  if (biases === undefined || checkpoint.format === "gguf") return;
  for (const [layer, program] of blockPrograms(config).entries())
    for (const [name, place] of Object.entries(program.linears)) {
      const wanted = biases.includes(name);
      const names = storedNames(place).map(({ bias }) =>
        wholeName(architecture.names.blockPrefix(layer), bias),
      );
      const bias = names.find(
        (each) => checkpoint.tensors.has(each) !== wanted && !isFiller(checkpoint, each),
      );
      if (bias === undefined) continue;
      const stored = !wanted;
      throw new PlanishError(
        `${checkpoint.path}: tensor ${bias} is ${stored ? "there" : "missing"}, but by config.json ${architecture.name} has ${wanted ? "a" : "no"} bias there; correct attention_bias, mlp_bias or enable_bias, or fetch the model again`,
      );
    }
}

/** A bias of zeros, such as AutoGPTQ gave every quantized linear; it changes nothing. */
function isFiller(checkpoint: Checkpoint, bias: string): boolean {
  if (!checkpoint.quantized || !checkpoint.tensors.has(bias)) return false;
  return checkpoint.read(bias).every((value) => value === 0);
}

/** A head that is neither tied nor stored, or both and different. */
function checkHead(
  checkpoint: Checkpoint,
  { architecture, config }: ReturnType<typeof parseModelConfig>,
): void {
  const { embedding, lmHead } = architecture.names;
  const stored = checkpoint.tensors.has(lmHead);
  if (!config.tiedEmbeddings) {
    if (stored) return;
    throw new PlanishError(
      `${checkpoint.path} has no language-model head: ${lmHead} is missing and config.json does not tie it to the embedding; if it is meant to be tied, set "tie_word_embeddings": true`,
    );
  }
  if (!stored) return;
  const shape = [config.vocabSize, config.embeddingSize ?? config.hiddenSize];
  const table = readTensor(checkpoint, embedding, shape).data;
  const head = readTensor(checkpoint, lmHead, shape).data;
  if (table.every((value, i) => value === head[i])) return;
  throw new PlanishError(
    `${checkpoint.path}: ${lmHead} differs from ${embedding}, to which config.json ties it; set "tie_word_embeddings": false to use the stored head, or remove the tensor`,
  );
}

/** Every tensor name the loader may ask for. */
export function expectedNames(
  { names }: Architecture,
  config: ModelConfig,
): { required: string[]; optional: string[] } {
  const required = [names.embedding];
  if (config.finalNorm !== false) required.push(names.finalNorm);
  if (config.embeddingSize !== undefined && names.projectIn && names.projectOut)
    required.push(names.projectIn, names.projectOut);
  // A tied head may be stored all the same.
  const optional = [names.lmHead];
  if (config.norm.kind === "layer" && config.finalNorm !== false)
    optional.push(biasOf(names.finalNorm));
  if (config.positions.kind === "learned" && names.positions) required.push(names.positions);
  if (config.side && names.side) required.push(names.side);
  for (const [layer, program] of blockPrograms(config).entries()) {
    for (const place of [...Object.values(program.linears), ...Object.values(program.norms)])
      for (const { weight, bias } of storedNames(place)) {
        required.push(wholeName(names.blockPrefix(layer), weight));
        optional.push(wholeName(names.blockPrefix(layer), bias));
      }
    for (const { scaledBy } of Object.values(program.linears))
      if (scaledBy) required.push(wholeName(names.blockPrefix(layer), scaledBy.name));
    for (const { path } of Object.values(program.kept))
      required.push(names.blockPrefix(layer) + path);
  }
  return { required, optional };
}

function biasOf(weight: string): string {
  return weight.replace(/\.weight$/, ".bias");
}
