/** Golden vectors of one block's training as Planish's own types: shared by every backend's check of them. */
import type { HostTensor } from "../../src/backend/contract/packed.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { mapValues } from "../../src/common/records.js";
import type { ModelConfig } from "../../src/models/config.js";
import type { HostBlock } from "../../src/models/weights.js";
import { flatQuantPresets } from "../../src/quantize/methods/flatquant/recipe.js";
import type { Bits } from "../../src/backend/contract/scheme.js";
import type { GoldenTensors } from "./support.js";

export interface BlockSettings {
  hidden: number;
  heads: number;
  kv: number;
  head_dim: number;
  inter: number;
  eps: number;
  theta: number;
  bits: { w: Bits; a: Bits; kv: Bits };
  batch: number;
  epochs: number;
  lr: number;
  lr_clip: number;
  weight_decay: number;
  eta_min: number;
  alpha: number;
  clip: boolean;
  diag: boolean;
}

/** The block and its configuration, on the host. */
export function loadBlock(golden: GoldenTensors, s: BlockSettings) {
  const tensor = (name: string): HostTensor => {
    const found = golden.get(name);
    if (!found) throw new Error(`golden lacks ${name}`);
    return found;
  };
  const optional = (name: string) => (golden.has(name) ? tensor(name) : undefined);
  const config: ModelConfig = {
    architecture: "llama",
    hiddenSize: s.hidden,
    intermediateSize: s.inter,
    numLayers: 1,
    numHeads: s.heads,
    numKvHeads: s.kv,
    headDim: s.head_dim,
    vocabSize: 1,
    maxPositions: 4096,
    norm: { kind: "rms", epsilon: s.eps },
    positions: { kind: "rope", theta: s.theta, scaling: { type: "default" } },
    mlp: { gated: true, activation: "silu" },
    qkNorm: false,
    tiedEmbeddings: true,
  };
  const { linears, norms } = blockProgram(config, 0);
  const block: HostBlock = {
    norms: mapValues(norms, ({ path }) => ({ path, gain: tensor(`weights/${path}.weight`) })),
    linears: mapValues(linears, ({ path }) => ({
      path,
      weight: tensor(`weights/${path}.weight`),
      bias: optional(`weights/${path}.bias`),
    })),
    kept: {},
  };
  return { config, block };
}

/** FlatQuant's recipe as the settings give it, in f32. */
export function recipeOf(s: BlockSettings) {
  return {
    ...flatQuantPresets.paper,
    precision: "f32" as const,
    epochs: s.epochs,
    batch: s.batch,
    learningRate: s.lr,
    clipLearningRate: s.lr_clip,
    finalLearningRate: s.eta_min,
    weightDecay: s.weight_decay,
    diag: s.diag,
    diagAlpha: s.alpha,
    weightClip: s.clip,
    activationClip: s.clip,
    kvClip: s.clip,
  };
}
