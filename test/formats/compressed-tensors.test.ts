/** Exports to compressed-tensors, read back by our own reader; test/interop asks the Python package. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { unpackFields } from "../../src/checkpoint/quantized/codes.js";
import { packageRoot } from "../../src/common/package.js";
import { exportCompressedTensors } from "../../src/formats/compressed-tensors/export.js";
import { packWords } from "../../src/formats/compressed-tensors/pack.js";
import { siteMatrix } from "../../src/formats/compressed-tensors/transforms.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { parseSource } from "../../src/models/source.js";
import { loadArtifact, openArtifact } from "../../src/quantize/artifact/artifact.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { writeFirstBlocks } from "../models/first-blocks.js";

const root = temporaryDirectory();
const source = join(root, "source");

async function artifact(
  scheme: string,
  method = "rtn",
  options: Partial<QuantizeOptions> = {},
): Promise<string> {
  const out = join(root, `${method}-${scheme}`);
  using backend = openBackend();
  using checkpoint = openCheckpoint(source);
  await quantize({ backend, source: checkpoint, out, method, scheme, ...options });
  return out;
}

beforeAll(() => writeFirstBlocks(join(packageRoot, "models/tiny-llama"), source, 1));

describe("packed words", () => {
  it("unpack to the codes, at every width", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 70 }),
        fc.infiniteStream(fc.nat(255)),
        (bits, columns, stream) => {
          const codes = Array.from({ length: 2 * columns }, () => {
            const field = Number(stream.next().value) % 2 ** bits;
            return field - 2 ** (bits - 1);
          });
          const words = packWords(codes, 2, columns, bits);
          const width = words.length / 2;
          const back = [0, 1].flatMap((row) => {
            const out = new Uint8Array(columns);
            unpackFields(words, { start: row * width, stride: 1, count: columns, bits }, out);
            return [...out].map((field) => field - 2 ** (bits - 1));
          });
          expect(back).toEqual(codes);
        },
      ),
    );
  });
});

describe("a site's matrix", () => {
  it("is the Kronecker product, or its repeated block", () => {
    const left = Float32Array.of(1, 2, 3, 4);
    const right = Float32Array.of(0, 1, 5, 7);
    // Row i·2+j, column k·2+l: left[i,k]·right[j,l].
    const both = [0, 1, 0, 2, 5, 7, 10, 14, 0, 3, 0, 4, 15, 21, 20, 28];
    expect([...siteMatrix({ width: 4 }, { left, right })]).toEqual(both);
    const heads = [1, 0, 2, 0, 0, 1, 0, 2, 3, 0, 4, 0, 0, 3, 0, 4];
    expect([...siteMatrix({ width: 4 }, { left })]).toEqual(heads);
    expect([...siteMatrix({ width: 4 }, { right })]).toEqual([...right]);
  });
});

describe("export to compressed-tensors", () => {
  it.each(["w4a16kv16", "w3a16kv16", "w8a8kv16", "w4a4kv16", "w4g64a16kv16", "w4g32a8g64kv16"])(
    "of %s reads back as codes times scales, and as an original",
    async (scheme) => {
      const from = await artifact(scheme);
      const out = join(root, `${scheme}-ct`);
      const result = await exportCompressedTensors(from, { out });
      expect(result.dropped).toEqual([]);
      using packed = openArtifact(from);
      using exported = openCheckpoint(out);
      expect(parseSource(exported).config).toEqual(packed.config);
      const prefix = packed.architecture.names.blockPrefix(0);
      for (const { path, shape, quantized } of Object.values(packed.block(0).linears)) {
        const { codes, scale, group = shape[1] } = quantized!;
        const expected = Float32Array.from(codes, (code, i) => code * scale[Math.floor(i / group)]);
        expect(exported.read(`${prefix}${path}.weight`), path).toEqual(expected);
      }
      for (const norm of Object.values(packed.block(0).norms))
        expect(exported.read(`${prefix}${norm.path}.weight`)).toEqual(norm.gain.data);
      const { embedding } = packed.architecture.names;
      expect(exported.readBytes(embedding)).toEqual(packed.checkpoint.readBytes(embedding));
    },
  );

  it("says which groups, activations and transforms it has", async () => {
    const from = await artifact("w4a4kv16", "quarot");
    const out = join(root, "transformed");
    const result = await exportCompressedTensors(from, { out });
    expect(result.notes.join()).toMatch(/multiply each token's activations/);
    const { quantization_config: q } = JSON.parse(
      readFileSync(join(out, "config.json"), "utf8"),
    ) as {
      quantization_config: {
        config_groups: Record<string, { targets: string[]; input_activations: unknown }>;
        transform_config: {
          config_groups: Record<
            string,
            { type: string; apply: { targets: string[]; location: string }[] }
          >;
        };
      };
    };
    expect(q.config_groups.group_0.targets).toEqual(["Linear"]);
    expect(q.config_groups.group_0.input_activations).toMatchObject({
      ...{ num_bits: 4, strategy: "token", dynamic: true, symmetric: true },
    });
    const group = q.transform_config.config_groups.layer0_attn_in;
    expect(group.type).toBe("random-hadamard");
    const modules = ["q", "k", "v"].map((name) => `model.layers.0.self_attn.${name}_proj`);
    expect(group.apply).toEqual([
      { targets: modules, location: "input", inverse: false, ignore: [] },
    ]);
    // Its weights alone are those of rotated activations: nobody takes them for an original.
    expect(() => openCheckpoint(out)).toThrow(/transform_config rotates activations/);
  });

  it("holds all that the preset vllm learns: one matrix for each run of channels", async () => {
    const short = { calibration: join(packageRoot, "LICENSE"), preset: "vllm" };
    const recipe = { samples: 2, seqLen: 64, epochs: 1, batch: 2 };
    const from = await artifact("w4a4kv16", "flatquant", { ...short, recipe });
    const out = join(root, "vllm");
    expect((await exportCompressedTensors(from, { out })).dropped).toEqual([]);
    const config = JSON.parse(readFileSync(join(out, "config.json"), "utf8")) as {
      quantization_config: {
        transform_config: { config_groups: Record<string, { head_dim: number }> };
      };
    };
    const groups = config.quantization_config.transform_config.config_groups;
    const sites = ["attn_in", "mlp_in", "mlp_down"].map((site) => `layer0_${site}`);
    expect(Object.keys(groups)).toEqual(sites);
    expect(Object.values(groups).map((group) => group.head_dim)).toEqual([64, 64, 64]);
    using packed = openArtifact(from);
    const { mlp_down: down } = packed.block(0).transforms;
    expect([down?.left, down?.right?.length]).toEqual([undefined, 64 * 64]);
    const { store } = openSafetensors(join(out, "model.safetensors"));
    const stored = store.read("model.layers.0.mlp.down_proj.layer0_mlp_down_input.weight");
    store[Symbol.dispose]();
    // Whoever loads it divides by √64.
    expect(stored).toEqual(down?.right?.map((value) => 8 * value));
    // With the transforms and their inverses in the weights it is the original up to its rounding.
    using backend = openBackend();
    using original = openCheckpoint(source);
    const ids = Int32Array.of(1, 300, 17, 900, 2201, 44, 3999, 1024);
    const logitsOf = (lm: LanguageModel): Float64Array => {
      using g = new Graph(backend);
      return Float64Array.from(g.read(lm.logits(g, lm.hidden(g, ids))));
    };
    const { model: quantized, checkpoint } = loadArtifact(backend, from);
    const [a, b] = [quantized, LanguageModel.load(backend, original)].map(logitsOf);
    checkpoint[Symbol.dispose]();
    const power = (x: Float64Array): number => x.reduce((sum, v) => sum + v * v, 0);
    expect(power(a.map((v, i) => v - b[i])) / power(b)).toBeLessThan(0.1);
  });

  it("refuses blocks that do not divide a site's channels", async () => {
    const recipe = { samples: 2, seqLen: 64, epochs: 1, batch: 2, blockSize: 128 };
    const options = { calibration: join(packageRoot, "LICENSE"), preset: "vllm", recipe };
    await expect(artifact("w8a8kv16", "flatquant", options)).rejects.toThrow(
      /blocks of 128 channels do not divide the 704 of mlp_down; give a blockSize that does/,
    );
  });

  it("names what it cannot hold, and leaves it out when told to", async () => {
    const from = await artifact("w4a4kv4", "quarot");
    const out = join(root, "dropped");
    await expect(exportCompressedTensors(from, { out })).rejects.toThrow(
      /no place for a cache of 4 bits and its transform; to leave out what it cannot hold, give --drop cache$/,
    );
    const { dropped } = await exportCompressedTensors(from, { out, drop: ["cache"] });
    expect(dropped).toEqual(["a cache of 4 bits and its transform"]);
    await expect(exportCompressedTensors(from, { out, drop: ["cache"] })).rejects.toThrow(
      /exists already/,
    );
  });

  it("refuses static grids by name", async () => {
    const short = { calibration: join(packageRoot, "LICENSE"), recipe: { samples: 2, seqLen: 64 } };
    const from = await artifact("w4a4kv16", "flattenquant", { preset: "rtn", ...short });
    await expect(exportCompressedTensors(from, { out: join(root, "flat") })).rejects.toThrow(
      /block 0 has a static grid with split channels at self_attn\.\w+ \(flattenquant\)/,
    );
  });
});
