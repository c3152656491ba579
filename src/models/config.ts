/** What a decoder model is made of, whatever its architecture's config file called it. */

import type { Range } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { Mixer, RecurrentConfig } from "./recurrent-config.js";
import type {
  Activation,
  BlockProgram,
  GateClamp,
  QueryGrowth,
  Rotary,
  RouteStep,
} from "../backend/contract/program.js";

export interface ModelConfig {
  /** Architecture name in our table, e.g. "llama". */
  readonly architecture: string;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly norm: { readonly kind: "rms" | "layer"; readonly epsilon: number };
  /**
   * Where a block's norms stand: before attention and MLP (default), or after each one's residual sum, so that the
   * block's linears read the residual stream itself.
   */
  readonly normPlacement?: "before" | "after";
  /** Whether a norm follows the last block (default true). */
  readonly finalNorm?: boolean;
  /** Width of the embedding where it is projected to and from the hidden width; absent: they are the same. */
  readonly embeddingSize?: number;
  /** Positions: rotary, or a learned table whose row for position p is p + offset, or none outside attention's scores. */
  readonly positions:
    | RopePositions
    | { readonly kind: "learned"; readonly offset: number }
    | { readonly kind: "none" };
  /** Gated MLPs compute act(gate)·up; the others act(up). */
  readonly mlp: {
    readonly gated: boolean;
    readonly activation: Activation;
    readonly clamp?: GateClamp;
  };
  /** RMS norm over each head of queries and keys, before RoPE. */
  readonly qkNorm: boolean;
  readonly tiedEmbeddings: boolean;
  /** Keys further back than this are not seen; undefined: all are. */
  readonly slidingWindow?: number;
  /** One for each layer, where layers differ in what attention sees or in their positions. */
  readonly layers?: readonly LayerConfig[];
  /** Channels of a head that turn (default: all), and whether neighbours make pairs rather than halves of the head. */
  readonly rotary?: { readonly dims?: number; readonly interleaved?: boolean };
  /** What multiplies attention's scores (default 1/√headDim), and a cap on them: cap·tanh(s/cap). */
  readonly attention?: { readonly scale?: number; readonly softcap?: number };
  /** Queries, keys and values that pass through narrow latents (DeepSeek's attention). */
  readonly latent?: LatentConfig;
  /** Sizes of the layers that carry a state. */
  readonly recurrent?: RecurrentConfig;
  /** What multiplies what linears give, by their names, and what parts of a block read. */
  readonly multipliers?: Readonly<Record<string, number>>;
  /** Layers after the last that predict further tokens; they are not read. */
  readonly unusedLayers?: number;
  /** Whether attention and MLP read one norm side by side, where an architecture has both forms. */
  readonly parallel?: boolean;
  /** Whether the residual stream is what the norms give, where an architecture has both forms. */
  readonly normedResidual?: boolean;
  /** Multiplies embeddings. */
  readonly embeddingScale?: number;
  /** Multiplies what attention and MLP add to the residual stream. */
  readonly residualScale?: number;
  /** Multiplies logits. */
  readonly logitScale?: number;
  /** Logits x become cap·tanh(x/cap). */
  readonly logitSoftcap?: number;
  /** What norms' stored gains lack: 1 where a checkpoint holds their differences from 1. */
  readonly gainOffset?: number;
  /** Channels between blocks, where more than hidden states goes from block to block, behind them; default: `hiddenSize`. */
  readonly stateWidth?: number;
  /** A second table of embeddings, whose rows stand behind the first one's in what enters the first block. */
  readonly side?: { readonly rows: number; readonly width: number; readonly scale: number };
  /** Whether experts are stored one by one, where an architecture has them in stacks. */
  readonly singleExperts?: boolean;
  /** Experts in the place of the MLP. */
  readonly experts?: ExpertsConfig;
  /** Names of the block's linears that have a bias, e.g. "q"; undefined: the checkpoint's tensors say. */
  readonly biases?: readonly string[];
}

/** Multi-head latent attention (arXiv 2405.04434): a head has channels that turn, which all keys share, and others. */
export interface LatentConfig {
  /** Channels of the queries' latent; absent: queries have none. */
  readonly queries?: number;
  /** Channels of the keys' and values' latent. */
  readonly keys: number;
  readonly still: number;
  readonly turning: number;
  readonly values: number;
  readonly interleaved: boolean;
  /** Whether keys' and values' linears are stored apart, as stacks of heads, keys' as [in, out]. */
  readonly split?: boolean;
}

