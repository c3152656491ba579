/**
 * FlattenQuant: flattening leaves every layer's output alone, outliers that break per-tensor rounding do not break it,
 * the artifact computes what the simulated model does, and the numbers it reports are those of the definition.
 */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../../src/backend/open.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { packageRoot } from "../../../src/common/package.js";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { evaluatePerplexity } from "../../../src/evaluate/perplexity.js";
import type { BlockHooks } from "../../../src/models/interpret.js";
import { blockProgram, parseModelConfig } from "../../../src/models/architectures/index.js";
import { loadEndLayers } from "../../../src/models/language-model.js";
import { readBlock, uploadBlock } from "../../../src/models/weights.js";
import { embedAll, forwardAll } from "../../../src/quantize/calibration/forward.js";
import { captureMaxima, observeSites } from "../../../src/quantize/calibration/maxima.js";
import { StateStore } from "../../../src/quantize/calibration/prefix.js";
import { readDocuments, tokenizeCorpus } from "../../../src/quantize/calibration/text.js";
import { randomWindows } from "../../../src/quantize/schema/windows.js";
import {
  emptyHistogram,
  countValue,
  gridDivergence,
} from "../../../src/quantize/grids/divergence.js";
import { foldBlock } from "../../../src/quantize/block/fold.js";
import { packedLayer } from "../../../src/quantize/block/packed-block.js";
import { parseScheme } from "../../../src/backend/contract/scheme.js";
import { bindSimulated } from "../../../src/quantize/block/simulated-block.js";
import { readKeptParameters } from "../../../src/quantize/artifact/simulated-model.js";
import { frozen, Graph, type Tensor } from "../../../src/tensor/tensor.js";
import { quantize, type QuantizeOptions } from "../../../src/quantize/run/pipeline.js";
import { loadModel, loadSimulated } from "../../../src/quantize/artifact/load.js";
import {
  smoothBlock,
  smoothedMaxima,
} from "../../../src/quantize/methods/flattenquant/smoothing.js";
import {
  flatten,
  truncationThreshold,
  tukeyFence,
} from "../../../src/quantize/methods/flattenquant/thresholds.js";
import { columnMaxima, splitRows } from "../../../src/quantize/transforms/split.js";
import { Random } from "../../../src/common/random.js";
import { temporaryDirectory } from "../../checkpoint/files.js";
import { writeFirstBlocks } from "../../models/first-blocks.js";
import { sitesOf, type LinearName } from "../../../src/backend/contract/program.js";
import { plantOutliers } from "./outliers.js";
import { digest, FEW, smallCalibration } from "./support.js";

const directory = temporaryDirectory();
const calibration = smallCalibration(directory);
const backend = openBackend({ device: "cpu" });
const opened = new Map<string, ReturnType<typeof openCheckpoint>>();

function source(name: string) {
  let checkpoint = opened.get(name);
  if (!checkpoint) opened.set(name, (checkpoint = openCheckpoint(modelPath(name))));
  return checkpoint;
}

function modelPath(name: string): string {
  return join(packageRoot, "models", name);
}

afterAll(() => {
  for (const checkpoint of opened.values()) checkpoint[Symbol.dispose]();
  backend[Symbol.dispose]();
});

function run(name: string, options: Partial<QuantizeOptions> = {}) {
  const out = join(directory, name);
  const { recipe, ...rest } = options;
  return quantize({
    backend,
    source: source("tiny-opt"),
    out,
    method: "flattenquant",
    recipe: { ...FEW, ...recipe },
    calibration,
    scheme: "w4a4kv8",
    ...rest,
  });
}

