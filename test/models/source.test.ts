/** Originals that are none, or not whole: quantized already, other heads, tensors nobody reads, values that are no numbers. */
import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { writeSafetensors, type TensorEntry } from "../../src/checkpoint/safetensors.js";
import { PlanishError } from "../../src/common/errors.js";
import { parseSource } from "../../src/models/source.js";
import { firstNonFinite } from "../../src/models/weights.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { packageRoot } from "../../src/common/package.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { LLAMA_VARIANTS, writeRandomLlama } from "../backend/cpu/infer/random-llama.js";

const root = temporaryDirectory();
let made = 0;

interface Change {
  readonly config?: Record<string, unknown>;
  /** Undefined takes the tensor away. */
  readonly tensors?: Record<string, Omit<TensorEntry, "name"> | undefined>;
  readonly variant?: keyof typeof LLAMA_VARIANTS;
}

const UNTIED = "mistral, a window of 70";

/** A small random model with some of its configuration and tensors changed. */
async function model({ config = {}, tensors = {}, variant = UNTIED }: Change): Promise<string> {
  const directory = join(root, `model${made++}`);
  await writeRandomLlama(directory, LLAMA_VARIANTS[variant], 7);
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    cpSync(join(packageRoot, "models/tiny-llama", file), join(directory, file));
  const entries = new Map<string, TensorEntry>();
  {
    using source = openCheckpoint(directory);
    for (const { name, shape } of source.tensors.values()) {
      const bytes = source.readBytes(name);
      entries.set(name, { name, type: "F32", shape, data: () => bytes });
    }
  }
  for (const [name, tensor] of Object.entries(tensors)) {
    if (tensor) entries.set(name, { name, ...tensor });
    else entries.delete(name);
  }
  await writeSafetensors(join(directory, "model.safetensors"), [...entries.values()]);
  const path = join(directory, "config.json");
  const written = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  writeFileSync(path, JSON.stringify({ ...written, ...config }));
  return directory;
}

const floats = (shape: readonly number[], value = 0.5): Omit<TensorEntry, "name"> => {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value);
  return { type: "F32", shape, data: () => new Uint8Array(data.buffer) };
};
const codes = (shape: readonly number[]): Omit<TensorEntry, "name"> => {
  const data = new Uint8Array(shape.reduce((a, b) => a * b, 1)).fill(3);
  return { type: "I8", shape, data: () => data };
};

function refusal(directory: string): string {
  try {
    using source = openCheckpoint(directory);
    parseSource(source);
  } catch (error) {
    expect(error).toBeInstanceOf(PlanishError);
    expect((error as PlanishError).message).not.toContain("\n");
    return (error as PlanishError).message;
  }
  throw new Error("accepted");
}

const V = "model.layers.1.self_attn.v_proj";

describe("sources that are quantized already", () => {
  it.each<[string, string, Record<string, Omit<TensorEntry, "name"> | undefined>]>([
    [
      "compressed-tensors",
      "weight_scale",
      { [`${V}.weight`]: codes([24, 48]), [`${V}.weight_scale`]: floats([24, 1]) },
    ],
    ["bitsandbytes", "SCB", { [`${V}.weight`]: codes([24, 48]), [`${V}.SCB`]: floats([24]) }],
    ["integers", "v_proj", { [`${V}.weight`]: codes([24, 48]) }],
    ["GPTQ or AWQ", "qweight", { [`${V}.weight`]: undefined, [`${V}.qweight`]: codes([6, 48]) }],
    ["FP8 in blocks", "weight_scale_inv", { [`${V}.weight_scale_inv`]: floats([1, 1]) }],
    ["compressed-tensors", "weight_packed", { [`${V}.weight_packed`]: codes([24, 6]) }],
    ["MXFP4", "down_proj_blocks", { "model.layers.0.mlp.down_proj_blocks": codes([4]) }],
    ["quanto", "_data", { [`${V}.weight._data`]: codes([4]) }],
    ["HQQ", "W_q", { [`${V}.W_q`]: codes([4]) }],
    ["MLX", "biases", { [`${V}.biases`]: floats([24, 1]) }],
    ["FP8", "k_scale", { "model.layers.0.self_attn.k_scale": floats([1]) }],
    ["Planish", "v_proj.linear.scale", { [`quantizer.${V}.linear.scale`]: floats([24]) }],
    ["Planish", "ln_trans", { "model.layers.0.self_attn.ln_trans.matrix_left": floats([4]) }],
  ])("names %s (%s)", async (format, tensor, tensors) => {
    const message = refusal(await model({ tensors }));
    expect(message).toContain("is quantized already");
    expect(message).toContain(format);
    expect(message).toContain(tensor);
    expect(message).toContain("original");
  });

  it.each(["quanto", "torchao", "hqq", "fbgemm_fp8", "toString"])(
    "names %s from config.json before it opens the weights",
    async (quant_method) => {
      const directory = await model({ config: { quantization_config: { quant_method } } });
      writeFileSync(join(directory, "model.safetensors"), "of types that only this format has");
      expect(refusal(directory)).toContain(`quantized already (${quant_method})`);
    },
  );

  it("are noticed by the settings that older tools leave beside the weights", async () => {
    const directory = await model({});
    writeFileSync(join(directory, "hf_quant_config.json"), "{}");
    expect(refusal(directory)).toContain("hf_quant_config.json");
  });

  it("include our own artifacts", async () => {
    const [source, out] = [await model({ variant: "qwen2, biases" }), join(root, "artifact")];
    using backend = openBackend();
    {
      using checkpoint = openCheckpoint(source);
      await quantize({ backend, source: checkpoint, out, method: "rtn", scheme: "w4a16kv16" });
    }
    using again = openCheckpoint(out);
    await expect(
      quantize({ backend, source: again, out: join(root, "twice"), method: "rtn" }),
    ).rejects.toThrow(/is a Planish artifact, which is quantized already; give the original model/);
  });
});