/** A mixture of experts: gated MLPs of which a row goes through a few (`RouteStep`). */
export interface ExpertsConfig extends Pick<
  RouteStep,
  "chosen" | "scores" | "normalize" | "factor" | "groups" | "weighInputs"
> {
  readonly count: number;
  /** Channels inside an expert. */
  readonly width: number;
  /** Whether the choice is corrected by a stored number for each expert. */
  readonly correction?: boolean;
  /** Channels inside an MLP that every row goes through beside its experts, and whether a gate weighs what it gives. */
  readonly sharedWidth?: number;
  readonly sharedGate?: boolean;
  /** Layers that have an MLP and no experts. */
  readonly dense?: readonly boolean[];
}

/** What a layer has of its own; what is absent is as in the whole model. */
export interface LayerConfig {
  /** Attention, unless it says otherwise. */
  readonly mixer?: Mixer;
  readonly window?: number;
  /** Queries see keys of their own chunk of so many positions only. */
  readonly chunk?: number;
  readonly headDim?: number;
  readonly kvHeads?: number;
  /** Channels inside the MLP. */
  readonly intermediateSize?: number;
  /** The layer whose keys and values this one reads instead of its own. */
  readonly keysFrom?: number;
  /** Whether values are the keys' linear's output, before what else happens to keys. */
  readonly keysAsValues?: boolean;
  /** Null: the layer has no positions. */
  readonly positions?: RopePositions | null;
  /** What multiplies attention's scores. */
  readonly scale?: number;
  /** Of queries in a layer without positions. */
  readonly growth?: QueryGrowth;
}

/** What all layers' rotary positions have in common with a step's. */
export type RopePositions = { readonly kind: "rope" } & Omit<Rotary, "dims">;

/** Channels of what a block reads and gives. */
export function stateWidth({
  stateWidth: width,
  hiddenSize,
}: Pick<ModelConfig, "stateWidth" | "hiddenSize">): number {
  return width ?? hiddenSize;
}

/** 2048 tokens, or half of the positions of models trained for fewer (512 for the tiny ones). */
export function defaultSequenceLength(config: Pick<ModelConfig, "maxPositions">): number {
  return config.maxPositions >= 2048 ? 2048 : Math.floor(config.maxPositions / 2);
}

/** @throws PlanishError when windows of so many tokens reach beyond the positions that the model was made for. */
export function refuseLongWindows(
  tokens: number,
  { maxPositions }: Pick<ModelConfig, "maxPositions">,
): void {
  if (tokens > maxPositions)
    throw new PlanishError(
      `windows of ${tokens} tokens are longer than the model's ${maxPositions} positions; give at most those (--seq-len)`,
    );
}

/** Names of a checkpoint's tensors outside its blocks. Bias names follow from weight names (`.weight` → `.bias`). */
export interface TensorNames {
  readonly embedding: string;
  /** Learned position table. */
  readonly positions?: string;
  /** `ModelConfig.side`. */
  readonly side?: string;
  readonly finalNorm: string;
  readonly lmHead: string;
  /** Projections between an embedding of another width and the hidden states, without biases. */
  readonly projectIn?: string;
  readonly projectOut?: string;
  readonly blockPrefix: (layer: number) => string;
  /** Tensors beside the model's, which are not read: of layers that predict further tokens in training, or see pictures. */
  readonly unused?: RegExp;
}

/** One row of the architecture table: how to read its config, what its tensors are called, and what a block computes. */
export interface Architecture {
  readonly name: string;
  /** `model_type` values of config.json. */
  readonly modelTypes: readonly string[];
  /** Classes of its causal language model, where they are not `<model type>ForCausalLM`. */
  readonly classes?: readonly string[];
  /** Reads config.json. Every key that it reads counts as understood; others are refused if they may matter (`keys.ts`). */
  parse(config: ConfigReader): ModelConfig;
  /** The block of a layer; layers may differ. Called by `blockProgram`, which keeps what comes out. */
  lower(config: ModelConfig, layer: number): BlockProgram;
  readonly names: TensorNames;
  /** Whether a tensor that the model does not compute with may stand in its files all the same. */
  unused?(config: ModelConfig, name: string): boolean;
}

/** Typed access to config.json with errors that name the key. */
export interface ConfigReader {
  /** A finite number in a range. */
  number(key: string, fallback?: number, range?: Range): number;
  /** A whole number from `min` (default 1) to `max`: everything that sizes or counts something. */
  integer(key: string, max: number, fallback?: number, min?: number): number;
  boolean(key: string, fallback: boolean): boolean;
  string(key: string, fallback: string): string;
  optional(key: string): unknown;
}
