/** A training step of a SmolLM2-shaped block (six sites, W4A4KV4, random weights), for benches. */
import type { Backend } from "../src/backend/contract/training.js";
import { Random } from "../src/common/random.js";
import { type ModelConfig } from "../src/models/config.js";
import { uploadBlock } from "../src/models/weights.js";
import { sitesOf } from "../src/backend/contract/program.js";
import { BlockTrainer } from "../src/quantize/block/block-training.js";
import { initialParameters } from "../src/quantize/methods/flatquant/parameters.js";
import { flatQuantPresets } from "../src/quantize/methods/flatquant/recipe.js";
import { parameterRule } from "../src/quantize/methods/flatquant/train.js";
import { parameter } from "../src/tensor/tensor.js";
import { blockProgram } from "../src/models/architectures/index.js";
import { randomBlock } from "./random-block.js";

export const config: ModelConfig = {
  architecture: "llama",
  hiddenSize: 576,
  intermediateSize: 1536,
  numLayers: 1,
  numHeads: 9,
  numKvHeads: 3,
  headDim: 64,
  vocabSize: 1,
  maxPositions: 2048,
  norm: { kind: "rms", epsilon: 1e-5 },
  positions: { kind: "rope", theta: 100000, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: true,
};
const scheme = { weightBits: 4, activationBits: 4, kvBits: 4 } as const;

function noise(random: Random, length: number, deviation: number): Float32Array {
  return Float32Array.from({ length }, () => deviation * random.normal());
}

export interface TrainingStep extends Disposable {
  step(): void;
  /** Elements of the block's weight matrices. */
  readonly weights: number;
  /** Most bytes of activations held so far. */
  readonly peakBytes: number;
}

/** Prepares a step over `sequences` × `time` tokens. */
export function trainingStep(backend: Backend, sequences: number, time: number): TrainingStep {
  const random = Random.for(1, "step");
  const program = blockProgram(config, 0);
  const block = randomBlock(program, (length, deviation) => noise(random, length, deviation));
  const maxima = Object.fromEntries(
    sitesOf(program).map(({ site, width }) => [site, new Float64Array(width).fill(3)]),
  );
  const recipe = flatQuantPresets.paper;
  const params = new Map(
    [...initialParameters(block, program, scheme, recipe, maxima, random)].map(
      ([name, { shape, data }]) => [name, parameter(backend, shape, data)],
    ),
  );
  const trainer = new BlockTrainer({
    backend,
    block: { program, scheme },
    weights: uploadBlock(backend, block),
    params,
    precision: "bf16",
    finalLearningRate: recipe.finalLearningRate,
    rule: parameterRule(recipe),
    totalSteps: 1000,
    layer: 0,
    hidden: config.hiddenSize,
  });
  const size = sequences * time * config.hiddenSize;
  const batch = { input: noise(random, size, 1), target: noise(random, size, 1), sequences };
  return {
    step: () => {
      trainer.step(batch);
    },
    weights: Object.values(block.linears).reduce((sum, l) => sum + l.weight.data.length, 0),
    get peakBytes() {
      return trainer.peakBytes;
    },
    [Symbol.dispose]: () => {
      trainer[Symbol.dispose]();
    },
  };
}
