/** FlatQuant's published layout: out, and back in to the same artifact. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
} from "../../src/checkpoint/safetensors.js";
import { packageRoot } from "../../src/common/package.js";
import { exportFlatQuant } from "../../src/formats/flatquant/export.js";
import { importFlatQuant } from "../../src/formats/flatquant/import.js";
import { factorSizes } from "../../src/formats/flatquant/layout.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { writeFirstBlocks } from "../models/first-blocks.js";

const root = temporaryDirectory();
const source = join(root, "source");
const artifact = join(root, "artifact");

async function make(out: string, options: Partial<QuantizeOptions>): Promise<void> {
  using backend = openBackend();
  using checkpoint = openCheckpoint(source);
  await quantize({ backend, source: checkpoint, out, ...options });
}

beforeAll(async () => {
  await writeFirstBlocks(join(packageRoot, "models/tiny-llama"), source, 1);
  await make(artifact, {
    ...{ method: "flatquant", scheme: "w4a4kv4", calibration: join(packageRoot, "LICENSE") },
    recipe: { samples: 2, seqLen: 64, epochs: 1, batch: 2 },
  });
});

describe("the loader's split of a width", () => {
  it.each([
    [256, [16, 16]],
    [704, [22, 32]],
    [576, [24, 24]],
    [1536, [32, 48]],
    [4096, [64, 64]],
    [11008, [86, 128]],
    [14336, [112, 128]],
    [7, [1, 7]],
  ] as const)("of %d is %j", (width, sizes) => {
    expect(factorSizes(width)).toEqual(sizes);
  });
});

describe("FlatQuant's layout", () => {
  it("has the names, types and shapes that its own code saves", async () => {
    const out = join(root, "published");
    await exportFlatQuant(artifact, { out });
    const { store, metadata } = openSafetensors(join(out, "model.safetensors"));
    expect(metadata).toBeDefined();
    const q = "model.layers.0.self_attn.q_proj";
    const stored = (name: string) => {
      const { type, shape } = store.tensors.get(name)!;
      return [type, ...shape];
    };
    expect(stored(`${q}.linear.weight`)).toEqual(["U8", 256, 128]);
    expect(stored(`quantizer.${q}.linear.scale`)).toEqual(["F32", 256, 1]);
    expect(stored(`quantizer.${q}.linear.zero`)).toEqual(["F32", 256, 1]);
    expect(stored(`${q}.act_quantizer.clip_factor_a_max`)).toEqual(["F16", 1]);
    expect(stored("model.layers.0.self_attn.ln_trans.matrix_left")).toEqual(["F16", 16, 16]);
    expect(stored("model.layers.0.self_attn.o_trans.matrix")).toEqual(["F16", 8, 8]);
    expect(stored("model.layers.0.mlp.down_trans.matrix_right")).toEqual(["F16", 32, 32]);
    expect(stored("model.layers.0.self_attn.kcache_trans.matrix_inv_t")).toEqual(["F16", 32, 32]);
    store[Symbol.dispose]();
    const settings = JSON.parse(
      readFileSync(join(out, "quantization_config.json"), "utf8"),
    ) as object;
    expect(settings).toMatchObject({ w_bits: 4, symmetric: true, format: "packed_int4" });
  });

  it("comes back as the same block", async () => {
    const [out, back] = [join(root, "out"), join(root, "back")];
    await exportFlatQuant(artifact, { out });
    await importFlatQuant(out, { out: back, scheme: parseScheme("w4a4kv4") });
    using before = openArtifact(artifact);
    using after = openArtifact(back);
    expect(after.block(0)).toEqual(before.block(0));
    for (const [name, tensor] of before.checkpoint.tensors)
      expect(after.checkpoint.readBytes(name), name).toEqual(
        before.checkpoint.readBytes(tensor.name),
      );
    expect(after.info.source.format).toBe("flatquant packed_int4");
  });

  it("fills in identities, since the loader would take random matrices", async () => {
    const rounded = join(root, "rounded");
    await make(rounded, { method: "rtn", scheme: "w4a4kv4" });
    const out = join(root, "identities");
    await exportFlatQuant(rounded, { out });
    const { store } = openSafetensors(join(out, "model.safetensors"));
    const left = store.read("model.layers.0.mlp.up_gate_trans.matrix_left");
    expect([...left].map((x, i) => x - Number(i % 17 === 0)).every((x) => x === 0)).toBe(true);
    expect(store.read("model.layers.0.mlp.up_proj.act_quantizer.clip_factor_a_min")[0]).toBe(20);
    store[Symbol.dispose]();
  });

  it("refuses other weights, and damaged checkpoints, by name", async () => {
    const balanced = join(root, "balanced");
    await make(balanced, {
      ...{ method: "flatquant", scheme: "w4a4kv4", calibration: join(packageRoot, "LICENSE") },
      recipe: { samples: 2, seqLen: 64, epochs: 1, batch: 2, keyBalance: true },
    });
    await expect(exportFlatQuant(balanced, { out: join(root, "none") })).rejects.toThrow(
      /keyBalance/,
    );
    const eight = join(root, "eight");
    await make(eight, { method: "rtn", scheme: "w8a8kv8" });
    await expect(exportFlatQuant(eight, { out: join(root, "none") })).rejects.toThrow(
      /grids are those of w8a8kv8, where flatquant packs 4 bits/,
    );
    const out = join(root, "damaged");
    await exportFlatQuant(artifact, { out });
    const scheme = parseScheme("w4a4kv4");
    const change = async (name: string, entry: TensorEntry | undefined): Promise<void> => {
      const { store } = openSafetensors(join(root, "published", "model.safetensors"));
      const entries = [...store.tensors.values()].flatMap((t): TensorEntry[] =>
        t.name === name
          ? []
          : [{ ...t, type: t.type as TensorEntry["type"], data: () => store.readBytes(t.name) }],
      );
      await writeSafetensors(join(out, "model.safetensors"), entry ? [...entries, entry] : entries);
      store[Symbol.dispose]();
    };
    const refused = () => importFlatQuant(out, { out: join(root, "no"), scheme });
    const name = "quantizer.model.layers.0.mlp.up_proj.linear.scale";
    await change(name, undefined);
    await expect(refused()).rejects.toThrow(/up_proj\.linear\.scale" is missing/);
    await change("", {
      name: "model.layers.0.mlp.extra",
      type: "F16",
      shape: [1],
      data: () => new Uint8Array(2),
    });
    await expect(refused()).rejects.toThrow(/mlp\.extra" has no place in it/);
    writeFileSync(
      join(out, "quantization_config.json"),
      '{"w_bits":4,"symmetric":false,"format":"packed_int4"}',
    );
    await expect(refused()).rejects.toThrow(/quantization_config\.json: symmetric: /);
  });
});
