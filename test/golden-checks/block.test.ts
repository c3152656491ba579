/**
 * FlatQuant's training of one block against float64 vectors: every block-*.safetensors in the golden directory,
 * with its JSON of settings. Checked: the full-precision output, the quantized output before and after, every
 * loss, the first gradient of every parameter, and every final parameter.
 */
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { runBlock, plainHooks } from "../../src/models/interpret.js";
import { uploadBlock } from "../../src/models/weights.js";
import { bindSimulated } from "../../src/quantize/block/simulated-block.js";
import { initialParameters } from "../../src/quantize/methods/flatquant/parameters.js";
import { BlockTrainer } from "../../src/quantize/block/block-training.js";
import { parameterRule } from "../../src/quantize/methods/flatquant/train.js";
import { Random } from "../../src/common/random.js";
import { meanSquaredError } from "../../src/tensor/ops/index.js";
import { Graph, parameter, type Tensor } from "../../src/tensor/tensor.js";
import { loadBlock, recipeOf, type BlockSettings } from "./block-golden.js";
import { expectClose, goldenFiles, goldenSettings, readGolden } from "./support.js";
import { blockProgram } from "../../src/models/architectures/index.js";

const backend = createReferenceBackend({ realType: "f64" });

describe.each(goldenFiles("block"))("$name", (file) => {
  const golden = readGolden(file.path);
  const settings = goldenSettings(file) as BlockSettings;
  const { config, block } = loadBlock(golden, settings);
  const weights = uploadBlock(backend, block);
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

  const initial = () => {
    const params = new Map<string, Tensor>();
    for (const [name, { shape, data }] of golden)
      if (name.startsWith("init/")) params.set(name.slice(5), parameter(backend, shape, data));
    return params;
  };
  const rows = (name: string, first: number, count: number) =>
    golden.get(name)!.data.slice(first * width, (first + count) * width);

  it("full-precision output", () => {
    using g = new Graph(backend);
    const x = g.constant([samples * time, settings.hidden], golden.get("x")!.data);
    const y = runBlock(g, program, weights, plainHooks(weights), x, {
      layer: 0,
      batch: samples,
    });
    expectClose(g.read(y), golden.get("y_fp")!.data, "y_fp");
  });

  it("names and shapes of the parameters are the ones we would make", () => {
    const maxima = Object.fromEntries(
      [
        ["attn_in", settings.hidden],
        ["mlp_in", settings.hidden],
        ["mlp_down", settings.inter],
        ["attn_out", settings.heads * settings.head_dim],
      ].map(([site, n]) => [site, new Float64Array(n as number).fill(1)]),
    ) as never;
    const ours = initialParameters(
      block,
      blockProgram(config, 0),
      scheme,
      recipe,
      maxima,
      new Random(1),
    );
    const expected = [...initial()].map(([name, t]) => `${name} ${t.shape.join("×")}`);
    expect([...ours].map(([name, t]) => `${name} ${t.shape.join("×")}`).sort()).toEqual(
      expected.sort(),
    );
  });

  it("first gradient of every parameter", () => {
    const params = initial();
    using g = new Graph(backend, { train: true });
    const x = g.constant([settings.batch * time, settings.hidden], rows("x", 0, settings.batch));
    const y = runBlock(g, program, weights, bindSimulated(g, description, weights, params), x, {
      layer: 0,
      batch: settings.batch,
    });
    expectClose(g.read(y), golden.get("y_quant_init")!.data, "y_quant_init");
    const loss = meanSquaredError(g, y, g.constant(y.shape, rows("y_fp", 0, settings.batch)));
    const value = g.scalar(loss);
    expectClose([value], [golden.get("losses")!.data[0]], "first loss");
    g.backward(loss, Float64Array.of(1 / value));
    for (const [name, p] of params) {
      if (!p.grad) throw new Error(`${name} got no gradient`);
      expectClose(backend.read(p.grad), golden.get(`grad1/${name}`)!.data, `grad1/${name}`);
    }
  });

  it("all losses, final parameters and final output", () => {
    const params = initial();
    const perEpoch = samples / settings.batch;
    const totalSteps = perEpoch * settings.epochs;
    using trainer = new BlockTrainer({
      backend,
      block: description,
      weights,
      params,
      precision: recipe.precision,
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
    expectClose(losses, golden.get("losses")!.data, "losses");
    for (const [name, p] of params)
      expectClose(backend.read(p.buffer!), golden.get(`final/${name}`)!.data, `final/${name}`);
    using g = new Graph(backend);
    const x = g.constant([settings.batch * time, settings.hidden], rows("x", 0, settings.batch));
    const y = runBlock(g, program, weights, bindSimulated(g, description, weights, params), x, {
      layer: 0,
      batch: settings.batch,
    });
    expectClose(g.read(y), golden.get("y_quant_final")!.data, "y_quant_final");
  });

  it("clipping logits learn at their own rate", () => {
    const rule = parameterRule(recipe);
    expect(rule("clip.k.a_max").learningRate).toBe(settings.lr_clip);
    expect(rule("attn_in.u_left").learningRate).toBe(settings.lr);
  });
});
