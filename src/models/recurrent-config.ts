/** What configurations say of layers that carry a state from token to token. */
import type { Activation } from "../backend/contract/program.js";

/** Qwen's gated delta net: linear attention with a state for each head of values. */
export interface DeltaConfig {
  readonly kind: "delta";
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Positions that the short convolution sees. */
  readonly taps: number;
  /** What follows the convolution. */
  readonly activation: Activation;
}

/** LFM2's gated short convolution. */
export interface ShortConvConfig {
  readonly kind: "conv";
  readonly taps: number;
  /** Whether the convolution has one, and the linears around it. */
  readonly bias: boolean;
}

/** Mamba-2's selective scan. */
export interface MambaConfig {
  readonly kind: "mamba";
  readonly heads: number;
  readonly headDim: number;
  /** Keys B and queries C, each shared by as many heads. */
  readonly groups: number;
  /** Channels of keys and queries. */
  readonly state: number;
  readonly taps: number;
  readonly convBias: boolean;
  readonly activation: Activation;
  /** A norm of groups before or after the gate; absent: none. */
  readonly norm?: "before" | "after";
  /** Bounds of the time step; absent: none. */
  readonly limits?: { readonly least: number; readonly most: number };
  /** What multiplies the parts that the input's linears give. */
  readonly factors?: Readonly<Record<"z" | "x" | "b" | "c" | "step", number>>;
}

export type RecurrentConfig = DeltaConfig | ShortConvConfig | MambaConfig;

/** What a layer is made of; absent in a configuration: all layers mix tokens by attention. */
export type Mixer = "attention" | "recurrent" | "mlp" | "experts";
