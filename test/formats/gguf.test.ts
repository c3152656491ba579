/** GGUF files made of artifacts and of originals, read back by our own reader: the same numbers, the same model. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { BLOCK_FORMATS, type WrittenType } from "../../src/checkpoint/gguf-blocks.js";
import { storedCodes, storedGrid } from "../../src/checkpoint/gguf-codes.js";
import { putCodes, putKScales, putSteps } from "../../src/checkpoint/gguf-encode.js";
import { kMin, kScale } from "../../src/checkpoint/gguf-blocks.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { exportGguf } from "../../src/formats/gguf/from-artifact.js";
import { exportGgufModel } from "../../src/formats/gguf/from-model.js";
import { linearType, tableType, type GgufFileType } from "../../src/formats/gguf/types.js";
import { modelFields } from "../../src/formats/gguf/fields.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";
import { parseSource } from "../../src/models/source.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { dequantized } from "../../src/quantize/grids/groups.js";
import { fitBlocks } from "../../src/quantize/grids/block-steps.js";
import { roundToBlocks, roundToNearest } from "../../src/quantize/rounding/blocks.js";
import { factorMoment } from "../../src/quantize/rounding/gptq.js";
import { Random } from "../../src/common/random.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { writeFirstBlocks } from "../models/first-blocks.js";

const root = temporaryDirectory();
const source = join(root, "source");
const TYPES = Object.keys(BLOCK_FORMATS).filter((type) => type !== "MXFP4") as WrittenType[];

async function artifactOf(name: string, options: Partial<QuantizeOptions>): Promise<string> {
  const out = join(root, name);
  using backend = openBackend();
  using checkpoint = openCheckpoint(source);
  await quantize({ backend, source: checkpoint, out, method: "rtn", ...options });
  return out;
}

beforeAll(() => writeFirstBlocks(join(packageRoot, "models/tiny-llama"), source, 1));

describe("blocks", () => {
  it.each(TYPES)("of %s hold the codes that are laid into them, and their scales stay", (type) => {
    const { blockElements, blockBytes } = BLOCK_FORMATS[type];
    const { bits, offset } = storedGrid(type)!;
    const low = offset ? 0 : -(2 ** (bits - 1));
    const codes = fc.array(fc.integer({ min: low, max: low + 2 ** bits - 1 }), {
      minLength: 2 * blockElements,
      maxLength: 2 * blockElements,
    });
    fc.assert(
      fc.property(codes, (given) => {
        const bytes = new Uint8Array(2 * blockBytes);
        putCodes(type, bytes, Int8Array.from(given));
        const tensor = {
          name: "t",
          file: "f",
          type,
          shape: [2, blockElements],
          bytes: bytes.length,
        };
        const read = storedCodes(tensor, bytes);
        expect([...read.codes]).toEqual(given);
        expect(read.scale.every((s) => s === 0)).toBe(true);
      }),
      { numRuns: 20 },
    );
  });

  it("hold 6-bit scales and minima", () => {
    const six = fc.array(fc.nat({ max: 63 }), { minLength: 8, maxLength: 8 });
    fc.assert(
      fc.property(six, six, (scales, minima) => {
        const bytes = new Uint8Array(14);
        putKScales(bytes, 1, scales, minima);
        expect(scales.map((_, j) => kScale(bytes, 1, j))).toEqual(scales);
        expect(minima.map((_, j) => kMin(bytes, 1, j))).toEqual(minima);
        expect([bytes[0], bytes[13]]).toEqual([0, 0]);
      }),
    );
  });

  it("get scales of either sign, so that the extreme takes the code that reaches furthest", () => {
    for (const sign of [1, -1]) {
      const x = Float32Array.from({ length: 32 }, (_, i) => (sign * (i - 15) * 8) / 16);
      const bytes = fitBlocks("Q4_0", x, 32, new Float32Array(32).fill(1));
      const tensor = { name: "t", file: "f", type: "Q4_0", shape: [1, 32], bytes: 18 } as const;
      const { scale } = storedCodes(tensor, bytes);
      expect(Math.sign(scale[0])).toBe(-sign);
    }
  });

  it.each(TYPES)("of %s put each kind of group on scales that are finite", (type) => {
    const { blockElements } = BLOCK_FORMATS[type];
    const importance = Float32Array.from({ length: blockElements }, (_, i) => 1 + (i % 7));
    const group = fc.oneof(
      fc.constant(0),
      fc.constant(3.25),
      fc.double({ min: -1e-6, max: 1e-6, noNaN: true }),
      fc.double({ min: -30, max: 30, noNaN: true }),
    );
    const weights = fc.array(group, { minLength: blockElements, maxLength: blockElements });
    fc.assert(
      fc.property(weights, (given) => {
        const bytes = fitBlocks(type, Float32Array.from(given), blockElements, importance);
        const out = new Float32Array(blockElements);
        BLOCK_FORMATS[type].decode(bytes, out, 0);
        expect(out.every(Number.isFinite)).toBe(true);
      }),
      { numRuns: 50 },
    );
  });
});

describe("an artifact as GGUF", () => {
  it.each([
    ["w4g32a16kv16h8g32", "Q4_0", "Q8_0"],
    ["w4g64a8kv16h8", "Q4_0", "Q8_0"],
    ["w4g32oa16kv16", "Q4_1", "BF16"],
    ["w8g32a16kv16h4g32", "Q8_0", "Q4_0"],
    ["w16a16kv16", "F16", "BF16"],
  ])("of %s has its very codes, as %s with tables of %s", async (scheme, type, tables) => {
    const from = await artifactOf(scheme, { scheme });
    const out = join(root, `${scheme}.gguf`);
    const { bytes } = await exportGguf(from, { out });
    expect(statSync(out).size).toBe(bytes);
    using artifact = openArtifact(from);
    using file = openCheckpoint(out);
    const { config } = parseSource(file);
    expect({ ...config, biases: [] }).toEqual({ ...artifact.config, biases: [] });
    expect(file.tensors.get("model.embed_tokens.weight")?.type).toBe(tables);
    for (let layer = 0; layer < config.numLayers; layer++) {
      const block = artifact.block(layer);
      for (const { path, shape, quantized, weight } of Object.values(block.linears)) {
        const name = `model.layers.${layer}.${path}.weight`;
        expect(file.tensors.get(name)).toMatchObject({ type, shape });
        const values = quantized ? dequantized(quantized.codes, shape[1], quantized) : weight;
        expect(file.read(name)).toEqual(values);
      }
      for (const { path, gain } of Object.values(block.norms))
        expect(file.read(`model.layers.${layer}.${path}.weight`)).toEqual(
          Float32Array.from(gain.data),
        );
    }
    const text = "It's 1234 tokens,\n\n <|endoftext|>  naïve…";
    const [ours, theirs] = [artifact.checkpoint, file].map((from) => loadTokenizer(from));
    expect(theirs.encode(text)).toEqual(ours.encode(text));
    expect(theirs.eosTokenIds).toEqual(ours.eosTokenIds);
  });

  it.each([
    ["w4g32a4kv4", "quarot", /transform at attn_in .* llama.cpp runs none/],
    ["w4a16kv16", "rtn", /w4a16kv16 is no grid of GGUF/],
    ["w4g32a16kv4", "rtn", /a cache of 4 bits; .*--drop cache/],
  ])("is refused with %s by %s", async (scheme, method, message) => {
    const from = await artifactOf(`${method}-${scheme}`, { scheme, method });
    await expect(exportGguf(from, { out: join(root, "refused.gguf") })).rejects.toThrow(message);
  });

  it("is refused as another type than its own", async () => {
    const from = await artifactOf("own-type", { scheme: "w4g32a16kv16" });
    const made = exportGguf(from, { out: join(root, "other.gguf"), type: "q8_0" });
    await expect(made).rejects.toThrow(/has the grid of q4_0, not of q8_0/);
  });
});

/** A second moment of channels of which neighbours move together, and how it is used. */
function correlated(cols: number): {
  moment: Float64Array;
  times: (x: Float32Array) => Float32Array;
} {
  const moment = new Float64Array(cols * cols);
  for (let i = 0; i < cols; i++)
    for (let j = 0; j < cols; j++)
      moment[i * cols + j] = (1 + (i % 3)) * (1 + (j % 3)) * 0.9 ** Math.abs(i - j);
  const times = (x: Float32Array): Float32Array => {
    const out = new Float32Array(x.length);
    for (let at = 0; at < x.length; at += cols)
      for (let i = 0; i < cols; i++)
        for (let j = 0; j < cols; j++) out[at + j] += x[at + i] * moment[i * cols + j];
    return out;
  };
  return { moment, times };
}