describe("statistics", () => {
  it("takes Tukey's fence from interpolated quartiles and thresholds from what lies inside", () => {
    // Quartiles of 1 … 9 are 3 and 7, so the fence is 13; 40 is out.
    const values = Float64Array.of(5, 1, 9, 3, 7, 2, 8, 4, 6);
    expect(tukeyFence(values)).toBe(13);
    const outlying = Float64Array.of(...values.map((v) => v), 40);
    const fence = tukeyFence(outlying);
    // Quartiles of ten values at 2.25 and 6.75: 3.25 and 7.75.
    expect(fence).toBeCloseTo(7.75 + 1.5 * 4.5, 12);
    expect(truncationThreshold(outlying, 1.3)).toBeCloseTo(1.3 * 5, 12);
    // Where β times the mean is above the largest value, that value does.
    expect(truncationThreshold(Float64Array.of(2, 2, 2), 1.3)).toBe(2);
  });

  it("finds no divergence where the grid has a level for every value, and more at fewer bits", () => {
    const onGrid = emptyHistogram(7);
    for (let level = -7; level <= 7; level++) countValue(onGrid, level * 0.999, 10 + level);
    expect(gridDivergence(onGrid, 4)).toBe(0);
    const normal = emptyHistogram(4);
    const random = new Random(3);
    for (let i = 0; i < 200_000; i++) countValue(normal, random.normal(), 1);
    const [four, eight] = [gridDivergence(normal, 4), gridDivergence(normal, 8)];
    // A density's variation inside a step Δ costs ∫ Δ²·p'²/(24·p) = Δ²/(24σ²) nats: Δ = 4/7 at four bits; at eight
    // it is less than sampling noise, (bins − levels) / (2·count) ≈ 0.01.
    expect(four - eight).toBeGreaterThan((0.7 * (4 / 7) ** 2) / 24);
    expect(four - eight).toBeLessThan((1.3 * (4 / 7) ** 2) / 24);
  });
});

describe("flattening without quantization", () => {
  it.each([
    ["tiny-opt", "fold"],
    ["tiny-opt", "kernel"],
    ["tiny-llama", "fold"],
  ] as const)(
    "reproduces every layer's output of %s on real activations, row factors by %s",
    async (name, rows) => {
      const reference = createReferenceBackend({ realType: "f64" });
      const checkpoint = source(name);
      const { architecture, config } = parseModelConfig(checkpoint.config);
      const tokens = tokenizeCorpus(
        loadTokenizer(checkpoint),
        readDocuments("wikitext2").map((text) => text.slice(0, 3000)),
      );
      const windows = randomWindows(tokens, 1, 12, 1);
      const endLayers = loadEndLayers(reference, checkpoint, architecture, config);
      let inputs = embedAll(reference, config, endLayers, windows);
      let checked = 0;
      for (let layer = 0; layer < config.numLayers; layer += 2) {
        const block = readBlock(checkpoint, architecture, config, layer);
        const weights = uploadBlock(reference, block);
        const program = blockProgram(config, layer);
        const maxima = captureMaxima(reference, program, weights, inputs, layer);
        const smoothed = smoothBlock(block, program, maxima, { alpha: 0.5, rows });
        observeSites(
          { backend: reference, program, weights, inputs, layer },
          ({ g, site, x, roles, outputs }) => {
            const data = g.read(x);
            roles.forEach((role, i) => {
              const weight = smoothed.weights[role] ?? expect.fail();
              const [outputsOfRole, cols] = block.linears[role]?.weight.shape ?? expect.fail();
              const found = flatOutput(data, weight, outputsOfRole, cols);
              const bias = block.linears[role]?.bias?.data;
              const expected = Float64Array.from(g.read(outputs[i]));
              const scale = expected.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
              const factors = rowFactorsOf(role);
              found.forEach((value, e) => {
                const n = e % outputsOfRole;
                const y = value / (factors?.[n] ?? 1) + (bias?.[n] ?? 0);
                // Float64 sums of at most 1024 products, factors kept to 24 bits cancel exactly.
                expect(Math.abs(y - expected[e])).toBeLessThan(1e-11 * scale);
              });
              checked++;
            });

            function flatOutput(
              data: ArrayLike<number>,
              weight: Float64Array,
              height: number,
              cols: number,
            ): Float64Array {
              const factor = smoothed.factors[site] ?? expect.fail();
              const scaled = Float64Array.from(data, (v, e) => v * factor[e % cols]);
              const { split, activationThreshold, weightThreshold } = flatten(
                smoothedMaxima(site, maxima, smoothed.factors),
                columnMaxima(weight, cols),
                { beta: 1.3, maxExpansion: 1.25 },
              );
              expect(split.channel.length).toBeGreaterThan(0);
              const { channel, part, weightPart } = split;
              const time = data.length / cols;
              const k = cols + channel.length;
              const flatX = splitRows(scaled, time, cols, activationThreshold, channel, part);
              const flatW = splitRows(weight, height, cols, weightThreshold, channel, weightPart);
              const out = new Float64Array(time * height);
              for (let t = 0; t < time; t++)
                for (let n = 0; n < height; n++) {
                  let sum = 0;
                  for (let j = 0; j < k; j++) sum += flatX[t * k + j] * flatW[n * k + j];
                  out[t * height + n] = sum;
                }
              return out;
            }
          },
        );
        const outputs = { ...inputs, data: new Float32Array(inputs.data.length) };
        await forwardAll(reference, program, weights, inputs, outputs, layer, undefined);
        inputs = outputs;

        /** What smoothing of the site after it put into a linear's rows. */
        function rowFactorsOf(role: LinearName): Float64Array | undefined {
          const next = role === "up" ? "mlp_down" : role === "v" ? "attn_out" : undefined;
          const factors = next && smoothed.factors[next];
          if (!factors || rows === "kernel") return undefined;
          if (role === "up") return factors;
          const perGroup = config.numHeads / config.numKvHeads;
          return Float64Array.from({ length: config.numKvHeads * config.headDim }, (_, row) => {
            const head = Math.floor(row / config.headDim) * perGroup;
            return factors[head * config.headDim + (row % config.headDim)];
          });
        }
      }
      expect(checked).toBe(Math.ceil(config.numLayers / 2) * (name === "tiny-opt" ? 6 : 7));
    },
  );
});

