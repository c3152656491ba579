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

export type RecurrentConfig = DeltaConfig;

/** What a layer mixes tokens with; absent in a configuration: all layers have attention. */
export type Mixer = "attention" | "recurrent";
