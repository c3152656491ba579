/** Programs as the engines' kernels compute them: what is computed together, and when a value's place is free again. */
import { describe, expect, it } from "vitest";
import { planCudaBlock } from "../../src/backend/cuda/infer/block-plan.js";
import { fuse, NoKernel, type FusedStep } from "../../src/backend/contract/fuse.js";
import { Slots } from "../../src/backend/contract/slots.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { BlockBuilder } from "../../src/models/builder.js";
import type { ModelConfig } from "../../src/models/config.js";
import {
  BLOCK_INPUT,
  inputsOf,
  outputsOf,
  type BlockProgram,
} from "../../src/backend/contract/program.js";

const llama: ModelConfig = {
  architecture: "llama",
  hiddenSize: 64,
  intermediateSize: 96,
  numLayers: 1,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 32,
  vocabSize: 16,
  maxPositions: 64,
  norm: { kind: "rms", epsilon: 1e-6 },
  positions: { kind: "rope", theta: 10000, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: true,
};
const opt: ModelConfig = {
  ...llama,
  architecture: "opt",
  numKvHeads: 2,
  positions: { kind: "learned", offset: 2 },
  mlp: { gated: false, activation: "relu" },
};

const shape = (steps: readonly FusedStep[]) =>
  steps.map((fused) => {
    if (fused.op !== "site") return fused.op;
    const names = fused.products.map(({ step }) => step.linear).join("+");
    return `${fused.step.site}(${fused.input.kind}) ${names}${fused.accumulate ? " onto the sum" : ""}`;
  });

describe("fuse", () => {
  it("a LLaMA block: norms and the gate in the sites, sums in the products", () => {
    expect(shape(fuse(blockProgram(llama, 0)))).toEqual([
      "attn_in(norm) q+k+v",
      "cache",
      "attention",
      "attn_out(plain) o onto the sum",
      "mlp_in(norm) gate+up",
      "mlp_down(activation) down onto the sum",
    ]);
  });

  it("norms after the sums stand alone, in place", () => {
    const program = blockProgram({ ...opt, normPlacement: "after" }, 0);
    const steps = fuse(program);
    expect(shape(steps)).toEqual([
      "attn_in(plain) q+k+v",
      "cache",
      "attention",
      "attn_out(plain) o onto the sum",
      "norm",
      "mlp_in(plain) up",
      "mlp_down(activation) down onto the sum",
      "norm",
    ]);
    expect(steps.filter((step) => step.op === "norm").every(({ inPlace }) => inPlace)).toBe(true);
    // CUDA has kernels for them too (test/backend/cuda/infer/executor-suite.ts runs such models).
    const input = { slot: 0, column: 0, stride: 64 };
    expect(() => planCudaBlock(program, { sites: {} }, new Slots(), input)).not.toThrow();
  });

  it.each([
    ["llama", blockProgram(llama, 0)],
    ["qwen3", blockProgram({ ...llama, architecture: "qwen3" }, 0)],
    ["opt", blockProgram(opt, 0)],
    ["opt, norms after", blockProgram({ ...opt, normPlacement: "after" }, 0)],
  ])("%s: values are freed once, after their last reader, and all but the output", (_, program) => {
    const present = new Set<string>([BLOCK_INPUT]);
    for (const fused of fuse(program)) {
      if (fused.op === "site")
        for (const { out, onto } of fused.products) {
          if (onto !== undefined) expect(present.delete(onto), onto).toBe(true);
          present.add(out);
        }
      else if (fused.op === "norm") {
        if (fused.inPlace) expect(present.delete(fused.step.x)).toBe(true);
        present.add(fused.step.out);
      } else if (fused.op === "attention") present.add(fused.step.out);
      for (const value of fused.frees) expect(present.delete(value), value).toBe(true);
    }
    expect([...present]).toEqual([program.out]);
  });

  it("refuses by reason what the kernels do not compute", () => {
    const b = new BlockBuilder();
    const program = b.finish(b.scale(b.input, 0.5));
    expect(() => fuse(program)).toThrow(NoKernel);
    expect(() => fuse(program)).toThrow(/scaling a value whose width no step says/);
  });
});

describe("lowering", () => {
  it.each([llama, opt, { ...llama, architecture: "qwen3" }])(
    "$architecture: every value is written once, and before it is read",
    (config) => {
      const written = new Set<string>([BLOCK_INPUT]);
      const program: BlockProgram = blockProgram(config, 0);
      for (const step of program.steps) {
        for (const value of inputsOf(step)) expect(written.has(value), value).toBe(true);
        for (const value of outputsOf(step)) {
          expect(written.has(value), value).toBe(false);
          written.add(value);
        }
      }
    },
  );
});