describe("the pipeline", () => {
  it("gives the same bytes again, also on shared states, and its table says what every linear got", async () => {
    const states = new StateStore(1e8);
    const path = join(directory, "two-blocks");
    await writeFirstBlocks(modelPath("tiny-opt"), path, 2);
    using two = openCheckpoint(path);
    const same = { source: two, recipe: { rounding: "rtn" } };
    await run("other", { ...same, states, recipe: { ...same.recipe, beta: 1.2 } });
    await run("shared", { ...same, states });
    const { info } = await run("alone", same);
    expect(digest(join(directory, "shared"))).toBe(digest(join(directory, "alone")));
    expect(digest(join(directory, "other"))).not.toBe(digest(join(directory, "alone")));
    for (const { linears } of info.layers) {
      expect(Object.keys(linears ?? {})).toHaveLength(6);
      for (const facts of Object.values(linears ?? {})) {
        expect([4, 8]).toContain(facts.bits);
        expect(facts.expansion).toBeLessThanOrEqual(1.25);
        expect(facts.errorAfter).toBeLessThan(1);
      }
    }
  });

  it("packs what the simulated model computes", async () => {
    await run("packed", { scheme: "w8a8kv8", recipe: { rounding: "rtn" }, keepParameters: true });
    const path = join(directory, "packed");
    using packed = loadModel(backend, path);
    using simulated = await loadSimulated(backend, path, modelPath("tiny-opt"));
    const score = async (model: typeof packed.model) =>
      (await evaluatePerplexity(model, text(), { seqLen: 128, limit: 8 })).perplexity;
    const [a, b] = [await score(packed.model), await score(simulated.model)];
    // Norm gains and biases lie in 16 bits in the artifact: 2⁻¹² relative, or 1/30 of a step of 8 bits at the largest
    // values, beside the rounding's half step.
    expect(Math.abs(a / b - 1)).toBeLessThan(0.003);
  });

  it.each(["fold", "kernel"] as const)(
    "folds each linear to what the simulated block computes, row factors by %s",
    async (rows) => {
      const recipe = { rounding: "rtn", rows, criterion: "excess", gamma: 0.03 };
      await run(`linears-${rows}`, { recipe, keepParameters: true });
      const parameters = readKeptParameters(join(directory, `linears-${rows}`))[2];
      const { architecture, config } = parseModelConfig(source("tiny-opt").config);
      const block = readBlock(source("tiny-opt"), architecture, config, 2);
      const scheme = parseScheme("w4a4kv8");
      const description = { program: blockProgram(config, 0), scheme };
      const packed = packedLayer(
        backend,
        description.program,
        scheme,
        foldBlock(block, description, parameters),
      );
      const tensors = new Map<string, Tensor>();
      for (const [name, { shape, data }] of parameters)
        tensors.set(name, frozen(backend, shape, data));
      using g = new Graph(backend);
      const simulated = bindSimulated(g, description, uploadBlock(backend, block), tensors);
      const random = new Random(7);
      for (const { site, linears: roles, width } of sitesOf(description.program)) {
        const x = Float32Array.from({ length: 40 * width }, () => random.normal());
        const diag = parameters.get(`${site}.diag`)?.data;
        // What folds before the site has been applied when the packed block's activation arrives.
        const carried = simulated.carries(site);
        const folded = diag ? x.map((v, i) => v * diag[i % width]) : x;
        const read = (hooks: BlockHooks, data: Float32Array) => {
          const input = g.constant([40, width], data);
          return hooks.linears(g, site, hooks.transform?.(g, site, input) ?? input, roles);
        };
        const before = read(simulated, carried ? folded : x);
        const after = read(packed.hooks, folded);
        roles.forEach((role, i) => {
          const [expected, found] = [g.read(before[i]), g.read(after[i])];
          let difference = 0;
          let power = 0;
          found.forEach((value, e) => {
            difference += (value - expected[e]) ** 2;
            power += expected[e] ** 2;
          });
          // Weights are folded in float64 and simulated in float32: one value in some 10⁵ lies so near a tie that its
          // code differs, by one step of at most seven.
          expect(difference / power, role).toBeLessThan(1e-5);
        });
      }
    },
  );

  it("runs every linear at 8 bits for a w8a8 scheme, and refuses others", async () => {
    const { info } = await run("eight", { scheme: "w8a8kv16", recipe: { rounding: "rtn" } });
    const bits = info.layers.flatMap(({ linears }) => Object.values(linears ?? {}));
    expect(new Set(bits.map((facts) => facts.bits))).toEqual(new Set([8]));
    await expect(run("never", { scheme: "w4a8kv16" })).rejects.toThrow(/4 or at 8 bits/);
  });
});

