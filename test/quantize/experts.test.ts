/** Mixtures through the methods: every one brings a block's error down to what it is without experts' help, or says why not. */
import { describe, expect, it } from "vitest";
import { pooledParameters } from "../../src/quantize/block/pooling.js";
import { blockJob, CALIBRATED, quantizedBlock, SAMPLES, TIME } from "./block-job.js";

const FIXTURES = [
  ["mixtral", 2],
  ["qwen2-moe", 2],
  ["gpt-oss", 2],
  ["deepseek-v3", 2],
  ["llama4", 3],
  ["gemma4-moe", 2],
] as const;

describe.each(FIXTURES)("%s, layer %i", (name, layer) => {
  const parts = blockJob(name, layer);
  const { expertTokens = [] } = parts;

  it("counts the tokens of every expert", () => {
    const { experts } = parts.config;
    expect(expertTokens).toHaveLength(experts?.count ?? 0);
    expect(expertTokens.reduce((a, b) => a + b)).toBe(SAMPLES * TIME * (experts?.chosen ?? 0));
  });

  it.each(CALIBRATED)("%s calibrates, folds and runs", async (method) => {
    const { report, packed, y } = await quantizedBlock(method, parts);
    expect(y.every(Number.isFinite)).toBe(true);
    // The router reaches the packed block as it is.
    for (const [kept, { data }] of Object.entries(parts.block.kept))
      expect(packed.kept[kept].data).toEqual(data);
    if (method === "flatquant" && report)
      expect(report.errorFinal).toBeLessThan(0.9 * report.errorRounded);
  });
});

it("experts own as much of a transform as their tokens can tell", () => {
  const { program } = blockJob("mixtral", 2);
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
