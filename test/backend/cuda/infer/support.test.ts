/** Which models the CUDA engine takes, and how their sites and linears are laid out for it. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../../../../src/checkpoint/open.js";
import { packageRoot } from "../../../../src/common/package.js";
import { siteGeometry } from "../../../../src/backend/cuda/infer/layout.js";
import {
  cudaObstacle,
  NoCudaKernel,
  plainShape,
  planSite,
} from "../../../../src/backend/cuda/infer/support.js";
import { codeSets, groupLinears } from "../../../../src/backend/cuda/infer/weights.js";
import { blockPrograms, parseModelConfig } from "../../../../src/models/architectures/index.js";
import type { ModelConfig } from "../../../../src/models/config.js";
import { parseScheme, type Scheme } from "../../../../src/backend/contract/scheme.js";
import { modelShape } from "../../../../src/engine/source.js";

const SHARED = 227 * 1024;

function configOf(name: string): ModelConfig {
  using checkpoint = openCheckpoint(join(packageRoot, "models", name));
  return parseModelConfig(checkpoint.config).config;
}

/** Why a model of some configuration cannot run; by default quantized. */
function obstacle(config: ModelConfig, scheme: Scheme): string | undefined {
  return cudaObstacle({
    shape: modelShape(config),
    programs: blockPrograms(config),
    scheme,
    endLayers: {},
  });
}

describe("what stands in the way", () => {
  const llama = configOf("tiny-llama");

  it.each([
    ...["w4a4kv4", "w2a2kv2", "w3a8kv3", "w8a8kv16", "w6a6kv4"],
    ...["w4g64a4g64kv4", "w4g32oa8kv4h8", "w8a4g16okv4h4g32"],
  ])("nothing: %s", (scheme) => {
    expect(obstacle(llama, parseScheme(scheme))).toBeUndefined();
  });

  it.each([
    ["w4a4kv8", /cache of 8 bits/],
    ["w4a16kv4", /activations of 16/],
    ["w4g64a8g64okv4", /activations of 8 bits with offsets/],
    ["w16a4kv4", /weights of 16/],
  ])("%s", (scheme, reason) => {
    expect(obstacle(llama, parseScheme(scheme))).toMatch(reason);
  });

  it("an original, an OPT, heads, and MLPs of another kind", () => {
    const scheme = parseScheme("w4a4kv4");
    expect(obstacle(llama, parseScheme("w16a16kv16"))).toMatch(/not quantized/);
    expect(obstacle(configOf("tiny-opt"), scheme)).toMatch(/learned positions/);
    expect(obstacle({ ...llama, headDim: 80 }, scheme)).toMatch(/heads of 80 columns/);
    expect(obstacle({ ...llama, headDim: 256 }, scheme)).toMatch(/heads of 256 columns/);
    const mlp = { gated: true, activation: "gelu" } as const;
    expect(obstacle({ ...llama, mlp }, scheme)).toBeUndefined();
    // Norms after residual sums: test/engine/fuse.test.ts.
    expect(obstacle(llama, { ...scheme, queryBits: 4 })).toMatch(/queries/);
  });
});

describe("sites", () => {
  it.each([48, 80, 256, 576, 704, 1536, 4096, 8960, 11008, 14336])(
    "of %i columns fit a block of threads without a transform",
    (width) => {
      const shape = plainShape(width);
      expect(shape.left * shape.right).toBe(width);
      expect(siteGeometry(shape).threads).toBeLessThanOrEqual(1024);
      expect(planSite(shape, SHARED).precise).toBe(true);
    },
  );

  it("take single halves where two do not fit, and refuse what does not fit at all", () => {
    const both = { hasLeft: true, hasRight: true };
    expect(planSite({ left: 112, right: 128, ...both }, SHARED).precise).toBe(true);
    expect(planSite({ left: 128, right: 224, ...both }, SHARED).precise).toBe(false);
    expect(() => planSite({ left: 1, right: 4096, ...both }, SHARED)).toThrow(NoCudaKernel);
  });
});

describe("linears of a site", () => {
  it("go one by one where their grids differ", () => {
    const grids = ["4 32 offsets", "4 32 offsets", "8 16 "];
    expect(groupLinears([256, 128, 128], [0, 0, 0], false, grids)).toHaveLength(3);
    expect(groupLinears([704, 704], [0, 0], true, ["4 64 ", "4 64 "])).toHaveLength(1);
  });

  it("share a set of codes where their clips are equal", () => {
    const clip = { max: 4, min: 5 };
    expect(codeSets([undefined, undefined, undefined])).toEqual({
      setOf: [0, 0, 0],
      factors: [[1, 1]],
    });
    const { setOf, factors } = codeSets([clip, { ...clip }, { max: 0, min: 5 }]);
    expect(setOf).toEqual([0, 0, 1]);
    expect(factors[1][0]).toBe(0.5);
  });

  it("go in one product when they read one set, or when sets begin at whole tiles", () => {
    expect(groupLinears([256, 128, 128], [0, 0, 0], false)).toMatchObject([{ members: [0, 1, 2] }]);
    expect(groupLinears([4096, 1024, 1024], [0, 1, 2], false)).toMatchObject([
      { members: [0, 1, 2], setTiles: [16, 20] },
    ]);
    expect(groupLinears([256, 128, 128], [0, 1, 2], false)).toHaveLength(3);
    expect(groupLinears([512, 512, 512], [0, 0, 1], false)).toHaveLength(3);
    expect(groupLinears([704, 704], [0, 0], true)).toEqual([{ members: [0, 1], gated: true }]);
    // Two sets: SiLU(gate)·up is left to the next site.
    expect(groupLinears([704, 704], [0, 1], true)).toEqual([
      { members: [0], gated: false },
      { members: [1], gated: false },
    ]);
  });
});
