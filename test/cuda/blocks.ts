/**
 * FlatQuant's training of one block on the GPU against the float64 golden vectors, in f32 and in bf16.
 *
 * Bounds, in the Euclidean norm relative to the golden vector. In f32, sums of a few hundred terms through some thirty
 * operations give 1e-5, and gradients, whose terms cancel, 1e-3; the losses of a whole training may part once a code
 * beside a rounding tie takes its neighbour, after which both are trainings of the same block: 0.3. In bf16 the factors
 * of products and transforms are rounded (2⁻⁹); codes within that of a tie move by a whole step, which is noise of the
 * size of the quantization's own: 5e-2 of the full-precision output, 0.2 of the quantized one, and losses that differ
 * by less than their own size. Gradients follow the codes, so in bf16 they are printed, not bounded.
 */
import type { Backend } from "../../src/backend/contract/training.js";
import { runBlock, plainHooks } from "../../src/models/interpret.js";
import { freeBlock, uploadBlock } from "../../src/models/weights.js";
import { BlockTrainer } from "../../src/quantize/block/block-training.js";
import { parameterRule } from "../../src/quantize/methods/flatquant/train.js";
import { bindSimulated } from "../../src/quantize/block/simulated-block.js";
import { meanSquaredError } from "../../src/tensor/ops/index.js";
import { freeTensor, Graph, parameter, type Tensor } from "../../src/tensor/tensor.js";
import { loadBlock, recipeOf, type BlockSettings } from "../golden-checks/block-golden.js";
import {
  goldenFiles,
  goldenSettings,
  readGolden,
  type GoldenFile,
} from "../golden-checks/support.js";
import { describe, expect, test } from "./registered-tests.js";
import { blockProgram } from "../../src/models/architectures/index.js";

const BOUNDS = {
  f32: { full: 1e-5, quantized: 1e-5, gradient: 1e-3, loss: 0.3 },
  bf16: { full: 5e-2, quantized: 0.2, gradient: Infinity, loss: 1 },
} as const;

/** ‖actual − expected‖ / ‖expected‖. */
function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

function registerBlock(
  backend: Backend,
  file: GoldenFile,
  precision: "f32" | "bf16",
  print: (line: string) => void,
): void {
  const bounds = BOUNDS[precision];
  const golden = readGolden(file.path);
  const settings = goldenSettings(file) as BlockSettings;
  const { config, block } = loadBlock(golden, settings);
  const scheme = {
    weightBits: settings.bits.w,
    activationBits: settings.bits.a,
    kvBits: settings.bits.kv,
  };
  const recipe = recipeOf(settings);
  const program = blockProgram(config, 0);
  const description = { program, scheme };
  const [samples, time] = golden.get("x")!.shape;
  const width = time * settings.hidden;
  const rows = (name: string, first: number, count: number) =>
    golden.get(name)!.data.slice(first * width, (first + count) * width);
  const initial = () => {
    const params = new Map<string, Tensor>();
    for (const [name, { shape, data }] of golden)
      if (name.startsWith("init/")) params.set(name.slice(5), parameter(backend, shape, data));
    return params;
  };
  const release = (params: ReadonlyMap<string, Tensor>) => {
    for (const p of params.values()) freeTensor(backend, p);
  };
  const within = (actual: ArrayLike<number>, name: string, bound: number, what = name): number => {
    const error = relativeError(actual, golden.get(name)!.data);
    expect(error, `${what}: relative error`).toBeLessThanOrEqual(bound);
    return error;
  };

  describe(`block golden ${file.name} in ${precision}`, () => {
    test("full-precision output", () => {
      const weights = uploadBlock(backend, block);
      using g = new Graph(backend, { precision });
      const x = g.constant([samples * time, settings.hidden], golden.get("x")!.data);
      const y = runBlock(g, program, weights, plainHooks(weights), x, { layer: 0, batch: samples });
      const error = within(g.read(y), "y_fp", bounds.full);
      print(`     ${file.name} ${precision}: y_fp within ${error.toExponential(1)}`);
      freeBlock(backend, weights);
    });

    test("first loss and first gradient of every parameter", () => {
      const weights = uploadBlock(backend, block);
      const params = initial();
      using g = new Graph(backend, { precision, train: true });
      const x = g.constant([settings.batch * time, settings.hidden], rows("x", 0, settings.batch));
      const hooks = bindSimulated(g, description, weights, params);
      const y = runBlock(g, program, weights, hooks, x, { layer: 0, batch: settings.batch });
      const output = within(g.read(y), "y_quant_init", bounds.quantized);
      const loss = meanSquaredError(g, y, g.constant(y.shape, rows("y_fp", 0, settings.batch)));
      const value = g.scalar(loss);
      g.backward(loss, Float64Array.of(1 / value));
      let worst = 0;
      for (const [name, p] of params) {
        if (!p.grad) throw new Error(`${name} got no gradient`);
        worst = Math.max(worst, within(backend.read(p.grad), `grad1/${name}`, bounds.gradient));
      }
      print(
        `     ${file.name} ${precision}: y_quant_init within ${output.toExponential(1)}, ` +
          `first gradients within ${worst.toExponential(1)}`,
      );
      release(params);
      freeBlock(backend, weights);
    });

    test("losses of the whole training", () => {
      const weights = uploadBlock(backend, block);
      const params = initial();
      const perEpoch = samples / settings.batch;
      const totalSteps = perEpoch * settings.epochs;
      using trainer = new BlockTrainer({
        backend,
        block: description,
        weights,
        params,
        precision,
        finalLearningRate: recipe.finalLearningRate,
        rule: parameterRule(recipe),
        totalSteps,
        layer: 0,
        hidden: settings.hidden,
      });
      const losses: number[] = [];
      for (let step = 0; step < totalSteps; step++) {
        const first = (step % perEpoch) * settings.batch;
        losses.push(
          trainer.step({
            input: rows("x", first, settings.batch),
            target: rows("y_fp", first, settings.batch),
            sequences: settings.batch,
          }),
        );
      }
      const error = within(losses, "losses", bounds.loss);
      print(
        `     ${file.name} ${precision}: ${totalSteps} losses within ${error.toExponential(1)}`,
      );
      release(params);
      freeBlock(backend, weights);
    });
  });
}

/** Registers the checks of every block golden on `backend`. */
export function registerBlockGoldens(backend: Backend, print: (line: string) => void): void {
  for (const file of goldenFiles("block"))
    for (const precision of ["f32", "bf16"] as const)
      registerBlock(backend, file, precision, print);
}
