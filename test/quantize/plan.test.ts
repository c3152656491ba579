import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { Random } from "../../src/common/random.js";
import { blockProgram, parseModelConfig } from "../../src/models/architectures/index.js";
import { readBlock } from "../../src/models/weights.js";
import { sitesOf } from "../../src/backend/contract/program.js";
import { initialParameters } from "../../src/quantize/methods/flatquant/parameters.js";
import { planBlock } from "../../src/quantize/methods/flatquant/assignment.js";
import {
  flatQuantPresets,
  type FlatQuantRecipe,
} from "../../src/quantize/methods/flatquant/recipe.js";
import { METHODS } from "../../src/quantize/methods/index.js";
import { planRun } from "../../src/quantize/run/preview.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";

const model = (name: string) =>
  openCheckpoint(fileURLToPath(new URL(`../../models/${name}`, import.meta.url)));

describe("planBlock", () => {
  const recipes: Record<string, FlatQuantRecipe> = {
    ...flatQuantPresets,
    balanced: { ...flatQuantPresets.fast, keyBalance: true },
    bare: {
      ...flatQuantPresets.paper,
      parametrisation: "direct",
      diag: false,
      weightClip: false,
      activationClip: false,
      kvClip: false,
      keyBalance: false,
    },
  };

  it.each(
    ["tiny-llama", "tiny-opt"].flatMap((name) =>
      ["w4a4kv4", "w4a16kv16", "w16a8kv16", "w16a16kv2"].flatMap((scheme) =>
        Object.keys(recipes).map((recipe) => [name, scheme, recipe] as const),
      ),
    ),
  )("names what training starts from: %s, %s, %s", (name, written, recipeName) => {
    using checkpoint = model(name);
    const { architecture, config } = parseModelConfig(checkpoint.config);
    const scheme = parseScheme(written);
    const recipe = recipes[recipeName];
    const block = readBlock(checkpoint, architecture, config, 1);
    const maxima = Object.fromEntries(
      sitesOf(blockProgram(config, 1)).map(({ site, width }) => [
        site,
        new Float64Array(width).fill(1),
      ]),
    );
    const width = config.numKvHeads * config.headDim;
    const balance = { diag: new Float32Array(width), shift: new Float32Array(width) };
    const start = initialParameters(
      block,
      blockProgram(config, 0),
      scheme,
      recipe,
      maxima,
      Random.for(0),
      recipe.keyBalance && scheme.kvBits < 16 ? balance : undefined,
    );
    const { parameters } = planBlock(blockProgram(config, 1), scheme, recipe);
    expect(parameters).toEqual(
      Object.fromEntries([...start].map(([key, { shape }]) => [key, [...shape]])),
    );
  });
});

describe("planRun", () => {
  it("covers every method that has parameters", () => {
    for (const method of METHODS)
      expect({ method: method.name, plan: method.plan !== undefined }).toEqual({
        method: method.name,
        plan: method.calibrateBlock !== undefined,
      });
  });

  it("counts parameters and factors of the sites", () => {
    using backend = openBackend({ threads: 1 });
    using source = model("tiny-llama");
    const plan = planRun({
      backend,
      source,
      method: "flatquant",
      preset: "paper",
      scheme: parseScheme("w4a4kv4"),
    });
    expect(plan.transforms).toEqual({
      attn_in: { factors: [16, 16], diag: true },
      attn_out: { factors: [8], diag: false },
      k_head: { factors: [32], diag: false },
      v_head: { factors: [32], diag: false },
      mlp_in: { factors: [16, 16], diag: true },
      mlp_down: { factors: [22, 32], diag: true },
    });
    // Two seeds and the singular values of each factor, and the diag.
    expect(plan.parameterCounts.mlp_down).toBe(2 * 22 * 22 + 22 + 2 * 32 * 32 + 32 + 704);
    expect(plan.calibration).toMatchObject({ samples: 128, seqLen: 512, stepsPerBlock: 480 });
    expect(plan.recipe.seqLen).toBe(512);
  });
});
