/** What a decoder model is made of, whatever its architecture's config file called it. */

import type { Range } from "../common/bounds.js";
import type { Activation, BlockProgram, Rotary } from "../backend/contract/program.js";

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
  /** Positions: rotary, or a learned table whose row for position p is p + offset. */
  readonly positions:
    | ({ readonly kind: "rope" } & Omit<Rotary, "dims">)
    | { readonly kind: "learned"; readonly offset: number };
  /** Gated MLPs compute act(gate)·up; the others act(up). */
  readonly mlp: { readonly gated: boolean; readonly activation: Activation };
  /** RMS norm over each head of queries and keys, before RoPE. */
  readonly qkNorm: boolean;
  readonly tiedEmbeddings: boolean;
  /** Keys further back than this are not seen; undefined: all are. */
  readonly slidingWindow?: number;
  /** Names of the block's linears that have a bias, e.g. "q"; undefined: the checkpoint's tensors say. */
  readonly biases?: readonly string[];
}

/** 2048 tokens, or half of the positions of models trained for fewer (512 for the tiny ones). */
export function defaultSequenceLength(config: Pick<ModelConfig, "maxPositions">): number {
  return config.maxPositions >= 2048 ? 2048 : Math.floor(config.maxPositions / 2);
}

/** Names of a checkpoint's tensors outside its blocks. Bias names follow from weight names (`.weight` → `.bias`). */
export interface TensorNames {
  readonly embedding: string;
  /** Learned position table. */
  readonly positions?: string;
  readonly finalNorm: string;
  readonly lmHead: string;
  /** Projections between an embedding of another width and the hidden states, without biases. */
  readonly projectIn?: string;
  readonly projectOut?: string;
  readonly blockPrefix: (layer: number) => string;
}

/** One row of the architecture table: how to read its config, what its tensors are called, and what a block computes. */
export interface Architecture {
  readonly name: string;
  /** `model_type` values of config.json. */
  readonly modelTypes: readonly string[];
  /** Reads config.json. Every key that it reads counts as understood; others are refused if they may matter (`keys.ts`). */
  parse(config: ConfigReader): ModelConfig;
  /** The block of a layer; layers may differ. Called by `blockProgram`, which keeps what comes out. */
  lower(config: ModelConfig, layer: number): BlockProgram;
  readonly names: TensorNames;
}

/** Typed access to config.json with errors that name the key. */
export interface ConfigReader {
  /** A finite number in a range. */
  number(key: string, fallback?: number, range?: Range): number;
  /** A whole number from 1 to `max`: everything that sizes or counts something. */
  integer(key: string, max: number, fallback?: number): number;
  boolean(key: string, fallback: boolean): boolean;
  string(key: string, fallback: string): string;
  optional(key: string): unknown;
}