describe("rounding onto blocks", () => {
  const [rows, cols] = [6, 256];
  const random = Random.for(1, "weights");
  const weight = Float32Array.from({ length: rows * cols }, () => random.normal());
  const { moment, times } = correlated(cols);
  const factor = factorMoment(moment, cols, { damping: 0.01, actOrder: true });
  const importance = Float32Array.from({ length: cols }, (_, i) => moment[i * cols + i]);
  const cost = (type: WrittenType, bytes: Uint8Array): number => {
    const values = new Float32Array(weight.length);
    BLOCK_FORMATS[type].decode(bytes, values, 0);
    const error = weight.map((w, i) => w - values[i]);
    return times(error).reduce((sum, x, i) => sum + x * error[i], 0);
  };

  it.each(TYPES)(
    "of %s keeps the product better than rounding to nearest on the same search",
    (type) => {
      const problem = { type, weight, rows, cols, factor, importance, timesMoment: times };
      const nearest = roundToNearest(type, weight, cols);
      const once = roundToBlocks({ ...problem, refits: 0 });
      const refitted = roundToBlocks(problem);
      // Errors that lean on one another lose most of what this moment counts.
      expect(cost(type, once)).toBeLessThan(0.6 * cost(type, nearest));
      expect(cost(type, refitted)).toBeLessThanOrEqual(cost(type, once));
      if (type.endsWith("_0") || type.endsWith("_1"))
        expect(cost(type, refitted)).toBeLessThan(cost(type, once));
    },
  );
});

