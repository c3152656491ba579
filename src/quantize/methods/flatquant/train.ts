/** Training of one block against its own full-precision output. Source: spec/flatquant.md, Calibration. */
import type { Arena, Backend } from "../../../backend/backend.js";
import { blockForward, type BlockWeights } from "../../../models/block.js";
import { ropeTables } from "../../../models/rope.js";
import { meanSquaredError } from "../../../tensor/ops/index.js";
import { Graph, type Tensor } from "../../../tensor/tensor.js";
import { AdamW, trainStep, type ParameterRule } from "../../training.js";
import type { Parameters } from "../../transforms/affine.js";
import { bindSimulated, type BlockDescription } from "../../simulated-block.js";
import type { FlatQuantRecipe } from "./recipe.js";

/** A step's share of the calibration set, on the host: [batch·time, hidden] each. */
export interface Batch {
  readonly input: Float32Array | Float64Array;
  readonly target: Float32Array | Float64Array;
  /** Sequences in the batch. */
  readonly sequences: number;
}

export interface BlockTrainerOptions {
  readonly backend: Backend;
  readonly block: BlockDescription;
  readonly weights: BlockWeights;
  readonly params: Parameters;
  readonly recipe: FlatQuantRecipe;
  readonly totalSteps: number;
  readonly layer: number;
}

/** Learning rate and decay by parameter name: clipping fast, rounding without decay, the rest as the recipe says. */
export function parameterRule(recipe: FlatQuantRecipe): (name: string) => ParameterRule {
  return (name) => {
    if (name.startsWith("round."))
      return { learningRate: recipe.learnedRounding.learningRate, weightDecay: 0, bound: 0.5 };
    const clip = name.startsWith("clip.");
    return {
      learningRate: clip ? recipe.clipLearningRate : recipe.learningRate,
      weightDecay: recipe.weightDecay,
    };
  };
}

export class BlockTrainer implements Disposable {
  private readonly optimizer: AdamW;
  private readonly arena: Arena;

  constructor(private readonly options: BlockTrainerOptions) {
    const { backend, params, recipe, totalSteps } = options;
    this.arena = backend.arena();
    this.optimizer = new AdamW(backend, params, parameterRule(recipe), {
      totalSteps,
      finalLearningRate: recipe.finalLearningRate,
    });
  }

  /** One step; returns the batch's mean squared error before the update. */
  step(batch: Batch): number {
    const { backend, recipe } = this.options;
    return trainStep(
      backend,
      this.optimizer,
      { precision: recipe.precision, arena: this.arena },
      (g) => {
        const out = this.forward(g, batch.input, batch.sequences);
        return meanSquaredError(g, out, g.constant(out.shape, batch.target));
      },
    );
  }

  /** Output of the quantized block for host activations, and its error against a target. */
  evaluate(batch: Batch): number {
    using g = new Graph(this.options.backend, {
      precision: this.options.recipe.precision,
      arena: this.arena,
    });
    const out = this.forward(g, batch.input, batch.sequences);
    return g.scalar(meanSquaredError(g, out, g.constant(out.shape, batch.target)));
  }

  private forward(g: Graph, input: Batch["input"], sequences: number): Tensor {
    const { block, weights, params, layer } = this.options;
    const { config } = block;
    const rows = input.length / config.hiddenSize;
    const time = rows / sequences;
    return blockForward(
      g,
      config,
      weights,
      bindSimulated(g, block, weights, params),
      g.constant([rows, config.hiddenSize], input),
      {
        layer,
        batch: sequences,
        rope: config.positions.kind === "rope" ? ropeTables(g, config, 0, time) : undefined,
      },
    );
  }

  /** Peak bytes of activations and gradients so far. */
  get peakBytes(): number {
    return this.arena.peakBytes;
  }

  [Symbol.dispose](): void {
    this.optimizer[Symbol.dispose]();
    this.arena[Symbol.dispose]();
  }
}
