/**
 * FlatQuant as a method: learned Kronecker-factored affine transforms per site, learned clipping, optionally
 * learned rounding and end-to-end distillation. Source: spec/flatquant.md (Sun, Liu, Bai et al., ICML 2025).
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend, RealArray } from "../../../backend/backend.js";
import { InterruptedError } from "../../../common/errors.js";
import { Random } from "../../../common/random.js";
import {
  blockForward,
  plainHooks,
  type BlockHooks,
  type BlockWeights,
} from "../../../models/block.js";
import { LINEAR_SITES, type LinearSite, type ModelConfig } from "../../../models/config.js";
import { ropeTables } from "../../../models/rope.js";
import { freeTensor, Graph, parameter, type Tensor } from "../../../tensor/tensor.js";
import { sampleRange, type Activations } from "../../calibration/windows.js";
import type { ParameterValues } from "../../fold.js";
import type { BlockJob, BlockOutcome, CalibrationNeed, Method } from "../../method.js";
import { gptqOf } from "../../rounding/settings.js";
import { describeBlock } from "../../simulated-block.js";
import { kroneckerFactors } from "../../transforms/affine.js";
import { distill } from "./distill.js";
import { initialParameters, siteSize, type SiteMaxima } from "./parameters.js";
import { flatQuantPresets, flatQuantRecipe, type FlatQuantRecipe } from "./recipe.js";
import { BlockTrainer, type Batch } from "./train.js";

/** Windows on which the report's errors are measured. */
const REPORT_WINDOWS = 16;

export const flatquant: Method<FlatQuantRecipe> = {
  name: "flatquant",
  summary: "learned Kronecker-factored affine transforms and clipping (Sun et al., ICML 2025)",
  recipe: flatQuantRecipe,
  presets: flatQuantPresets,
  defaultPreset: "fast",
  calibration: (recipe): CalibrationNeed => ({
    samples: recipe.samples,
    seqLen: recipe.seqLen,
    stepsPerBlock: recipe.epochs * Math.ceil(recipe.samples / recipe.batch),
    batch: recipe.batch,
    refineSteps: recipe.distillation.steps,
    refineBatch: recipe.distillation.batch,
    secondMoments: recipe.rounding === "gptq",
  }),
  gptq: gptqOf,
  check: (config, scheme) => {
    if (scheme.weightBits >= 16 && scheme.activationBits >= 16) return;
    for (const site of ["attn_in", "mlp_in", "mlp_down"] as const)
      kroneckerFactors(siteSize(config, site), site);
  },
  calibrateBlock,
  refine: distill,
};

async function calibrateBlock(job: BlockJob<FlatQuantRecipe>): Promise<BlockOutcome> {
  const { backend, block, weights, config, scheme, recipe, layer, seed, inputs, targets } = job;
  const maxima = recipe.diag ? captureMaxima(backend, config, weights, inputs, layer) : undefined;
  const random = Random.for(seed, "block", layer);
  const start = initialParameters(block, config, scheme, recipe, maxima, random);
  const params = uploadParameters(backend, start);
  const description = describeBlock(block, config, scheme);
  const batches = Math.ceil(inputs.samples / recipe.batch);
  const trainerFor = (p: ReadonlyMap<string, Tensor>) =>
    new BlockTrainer({
      backend,
      block: description,
      weights,
      params: p,
      recipe,
      totalSteps: recipe.epochs * batches,
      layer,
    });
  const batchAt = (index: number): Batch => {
    const first = index * recipe.batch;
    const sequences = Math.min(recipe.batch, inputs.samples - first);
    return {
      input: sampleRange(inputs, first, sequences),
      target: sampleRange(targets, first, sequences),
      sequences,
    };
  };
  const measured = Math.min(batches, Math.max(1, Math.floor(REPORT_WINDOWS / recipe.batch)));
  const errorOf = (trainer: BlockTrainer): number => {
    let sum = 0;
    for (let i = 0; i < measured; i++) sum += trainer.evaluate(batchAt(i));
    return sum / measured;
  };

  using rounded = trainerFor(new Map());
  const errorRounded = errorOf(rounded);
  using trainer = trainerFor(params);
  const errorInitial = errorOf(trainer);
  const epochLoss: number[] = [];
  for (let epoch = 0; epoch < recipe.epochs; epoch++) {
    let sum = 0;
    for (let i = 0; i < batches; i++) {
      if (job.signal?.aborted)
        throw new InterruptedError(`stopped in block ${layer}; finished blocks are kept`);
      const loss = trainer.step(batchAt(i));
      sum += loss;
      job.progress.advance(
        1,
        `block ${layer} epoch ${epoch + 1}/${recipe.epochs} loss ${loss.toPrecision(3)}`,
      );
      await nextTurn();
    }
    epochLoss.push(sum / batches);
  }
  const errorFinal = errorOf(trainer);
  const parameters = downloadParameters(backend, params);
  for (const p of params.values()) freeTensor(backend, p);
  return {
    parameters,
    report: {
      errorRounded,
      errorInitial,
      errorFinal,
      epochLoss,
      moved: relativeChange(start, parameters),
      notes: [],
    },
  };
}

export function uploadParameters(backend: Backend, values: ParameterValues): Map<string, Tensor> {
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of values) params.set(name, parameter(backend, shape, data));
  return params;
}

export function downloadParameters(
  backend: Backend,
  params: ReadonlyMap<string, Tensor>,
): ParameterValues {
  const values = new Map<string, { shape: readonly number[]; data: RealArray }>();
  for (const [name, p] of params)
    if (p.buffer) values.set(name, { shape: p.shape, data: backend.read(p.buffer) as RealArray });
  return values;
}

/** Largest |x| per channel where activations meet linears, over the whole calibration set. */
function captureMaxima(
  backend: Backend,
  config: ModelConfig,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): SiteMaxima {
  const sites = Object.keys(LINEAR_SITES) as LinearSite[];
  const maxima = Object.fromEntries(
    sites.map((site) => [site, new Float64Array(siteSize(config, site))]),
  ) as unknown as Record<LinearSite, Float64Array>;
  const plain = plainHooks(weights);
  const observed: BlockHooks = {
    linears(g, site, x, roles) {
      const into = maxima[site];
      const data = g.read(x);
      for (let i = 0, j = 0; i < data.length; i++) {
        const value = Math.abs(data[i]);
        if (value > into[j]) into[j] = value;
        if (++j === into.length) j = 0;
      }
      return plain.linears(g, site, x, roles);
    },
  };
  using arena = backend.arena();
  for (let s = 0; s < inputs.samples; s++) {
    using g = new Graph(backend, { arena });
    const rope =
      config.positions.kind === "rope" ? ropeTables(g, config, 0, inputs.time) : undefined;
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, s, 1));
    blockForward(g, config, weights, observed, x, { layer, batch: 1, rope });
  }
  return maxima;
}

function relativeChange(start: ParameterValues, end: ParameterValues): Record<string, number> {
  const moved: Record<string, number> = {};
  for (const [name, { data }] of end) {
    const from = start.get(name)?.data;
    let difference = 0;
    let norm = 0;
    for (let i = 0; i < data.length; i++) {
      difference += (data[i] - (from?.[i] ?? 0)) ** 2;
      norm += (from?.[i] ?? 0) ** 2;
    }
    moved[name] = Math.sqrt(norm > 0 ? difference / norm : difference);
  }
  return moved;
}
