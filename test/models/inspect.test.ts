import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Checkpoint } from "../../src/checkpoint/checkpoint.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { inspectModel } from "../../src/models/inspect.js";

const tiny = (name: string): string => join(packageRoot, "models", name);

describe("inspectModel", () => {
  it("describes tiny-llama as its own description does", () => {
    using checkpoint = openCheckpoint(tiny("tiny-llama"));
    const model = inspectModel(checkpoint);
    // models/README.md: 6.95 M parameters in bf16, 8 layers, hidden 256, intermediate 704, 8 heads, 4 KV heads.
    const linears = 8 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 704 * 256);
    expect(model.linearParameters).toBe(linears);
    // The rest: the embedding, which is also the head, two norms a block, and the final norm.
    expect(model.parameters).toBe(linears + 4096 * 256 + 17 * 256);
    expect(model.bytes).toBe(2 * model.parameters);
    expect(model.types).toEqual([{ type: "BF16", tensors: 74, bytes: model.bytes }]);
    expect(model.missing).toEqual([]);
    expect(model.unused).toEqual([]);
    expect(model.sites.map(({ site, channels }) => [site, channels])).toEqual([
      ["attn_in", 256],
      ["attn_out", 256],
      ["mlp_in", 256],
      ["mlp_down", 704],
    ]);
    expect(model.sites[0].linears[1]).toEqual({ path: "self_attn.k_proj", shape: [128, 256] });
  });

  it("knows OPT's positions, biases and ungated MLP", () => {
    using checkpoint = openCheckpoint(tiny("tiny-opt"));
    const model = inspectModel(checkpoint);
    expect(model.missing).toEqual([]);
    expect(model.unused).toEqual([]);
    expect(model.sites[2].linears).toEqual([{ path: "fc1", shape: [1024, 256] }]);
  });

  it("lists what is missing and what is not used", () => {
    using checkpoint = openCheckpoint(tiny("tiny-llama"));
    const tensors = new Map(checkpoint.tensors);
    const name = "model.layers.3.mlp.up_proj.weight";
    const tensor = tensors.get(name);
    if (!tensor) throw new Error(`${name} is not in tiny-llama`);
    tensors.delete(name);
    tensors.set("extra.weight", { ...tensor, name: "extra.weight" });
    const altered: Checkpoint = { ...checkpoint, tensors };
    const model = inspectModel(altered);
    expect(model.missing).toEqual([name]);
    expect(model.unused).toEqual(["extra.weight"]);
  });
});