function text(): Int32Array {
  return tokenizeCorpus(
    loadTokenizer(source("tiny-opt")),
    readDocuments("wikitext2").map((text) => text.slice(0, 12_000)),
  );
}

describe("planted outliers", () => {
  it("break per-tensor rounding at 8 bits, and FlattenQuant holds within 2% of full precision", async () => {
    const path = join(directory, "planted");
    await plantOutliers(modelPath("tiny-opt"), path, { seed: 1, perBlock: 8, largest: 60 });
    using planted = openCheckpoint(path);
    const tokens = text();
    const score = async (at: string) => {
      using loaded = loadModel(backend, at);
      return (await evaluatePerplexity(loaded.model, tokens, { seqLen: 128, limit: 12 }))
        .perplexity;
    };
    const original = await score(modelPath("tiny-opt"));
    const full = await score(path);
    // The rescaling is exact but for float16: the function is the same.
    expect(Math.abs(full / original - 1)).toBeLessThan(0.005);
    const options = { source: planted, scheme: "w8a8kv16" };
    const few = { samples: 8, seqLen: 256 };
    await run("planted-rtn", { ...options, method: "rtn", preset: "tensor", recipe: few });
    await run("planted-flat", { ...options, recipe: { ...few, rounding: "rtn" } });
    // Measured with 8 windows and with 16: 4.2 and 3.9 times, 0.970 and 0.977.
    expect(await score(join(directory, "planted-rtn"))).toBeGreaterThan(1.1 * full);
    expect(await score(join(directory, "planted-flat"))).toBeLessThan(1.02 * full);
  });
});
