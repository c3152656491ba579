/** Mixtures through the methods: every one brings a block's error down to what it is without experts' help, or says why not. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { runBlock, plainHooks } from "../../src/models/interpret.js";
import { parseSource } from "../../src/models/source.js";
import { readBlock, uploadBlock } from "../../src/models/weights.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { Random } from "../../src/common/random.js";
import { silentProgress } from "../../src/common/progress.js";
import { pooledParameters } from "../../src/quantize/block/pooling.js";
import { foldBlock } from "../../src/quantize/block/fold.js";
import { packedLayer } from "../../src/quantize/block/packed-block.js";
import { countExpertTokens } from "../../src/quantize/calibration/experts.js";
import { METHODS, findMethod } from "../../src/quantize/methods/index.js";
import { resolveRecipe } from "../../src/quantize/run/pipeline.js";
import { Graph } from "../../src/tensor/tensor.js";

const SAMPLES = 4;
const TIME = 64;

/** A fixture's last block, with inputs of which some channels are large. */
function job(name: string, layer: number) {
  const backend = createCpuBackend();
  using source = openCheckpoint(join(import.meta.dirname, "../fixtures/architectures", name));
  const { architecture, config } = parseSource(source);
  const block = readBlock(source, architecture, config, layer);
  const weights = uploadBlock(backend, block);
  const program = blockProgram(config, layer);
  const random = new Random(7);
  const hidden = config.hiddenSize;
  const data = Float32Array.from(
    { length: SAMPLES * TIME * hidden },
    (_, i) => random.normal() * (i % hidden < 2 ? 6 : 1),
  );
  const inputs = { data, samples: SAMPLES, time: TIME, hidden };
  const targets = { ...inputs, data: new Float32Array(data.length) };
  for (let s = 0; s < SAMPLES; s++) {
    using g = new Graph(backend);
    const at = s * TIME * hidden;
    const x = g.constant([TIME, hidden], data.subarray(at, at + TIME * hidden));
    const y = runBlock(g, program, weights, plainHooks(weights), x, { layer, batch: 1 });
    targets.data.set(g.read(y), at);
  }
  const expertTokens = countExpertTokens(backend, program, weights, inputs, layer);
  const progress = silentProgress.task("", 0);
  const common = { backend, config, layer, program, seed: 3, block, weights };
  return { ...common, inputs, targets, expertTokens, progress };
}

const FIXTURES = [
  ["mixtral", 2],
  ["qwen2-moe", 2],
  ["gpt-oss", 2],
  ["deepseek-v3", 2],
  ["llama4", 3],
  ["gemma4-moe", 2],
] as const;

describe.each(FIXTURES)("%s, layer %i", (name, layer) => {
  const parts = job(name, layer);
  const { program, expertTokens = [] } = parts;

  it("counts the tokens of every expert", () => {
    const { experts } = parts.config;
    expect(expertTokens).toHaveLength(experts?.count ?? 0);
    expect(expertTokens.reduce((a, b) => a + b)).toBe(SAMPLES * TIME * (experts?.chosen ?? 0));
  });

  it.each(METHODS.filter((method) => !("keep" in method)).map((method) => method.name))(
    "%s calibrates, folds and runs",
    async (method) => {
      const found = findMethod(method);
      const scheme = parseScheme(method === "flattenquant" ? "w8a8kv16" : "w4a4kv4");
      const { recipe } = resolveRecipe(
        found,
        undefined,
        method === "flatquant" || method === "spinquant" ? { samples: SAMPLES, seqLen: TIME } : {},
      );
      const outcome = await found.calibrateBlock?.({ ...parts, scheme, recipe });
      const parameters = outcome?.parameters ?? new Map();
      const packed = foldBlock(parts.block, { program, scheme }, parameters);
      const { weights, hooks } = packedLayer(parts.backend, program, scheme, packed);
      using g = new Graph(parts.backend);
      const { hidden } = parts.inputs;
      const shape = [TIME, hidden];
      const x = g.constant(shape, parts.inputs.data.subarray(0, TIME * hidden));
      const y = g.read(runBlock(g, program, weights, hooks, x, { layer, batch: 1 }));
      expect(y.every(Number.isFinite)).toBe(true);
      // The router reaches the packed block as it is.
      for (const [kept, { data }] of Object.entries(parts.block.kept))
        expect(packed.kept[kept].data).toEqual(data);
      if (method === "flatquant" && outcome)
        expect(outcome.report.errorFinal).toBeLessThan(0.9 * outcome.report.errorRounded);
    },
  );
});

it("experts own as much of a transform as their tokens can tell", () => {
  const { program } = job("mixtral", 2);
  const matrix = { shape: [4, 4], data: new Float64Array(16) };
  const values = new Map([
    ["experts.0.mlp_down.u_left", matrix],
    ["experts.1.mlp_down.u_left", matrix],
    ["mlp_in.u_left", matrix],
    ["experts.1.mlp_down.r_left", matrix],
    ["clip.block_sparse_moe.experts.1.w2.a_max", { shape: [1], data: Float64Array.of(4) }],
    ["clip.self_attn.q_proj.a_max", { shape: [1], data: Float64Array.of(4) }],
  ]);
  expect(Object.fromEntries(pooledParameters(program, values, [0, 16]))).toEqual({
    "experts.0.mlp_down.u_left": { shared: "experts.pooled.mlp_down.u_left", own: 0 },
    "experts.1.mlp_down.u_left": { shared: "experts.pooled.mlp_down.u_left", own: 0.5 },
    "clip.block_sparse_moe.experts.1.w2.a_max": {
      shared: "clip.experts.pooled.down.a_max",
      own: 0.5,
    },
  });
});
