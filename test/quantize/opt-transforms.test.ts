/**
 * FlatQuant's transforms on OPT, with norms before and after the residual sums: without grids they must leave the
 * logits alone, in the simulated model and in what folding makes of it; where a diag would scale the residual stream
 * there is none.
 */
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { Random } from "../../src/common/random.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { readBlock, type HostBlock } from "../../src/models/weights.js";
import { foldBlock } from "../../src/quantize/block/fold.js";
import type { ParameterValues } from "../../src/quantize/schema/parameters.js";
import { initialParameters } from "../../src/quantize/methods/flatquant/parameters.js";
import { flatQuantPresets } from "../../src/quantize/methods/flatquant/recipe.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { packedLayer } from "../../src/quantize/block/packed-block.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { simulatedModel } from "../../src/quantize/artifact/simulated-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import type { ModelConfig } from "../../src/models/config.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { OPT_VARIANTS, writeRandomOpt } from "../models/random-opt.js";
import { blockProgram } from "../../src/models/architectures/index.js";

const directory = temporaryDirectory();
const backend = createReferenceBackend({ realType: "f64" });
const unquantized = parseScheme("w16a16kv16");
const ids = Int32Array.of(3, 17, 0, 30, 8, 8, 21);

/** Every parameter of a W4A4KV4 run, none at a value where it would do nothing. */
function parameters(block: HostBlock, config: ModelConfig, random: Random): ParameterValues {
  const maxima = Object.fromEntries(
    [
      ["attn_in", config.hiddenSize],
      ["attn_out", config.hiddenSize],
      ["mlp_in", config.hiddenSize],
      ["mlp_down", config.intermediateSize],
    ].map(([site, n]) => [site, new Float64Array(n as number).fill(1)]),
  ) as never;
  const scheme = parseScheme("w4a4kv4");
  const values = initialParameters(
    block,
    blockProgram(config, 0),
    scheme,
    flatQuantPresets.paper,
    maxima,
    random,
  );
  for (const [name, { data }] of values)
    for (let i = 0; i < data.length; i++)
      if (/\.(s|diag)/.test(name)) data[i] = 0.5 + random.uniform();
  return values;
}

function logits(model: LanguageModel): Float64Array {
  using g = new Graph(backend);
  return Float64Array.from(g.read(model.logits(g, model.hidden(g, ids))));
}

function largestDifference(a: Float64Array, b: Float64Array): number {
  return a.reduce((worst, x, i) => Math.max(worst, Math.abs(x - b[i])), 0);
}

describe.each(Object.entries(OPT_VARIANTS))("%s", (name, variant) => {
  const path = join(directory, name.replace(/\W+/g, "-"));
  const ready = writeRandomOpt(path, variant, 8);
  const load = async () => {
    await ready;
    const source = openCheckpoint(path);
    const original = LanguageModel.load(backend, source);
    const { architecture, config } = original;
    const random = new Random(2);
    const hosts = original.layers.map((_, l) => readBlock(source, architecture, config, l));
    const values = hosts.map((host) => parameters(host, config, random));
    return { source, original, hosts, values };
  };

  it("transforms without grids leave the logits unchanged, in float64", async () => {
    const { source, original, values } = await load();
    const simulated = simulatedModel(backend, source, unquantized, values);
    expect(largestDifference(logits(simulated), logits(original))).toBeLessThan(1e-10);
  });

  it("folded into weights, norms and upstream rows they do so to the float32 of what folding returns", async () => {
    const { original, hosts, values } = await load();
    const { config, architecture, endLayers } = original;
    const layers = hosts.map((host, l) =>
      packedLayer(
        backend,
        blockProgram(config, l),
        unquantized,
        foldBlock(host, { program: blockProgram(config, 0), scheme: unquantized }, values[l]),
      ),
    );
    const folded = new LanguageModel(backend, architecture, config, endLayers, layers);
    // Three blocks of a few hundred float32 roundings each (6e-8), logits of size 10.
    expect(largestDifference(logits(folded), logits(original))).toBeLessThan(1e-4);
  });

  it("a diag stands where it can be folded, and nowhere else", async () => {
    const { original, hosts, values } = await load();
    const diags = [...values[0].keys()].filter((key) => key.endsWith(".diag")).sort();
    expect(diags).toEqual(
      variant.do_layer_norm_before
        ? ["attn_in.diag", "mlp_down.diag", "mlp_in.diag"]
        : ["mlp_down.diag"],
    );
    if (variant.do_layer_norm_before) return;
    const size = original.config.hiddenSize;
    const wrong = new Map(values[0]).set("mlp_in.diag", {
      shape: [size],
      data: new Float64Array(size).fill(2),
    });
    const description = { program: blockProgram(original.config, 0), scheme: unquantized };
    expect(() => foldBlock(hosts[0], description, wrong)).toThrow(/diag at mlp_in/);
  });
});

describe("the 350M arrangement through the whole pipeline", () => {
  const path = join(directory, "with-tokenizer");
  const variant = OPT_VARIANTS["norms after, narrow embedding (350M)"];
  const ready = writeRandomOpt(path, variant, 8, 4096).then(() => {
    for (const file of ["tokenizer.json", "tokenizer_config.json"])
      copyFileSync(join(packageRoot, "models", "tiny-opt", file), join(path, file));
  });

  it("an artifact at 16 bits has the original's logits: projections are kept, no final norm is missed", async () => {
    await ready;
    const source = openCheckpoint(path);
    const out = join(directory, "w16");
    await quantize({ backend, source, out, method: "rtn", scheme: "w16a16kv16" });
    using original = LanguageModel.load(backend, source);
    using loaded = loadModel(backend, out);
    const expected = logits(original);
    const largest = expected.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
    // Half precision (5e-4 relative) of each weight along three blocks.
    expect(largestDifference(logits(loaded.model), expected)).toBeLessThan(5e-3 * largest);
  });

  it("learning, distillation and gptq run; with gptq blocks end closer than with plain rounding", async () => {
    await ready;
    const source = openCheckpoint(path);
    const { layers, info } = await quantize({
      backend,
      source,
      out: join(directory, "w4"),
      scheme: "w4a4kv4",
      preset: "paper",
      calibration: join(packageRoot, "LICENSE"),
      recipe: {
        samples: 16,
        seqLen: 10,
        epochs: 4,
        batch: 4,
        rounding: "gptq",
        distillation: { steps: 2, batch: 2 },
      },
    });
    expect(info.refineLoss).toHaveLength(2);
    // Random weights have no outliers for a transform to flatten; what must gain is the choice of integers.
    for (const [i, layer] of layers.entries())
      expect(info.layers[i].errorPacked).toBeLessThan(
        Math.min(layer.errorRounded, layer.errorFinal),
      );
  });
});
