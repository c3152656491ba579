/** What a decoder model is made of, whatever its architecture's config file called it. */

/** Linears of a block, by the part they play. Models without a gate have no "gate". */
export type LinearRole = "q" | "k" | "v" | "o" | "gate" | "up" | "down";

/** Places where one activation feeds linears (spec/flatquant.md, Sites) and that own a run-time transform. */
export type SiteName = "attn_in" | "attn_out" | "k_head" | "v_head" | "mlp_in" | "mlp_down";

/** Sites whose activation feeds linears, with the roles it feeds. */
export const LINEAR_SITES: Readonly<Record<"attn_in" | "attn_out" | "mlp_in" | "mlp_down", readonly LinearRole[]>> = {
  attn_in: ["q", "k", "v"],
  attn_out: ["o"],
  mlp_in: ["gate", "up"],
  mlp_down: ["down"],
};
export type LinearSite = keyof typeof LINEAR_SITES;

export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    };

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
    | {
        readonly kind: "rope";
        readonly theta: number;
        readonly scaling: RopeScaling;
        /** Checkpoints trained with frequencies rounded to bfloat16 say so (docs/decisions.md); others are exact. */
        readonly frequencyType?: "bfloat16";
      }
    | { readonly kind: "learned"; readonly offset: number };
  /** Gated MLPs compute act(gate)·up; the others act(up). */
  readonly mlp: { readonly gated: boolean; readonly activation: "silu" | "relu" | "gelu" | "geluTanh" };
  /** RMS norm over each head of queries and keys, before RoPE. */
  readonly qkNorm: boolean;
  readonly tiedEmbeddings: boolean;
  /** Keys further back than this are not seen; undefined: all are. */
  readonly slidingWindow?: number;
}

/** 2048 tokens, or half of the positions of models trained for fewer (512 for the tiny ones). */
export function defaultSequenceLength(config: ModelConfig): number {
  return config.maxPositions >= 2048 ? 2048 : Math.floor(config.maxPositions / 2);
}

/** Names of a checkpoint's tensors. Bias names follow from weight names (`.weight` → `.bias`). */
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
  /** Module path inside the block, e.g. "self_attn.q_proj". */
  readonly linears: Readonly<Partial<Record<LinearRole, string>>>;
  readonly norms: { readonly input: string; readonly post: string; readonly q?: string; readonly k?: string };
}

/** One row of the architecture table: how to read its config, and what its tensors are called. */
export interface Architecture {
  readonly name: string;
  /** `model_type` values of config.json. */
  readonly modelTypes: readonly string[];
  parse(config: ConfigReader): ModelConfig;
  readonly names: TensorNames;
}

/** Typed access to config.json with errors that name the key. */
export interface ConfigReader {
  number(key: string, fallback?: number): number;
  boolean(key: string, fallback: boolean): boolean;
  string(key: string, fallback: string): string;
  optional(key: string): unknown;
}