describe("an original as GGUF", () => {
  const calibration = join(packageRoot, "LICENSE");
  const make = async (type: GgufFileType): Promise<string> => {
    const out = join(root, `${type}.gguf`);
    using backend = openBackend();
    await exportGgufModel(source, { backend, type, out, calibration, samples: 2, seqLen: 128 });
    return out;
  };

  it.each([
    ["q4_0", ["Q4_0", "Q6_K"]],
    ["q8_0", ["Q8_0"]],
    ["q4_k_m", ["Q4_K", "Q6_K", "Q8_0"]],
  ] as const)(
    "of type %s is near the original and has the types that it should",
    async (type, all) => {
      using file = openCheckpoint(await make(type));
      using original = openCheckpoint(source);
      const { config } = parseSource(file);
      const found = new Set(
        [...file.tensors.values()].filter(({ shape }) => shape.length === 2).map((t) => t.type),
      );
      expect([...found].sort()).toEqual([...all].sort());
      for (const name of ["self_attn.q_proj", "mlp.down_proj"].map(
        (path) => `model.layers.0.${path}.weight`,
      )) {
        const [wanted, read] = [original.read(name), file.read(name)];
        const [error, power] = wanted.reduce(
          ([e, p], w, i) => [e + (w - read[i]) ** 2, p + w * w],
          [0, 0],
        );
        // A step of b bits over ±3.5 standard deviations leaves (7/2^b)²/12 of the variance; feedback may triple it.
        const bits = storedGrid(file.tensors.get(name)!.type)!.bits;
        expect(error / power).toBeLessThan((3 * (7 / 2 ** bits) ** 2) / 12);
      }
      expect(config.numLayers).toBe(1);
    },
  );
});

describe("metadata", () => {
  const fieldsOf = (fixture: string) => {
    const place = join(packageRoot, "test/fixtures/architectures", fixture, "config.json");
    const { config } = parseModelConfig(
      JSON.parse(readFileSync(place, "utf8")) as Record<string, unknown>,
    );
    return modelFields(config, fixture, {
      hasOutput: !config.tiedEmbeddings,
      hasAttentionBias: false,
    });
  };

  it.each([
    ["llama-linear", "linear"],
    ["llama-yarn", "yarn"],
  ])("say how %s stretches its positions", (fixture, type) => {
    expect(fieldsOf(fixture).get("llama.rope.scaling.type")).toEqual({
      type: "string",
      value: type,
    });
  });

  // Whatever is not read back the same is refused: nobody keeps a list.
  it.each([
    ["llama-dynamic", /cannot say what this model's positions is/],
    ["llama-longrope", /cannot say what this model's positions is/],
    ["llama-llama3", /rope_freqs\.weight follows neither llama3 scaling/],
    ["mistral", /cannot say what this model's slidingWindow is: 8/],
    ["gemma2", /cannot say what this model's attention is/],
    ["gemma3", /cannot say what this model's layers is/],
    ["qwen2-sliding", /sliding_window is 8/],
    ["smollm3", /architecture smollm3 is not written as GGUF; accepted: llama, mistral/],
    ["gpt-oss", /architecture gpt_oss is not written as GGUF/],
  ])("are refused for what GGUF cannot say of %s", (fixture, message) => {
    expect(() => fieldsOf(fixture)).toThrow(message);
  });
});

describe("types of tensors", () => {
  it("are those of llama-quantize", () => {
    const down = (layer: number) => linearType("q4_k_m", "mlp.down_proj", 1536, layer, 30);
    expect(Array.from({ length: 30 }, (_, layer) => down(layer)).map((t) => t === "Q6_K")).toEqual(
      Array.from({ length: 30 }, (_, i) => i < 3 || i >= 26 || (i - 3) % 3 === 2),
    );
    expect(linearType("q4_k_m", "self_attn.q_proj", 576, 0, 30)).toBe("Q5_0");
    expect(linearType("q4_k_m", "self_attn.v_proj", 576, 0, 30)).toBe("Q8_0");
    expect(linearType("q4_0", "self_attn.q_proj", 48, 0, 30)).toBe("F16");
    expect(tableType("q4_0", true, 576)).toBe("Q8_0");
    expect(tableType("q4_0", true, 4096)).toBe("Q6_K");
    expect(tableType("q4_0", false, 4096)).toBe("Q4_0");
  });

  it("put scales where readers look for them", () => {
    const bytes = putSteps("Q4_1", [0.5, -2], [1, 3]);
    const tensor = { name: "t", file: "f", type: "Q4_1", shape: [1, 64], bytes: 40 } as const;
    const { scale, offset } = storedCodes(tensor, bytes);
    expect([[...scale], [...offset!]]).toEqual([
      [0.5, -2],
      [1, 3],
    ]);
  });
});
