/** Reading of config.json that architectures share: sizes, layers' windows, factors. */
import { finiteIn, LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, LayerConfig, ModelConfig } from "../config.js";
import { activation } from "./reader.js";
import { ropePositions, rotaryShare, type LayerKind, type RopeOptions } from "./rope-config.js";

/** Biases of LLaMA-shaped blocks where `attention_bias` and `mlp_bias` say so. */
export function llamaBiases(c: ConfigReader): string[] {
  return [
    ...(c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : []),
    ...(c.boolean("mlp_bias", false) ? ["gate", "up", "down"] : []),
  ];
}

/** Values of keys that a config may leave out, and what an architecture computes otherwise than LLaMA. */
export interface ShapeOptions extends Partial<
  Pick<
    ModelConfig,
    | "qkNorm"
    | "slidingWindow"
    | "biases"
    | "layers"
    | "attention"
    | "embeddingScale"
    | "residualScale"
    | "logitScale"
    | "logitSoftcap"
    | "gainOffset"
    | "positions"
    | "norm"
  >
> {
  readonly tied?: boolean;
  readonly headDim?: number;
  readonly kvHeads?: number;
  readonly maxPositions?: number;
  readonly intermediate?: number;
  readonly epsilon?: number;
  readonly activation?: { readonly key: string; readonly fallback: string };
  readonly gated?: boolean;
  readonly rope?: RopeOptions;
  /** Share of a head's channels that turn where the config does not say; absent: all do, and the config cannot say otherwise. */
  readonly rotaryShare?: number;
  readonly interleaved?: boolean;
}

/** @throws PlanishError when some heads have more channels together than any model's. */
export function boundHeads(key: string, heads: number, headDim: number): void {
  finiteIn(heads * headDim, `config.json: channels of all ${key}`, { max: LIMITS.rows });
}

/** Sizes of attention's heads, and how many of their channels turn. */
function heads(c: ConfigReader, options: ShapeOptions) {
  const hiddenSize = c.integer("hidden_size", LIMITS.width);
  const numHeads = c.integer("num_attention_heads", LIMITS.heads);
  const absent = (c.optional("head_dim") ?? undefined) === undefined;
  const headDim = absent
    ? (options.headDim ?? hiddenSize / numHeads)
    : c.integer("head_dim", LIMITS.width);
  boundHeads("num_attention_heads", numHeads, headDim);
  const numKvHeads = c.integer("num_key_value_heads", LIMITS.heads, options.kvHeads ?? numHeads);
  const { rotaryShare: share, interleaved } = options;
  const dims = share === undefined ? headDim : Math.floor(headDim * rotaryShare(c, share));
  if (share !== undefined && (dims < 2 || dims % 2 !== 0))
    throw new PlanishError(
      `config.json: partial_rotary_factor turns ${dims} of a head's ${headDim} channels; an even number of at least 2 can turn`,
    );
  const rotary = dims === headDim && !interleaved ? undefined : { dims, interleaved };
  return { hiddenSize, numHeads, numKvHeads, headDim, rotary, dims };
}

/**
 * What LLaMA-shaped architectures have in common.
 * @throws PlanishError when a size is missing or wrong, or `layer_types` contradicts the architecture's windows.
 */
export function llamaShape(
  c: ConfigReader,
  architecture: string,
  options: ShapeOptions = {},
): ModelConfig {
  const { dims, ...sizes } = heads(c, options);
  const numLayers = c.integer("num_hidden_layers", LIMITS.layers);
  const { slidingWindow, layers, rope } = options;
  if (!layers)
    checkLayerTypes(
      c,
      numLayers,
      slidingWindow === undefined ? "full_attention" : "sliding_attention",
    );
  const maxPositions = c.integer(
    "max_position_embeddings",
    LIMITS.positions,
    options.maxPositions ?? 2048,
  );
  const { key, fallback } = options.activation ?? { key: "hidden_act", fallback: "silu" };
  return {
    architecture,
    ...sizes,
    intermediateSize: c.integer("intermediate_size", LIMITS.width, options.intermediate),
    numLayers,
    vocabSize: c.integer("vocab_size", LIMITS.vocabulary),
    maxPositions,
    norm: options.norm ?? {
      kind: "rms",
      epsilon: normEpsilon(c, "rms_norm_eps", options.epsilon ?? 1e-6),
    },
    positions:
      options.positions ??
      ropePositions(c, { dims, maxPositions, partial: options.rotaryShare !== undefined, ...rope }),
    mlp: { gated: options.gated ?? true, activation: activation(c.string(key, fallback)) },
    qkNorm: options.qkNorm ?? false,
    tiedEmbeddings: c.boolean("tie_word_embeddings", options.tied ?? false),
    slidingWindow,
    layers,
    biases: options.biases,
    attention: options.attention,
    embeddingScale: options.embeddingScale,
    residualScale: options.residualScale,
    logitScale: options.logitScale,
    logitSoftcap: options.logitSoftcap,
    gainOffset: options.gainOffset,
  };
}

