/** Exports to compressed-tensors, read back by our own reader; test/interop asks the Python package. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { unpackFields } from "../../src/checkpoint/quantized/codes.js";
import { packageRoot } from "../../src/common/package.js";
import { exportCompressedTensors } from "../../src/formats/compressed-tensors/export.js";
import { packWords } from "../../src/formats/compressed-tensors/pack.js";
import { siteMatrix } from "../../src/formats/compressed-tensors/transforms.js";
import { parseSource } from "../../src/models/source.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
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