describe("heads", () => {
  it("must be stored or tied", async () => {
    const directory = await model({ tensors: { "lm_head.weight": undefined } });
    expect(refusal(directory)).toMatch(/no language-model head: lm_head\.weight is missing/);
  });

  it("must not be both tied and different", async () => {
    const tied = { variant: "qwen2, biases" } as const;
    expect(
      refusal(await model({ ...tied, tensors: { "lm_head.weight": floats([61, 48]) } })),
    ).toMatch(/lm_head\.weight differs from model\.embed_tokens\.weight/);
    const directory = await model(tied);
    using plain = openCheckpoint(directory);
    const bytes = plain.readBytes("model.embed_tokens.weight");
    const twin = { type: "F32", shape: [61, 48], data: () => bytes } as const;
    using same = openCheckpoint(await model({ ...tied, tensors: { "lm_head.weight": twin } }));
    expect(parseSource(same).config.tiedEmbeddings).toBe(true);
  });

  it("must have the embedding's vocabulary", async () => {
    const directory = await model({ tensors: { "lm_head.weight": floats([60, 48]) } });
    using backend = openBackend();
    using source = openCheckpoint(directory);
    expect(() => LanguageModel.load(backend, source)).toThrow(/lm_head\.weight is \[60, 48\]/);
  });

  it.each(["score.weight", "classifier.weight", "v_head.summary.weight", "qa_outputs.bias"])(
    "of another kind: %s",
    async (name) => {
      expect(refusal(await model({ tensors: { [name]: floats([2]) } }))).toContain(
        "a head other than a language model's",
      );
    },
  );
});

describe("tensors", () => {
  it.each([
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.mlp.router.weight",
    "model.layers.2.mlp.up_proj.weight",
    "lm_head.bias",
    "model.norm.bias",
    "model.layers.0.input_layernorm.shift",
  ])("%s has no place in the model and is refused", async (name) => {
    expect(refusal(await model({ tensors: { [name]: floats([2]) } }))).toContain(name);
  });

  it("that follow from the configuration are passed over", async () => {
    using source = openCheckpoint(
      await model({
        tensors: {
          "model.layers.0.self_attn.rotary_emb.inv_freq": floats([6]),
          "model.layers.0.self_attn.masked_bias": floats([1]),
        },
      }),
    );
    expect(parseSource(source).config.numLayers).toBe(2);
  });

  it("of biases must be there where config.json says so, and only there", async () => {
    const biases = { variant: "qwen2, biases" } as const;
    expect(refusal(await model({ ...biases, tensors: { [`${V}.bias`]: undefined } }))).toContain(
      `${V}.bias is missing`,
    );
    expect(refusal(await model({ tensors: { [`${V}.bias`]: floats([24]) } }))).toContain(
      `${V}.bias is there`,
    );
    expect(
      refusal(
        await model({
          variant: "qwen3, head norms, heads wider than the states",
          config: { attention_bias: true },
        }),
      ),
    ).toContain("q_proj.bias is missing");
  });
});

describe("values", () => {
  it.each([
    "model.embed_tokens.weight",
    "lm_head.weight",
    `${V}.weight`,
    "model.norm.weight",
    "model.layers.0.input_layernorm.weight",
  ])("that are no finite numbers in %s are refused with their place", async (name) => {
    using plain = openCheckpoint(await model({}));
    const shape = plain.tensors.get(name)?.shape ?? [];
    const data = plain.read(name);
    const place = shape.length === 2 ? [shape[0] - 1, 2] : [2];
    data[place.length === 2 ? place[0] * shape[1] + 2 : 2] = name.includes("norm") ? Infinity : NaN;
    const directory = await model({
      tensors: { [name]: { type: "F32", shape, data: () => new Uint8Array(data.buffer) } },
    });
    const message = new RegExp(
      `tensor ${name.replaceAll(".", "\\.")} holds (?:NaN|Infinity) at \\[${place.join(", ")}\\]`,
    );
    using backend = openBackend();
    using source = openCheckpoint(directory);
    expect(() => LanguageModel.load(backend, source)).toThrow(message);
    const out = join(root, `out${made++}`);
    await expect(
      quantize({ backend, source, out, method: "rtn", scheme: "w4a16kv16" }),
    ).rejects.toThrow(message);
    expect(existsSync(out)).toBe(false);
  });

  it("are looked at one by one: the first that is none is found wherever it stands", () => {
    const wrong = fc.constantFrom(NaN, Infinity, -Infinity);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9000 }), fc.nat(), wrong, (length, where, value) => {
        // The largest finite numbers, whose sum would overflow.
        const values = new Float32Array(length).fill(3.4e38);
        expect(firstNonFinite(values)).toBe(-1);
        values[where % length] = value;
        expect(firstNonFinite(values)).toBe(where % length);
      }),
      { numRuns: 200 },
    );
  });
});