/** A size under the first of its names that the config has. @throws PlanishError when two of them disagree. */
export function eitherSize(
  c: ConfigReader,
  keys: readonly string[],
  max: number,
  fallback: number,
): number {
  const given = keys.filter((key) => (c.optional(key) ?? undefined) !== undefined);
  const [first, ...others] = given;
  if (first === undefined) return fallback;
  const size = c.integer(first, max);
  for (const other of others)
    if (c.integer(other, max) !== size)
      throw new PlanishError(
        `config.json: ${first} ${size} and ${other} ${c.integer(other, max)} disagree; keep the one that the model was trained with`,
      );
  return size;
}

export function normEpsilon(c: ConfigReader, key: string, fallback: number): number {
  return c.number(key, fallback, { min: 0, max: 1 });
}

/** A factor of arithmetic, or a cap: a finite number above 0. */
export function factor(c: ConfigReader, key: string, fallback: number): number {
  return c.number(key, fallback, { above: 0 });
}

/** The same where null, or (without a fallback) absence, means that there is none. */
export function optionalFactor(
  c: ConfigReader,
  key: string,
  fallback?: number,
): number | undefined {
  const value = c.optional(key);
  if (value === null) return undefined;
  return value === undefined ? fallback : factor(c, key, 0);
}

/** `sliding_window`, undefined where it is null. */
export function window(c: ConfigReader, fallback?: number): number | undefined {
  const value = c.optional("sliding_window");
  if (value === null) return undefined;
  return value === undefined ? fallback : c.integer("sliding_window", LIMITS.positions);
}

/** Of each layer whether it has a window: `layer_types`, or where it is absent what `fallback` says. */
export function layerKinds(
  c: ConfigReader,
  fallback: (layer: number) => LayerKind,
): readonly LayerKind[] {
  const layers = c.integer("num_hidden_layers", LIMITS.layers);
  const types = c.optional("layer_types") ?? undefined;
  if (types === undefined) return Array.from({ length: layers }, (_, layer) => fallback(layer));
  const known = (type: unknown): type is LayerKind =>
    type === "full_attention" || type === "sliding_attention";
  if (!Array.isArray(types) || types.length !== layers || !types.every(known))
    throw new PlanishError(
      `config.json: layer_types must be "full_attention" or "sliding_attention" for each of ${layers} layers, found ${shown(types)}`,
    );
  return types;
}

/**
 * The window of each layer by its kind.
 * @throws PlanishError when a layer has a window by its kind, and the config none.
 */
export function windowed(kinds: readonly LayerKind[], width: number | undefined): LayerConfig[] {
  return kinds.map((kind) => {
    if (kind === "full_attention") return {};
    if (width === undefined)
      throw new PlanishError(
        "config.json: layer_types has sliding_attention, and sliding_window is not given",
      );
    return { window: width };
  });
}

/** Every `period`-th layer sees everything, the others a window. */
export function everyFull(period: number): (layer: number) => LayerKind {
  return (layer) => ((layer + 1) % period === 0 ? "full_attention" : "sliding_attention");
}

function checkLayerTypes(c: ConfigReader, layers: number, accepted: string): void {
  const types = c.optional("layer_types");
  if (types === undefined || types === null) return;
  if (!Array.isArray(types) || types.length !== layers || types.some((type) => type !== accepted))
    throw new PlanishError(
      `config.json: layer_types must be ${JSON.stringify(accepted)} for each of ${layers} layers with this architecture and window, found ${shown(types)}`,
    );
}
