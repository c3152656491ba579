/** Quantized sources whose settings and tensors contradict each other, or that are of a kind that is not read. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ElementType } from "../../../src/checkpoint/element-types.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
} from "../../../src/checkpoint/safetensors.js";
import { PlanishError } from "../../../src/common/errors.js";
import { parseSource } from "../../../src/models/source.js";
import { temporaryDirectory } from "../files.js";

const fixtures = new URL("../../fixtures/quantized/", import.meta.url).pathname;
const root = temporaryDirectory();
let made = 0;

type Json = Record<string, unknown>;
type Stored = Omit<TensorEntry, "name">;

interface Change {
  /** Settings to replace; undefined takes one away. */
  readonly settings?: Json;
  /** Tensors to replace, made of what was there; undefined takes one away. */
  readonly tensors?: Record<string, ((old: Stored | undefined) => Stored) | undefined>;
  /** Files beside. */
  readonly files?: Record<string, Json>;
}

/** A copy of a fixture with some of it changed. */
async function changed(
  name: string,
  { settings, tensors = {}, files = {} }: Change,
): Promise<string> {
  const directory = join(root, `${name}-${made++}`);
  mkdirSync(directory);
  const config = JSON.parse(readFileSync(join(fixtures, name, "config.json"), "utf8")) as Json;
  const quantization = { ...(config.quantization_config as Json), ...settings };
  writeFileSync(
    join(directory, "config.json"),
    JSON.stringify({ ...config, quantization_config: quantization }),
  );
  for (const [file, content] of Object.entries(files))
    writeFileSync(join(directory, file), JSON.stringify(content));
  const { store } = openSafetensors(join(fixtures, name, "model.safetensors"));
  const entries = new Map<string, TensorEntry>();
  for (const { name: key, type, shape } of store.tensors.values()) {
    const bytes = store.readBytes(key);
    entries.set(key, { name: key, type: type as ElementType, shape, data: () => bytes });
  }
  store[Symbol.dispose]();
  for (const [key, change] of Object.entries(tensors)) {
    if (change) entries.set(key, { name: key, ...change(entries.get(key)) });
    else entries.delete(key);
  }
  await writeSafetensors(join(directory, "model.safetensors"), [...entries.values()]);
  return directory;
}

const Q = "model.layers.0.self_attn.q_proj";
const zeros = (type: ElementType, shape: readonly number[], bytesEach: number) => (): Stored => {
  const data = new Uint8Array(shape.reduce((a, b) => a * b, bytesEach));
  return { type, shape, data: () => data };
};
const text = (content: string) => (): Stored => {
  const data = new TextEncoder().encode(content);
  return { type: "U8", shape: [data.length], data: () => data };
};

async function refusal(name: string, change: Change): Promise<string> {
  const directory = await changed(name, change);
  try {
    using source = openCheckpoint(directory);
    parseSource(source);
    source.read(`${Q}.weight`);
  } catch (error) {
    expect(error).toBeInstanceOf(PlanishError);
    const { message } = error as PlanishError;
    expect(message).not.toContain("\n");
    expect(message).toContain(directory);
    return message;
  }
  throw new Error("accepted");
}

describe.each<[string, [string, Change, RegExp][]]>([
  [
    "gptq-4",
    [
      [
        "scales are missing",
        { tensors: { [`${Q}.scales`]: undefined } },
        /q_proj\.scales" is missing/,
      ],
      [
        "scales are integers",
        { tensors: { [`${Q}.scales`]: zeros("I32", [2, 64], 4) } },
        /q_proj\.scales" is I32, not F16/,
      ],
      [
        "zero points are of another shape",
        { tensors: { [`${Q}.qzeros`]: zeros("I32", [2, 4], 4) } },
        /qzeros" is \[2, 4\], not \[2, 8\]/,
      ],
      [
        "groups are of another size",
        { settings: { group_size: 16 }, files: {} },
        /3 groups for 96 channels in groups of 16/,
      ],
      [
        "bits are other bits",
        { settings: { bits: 8 } },
        /12 rows of words for 96 channels of 8 bits/,
      ],
      ["bits are missing", { settings: { bits: undefined } }, /bits of its settings/],
      [
        "codes are ordered without an order",
        { settings: { desc_act: true }, tensors: { [`${Q}.g_idx`]: undefined } },
        /g_idx" is missing, and desc_act is true/,
      ],
      [
        "a group is out of range",
        {
          settings: { desc_act: true },
          tensors: {
            [`${Q}.g_idx`]: (): Stored => ({
              type: "I32",
              shape: [64],
              data: () => new Int32Array(64).fill(2),
            }),
          },
        },
        /puts channel 0 in group 2 of 2/,
      ],
      [
        "an order is there that nobody announced",
        {
          tensors: {
            [`${Q}.g_idx`]: (): Stored => ({
              type: "I32",
              shape: [64],
              data: () => Int32Array.from({ length: 64 }, (_, i) => i % 2),
            }),
          },
        },
        /g_idx" is not in order, and desc_act is false/,
      ],
      [
        "the layout is another",
        { settings: { checkpoint_format: "marlin", format: undefined } },
        /layout is "marlin"/,
      ],
      [
        "the layout is another, as older tools say it",
        {
          settings: {
            checkpoint_format: undefined,
            format: undefined,
            is_marlin_format: true,
          },
        },
        /layout is "marlin"/,
      ],
      [
        "the layout has two names",
        { settings: { checkpoint_format: "gptq_v2" } },
        /checkpoint_format is "gptq_v2" and format is "gptq"/,
      ],
      ["words are short", { settings: { pack_dtype: "int16" } }, /pack_dtype is "int16"/],
      [
        "two files disagree",
        { files: { "quantize_config.json": { bits: 4, group_size: 64 } } },
        /group_size is 32 in quantization_config .* and 64 in .*quantize_config\.json/,
      ],
      [
        "nothing is quantized by that method",
        { settings: { quant_method: "mxfp4" } },
        /none of its tensors is/,
      ],
      [
        "a weight stands beside its codes",
        { tensors: { [`${Q}.weight`]: zeros("F16", [64, 64], 2) } },
        /q_proj\.weight" is stored beside its codes/,
      ],
      [
        "the method is unknown",
        { settings: { quant_method: "vptq" } },
        /quantized already \(vptq, 4 bits\)/,
      ],
    ],
  ],
  [
    "awq",
    [
      ["the layout is another", { settings: { version: "gemv" } }, /layout is "gemv"/],
      ["there are no zero points", { settings: { zero_point: false } }, /zero_point is false/],
      ["bits are other bits", { settings: { bits: 8 } }, /8 bits, where AWQ has 4/],
      ["a setting has two values", { settings: { w_bit: 8 } }, /bits and w_bit are 4 and 8/],
      [
        "groups are of another size",
        { settings: { group_size: 64 } },
        /96 channels in groups of 64/,
      ],
      ["groups have no size", { settings: { group_size: undefined } }, /group_size is null/],
    ],
  ],
  [
    "ct-w4-group",
    [
      [
        "scales are missing",
        { tensors: { [`${Q}.weight_scale`]: undefined } },
        /weight_scale" is missing/,
      ],
      [
        "scales are of another shape",
        { tensors: { [`${Q}.weight_scale`]: zeros("BF16", [64, 2], 2) } },
        /weight_scale" is \[64, 2\], not \[64, 4\]/,
      ],
      [
        "the codes' shape is missing",
        { tensors: { [`${Q}.weight_shape`]: undefined } },
        /weight_shape" is missing/,
      ],
      [
        "a module is to be ignored",
        { settings: { ignore: ["re:.*q_proj"] } },
        /q_proj" is quantized although "ignore" has "re:\.\*q_proj"/,
      ],
      [
        "no group has a module",
        { settings: { config_groups: { a: { targets: ["re:.*k_proj"], weights: {} } } } },
        /no group has it as a target/,
      ],
      [
        "a pattern is none",
        { settings: { config_groups: { a: { targets: ["re:("], weights: {} } } } },
        /target "re:\(", which is no pattern/,
      ],
      [
        "a scheme is unknown",
        {
          settings: {
            config_groups: {
              a: { targets: ["Linear"], weights: { num_bits: 4, strategy: "spiral" } },
            },
          },
        },
        /config_groups\.a\.weights\.strategy/,
      ],
      [
        "activations are rotated",
        { settings: { transform_config: { config_groups: { v: {} } } } },
        /transform_config/,
      ],
      [
        "weights are sparse",
        { settings: { sparsity_config: { format: "sparse-24-bitmask" } } },
        /sparsity_config has format "sparse-24-bitmask"/,
      ],
      [
        "codes are not compressed",
        { settings: { quantization_status: "frozen" } },
        /quantization_status is "frozen"/,
      ],
      [
        "a scale has no weight",
        { tensors: { "lm_head.weight_scale": zeros("BF16", [32, 4], 2) } },
        /lm_head\.weight_scale" has no weight of codes/,
      ],
      [
        "an order is there that nobody announced",
        { tensors: { [`${Q}.weight_g_idx`]: zeros("I32", [64], 4) } },
        /weight_g_idx" is there/,
      ],
    ],
  ],
  [
    "ct-w4-group-asymmetric",
    [
      [
        "zero points are missing",
        { tensors: { [`${Q}.weight_zero_point`]: undefined } },
        /weight_zero_point" is missing, and its grid is not symmetric/,
      ],
      [
        "zero points are not packed",
        { tensors: { [`${Q}.weight_zero_point`]: zeros("I8", [64, 2], 1) } },
        /weight_zero_point" is I8, not I32/,
      ],
    ],
  ],
  [
    "ct-w8a8",
    [
      [
        "a weight of integers has no scale",
        { tensors: { [`${Q}.weight_scale`]: undefined } },
        /weight_scale" is missing/,
      ],
    ],
  ],
  [
    "fp8-blocks",
    [
      [
        "a weight has no scale",
        { tensors: { [`${Q}.weight_scale_inv`]: undefined } },
        /q_proj\.weight" has no scale/,
      ],
      [
        "a weight has two scales",
        { tensors: { [`${Q}.weight_scale`]: zeros("F32", [1, 1], 4) } },
        /q_proj\.weight" has two scales/,
      ],
      [
        "blocks are of another size",
        { settings: { weight_block_size: [64, 64] } },
        /weight_scale_inv" is \[1, 2\], not \[2, 4\]/,
      ],
      [
        "a scale has no weight of floats",
        { tensors: { [`${Q}.weight`]: zeros("BF16", [128, 128], 2) } },
        /weight_scale_inv" has no weight of 8-bit floats/,
      ],
      [
        "blocks have one side",
        { settings: { weight_block_size: [64] } },
        /weight_block_size of its settings/,
      ],
    ],
  ],
  [
    "mxfp4",
    [
      [
        "scales are missing",
        { tensors: { "model.layers.0.mlp.experts.down_proj_scales": undefined } },
        /down_proj_scales" is missing/,
      ],
      [
        "blocks are missing",
        { tensors: { "model.layers.0.mlp.experts.down_proj_blocks": undefined } },
        /down_proj_scales" has no blocks/,
      ],
      [
        "scales are of another shape",
        { tensors: { "model.layers.0.mlp.experts.down_proj_scales": zeros("U8", [3, 64, 2], 1) } },
        /not \[3, 64, 1\]/,
      ],
    ],
  ],
  [
    "bnb-nf4",
    [
      [
        "magnitudes are missing",
        { tensors: { [`${Q}.weight.absmax`]: undefined } },
        /weight\.absmax" is missing/,
      ],
      [
        "the state is no JSON",
        { tensors: { [`${Q}.weight.quant_state.bitsandbytes__nf4`]: text("{") } },
        /bitsandbytes__nf4/,
      ],
      [
        "the state is of another kind",
        {
          tensors: {
            [`${Q}.weight.quant_state.bitsandbytes__nf4`]: text(
              '{"quant_type":"fp4","blocksize":64,"dtype":"float16","shape":[64,64]}',
            ),
          },
        },
        /says that its weight is fp4/,
      ],
      [
        "the state is of another shape",
        {
          tensors: {
            [`${Q}.weight.quant_state.bitsandbytes__nf4`]: text(
              '{"quant_type":"nf4","blocksize":64,"dtype":"float16","shape":[64,32]}',
            ),
          },
        },
        /weight" is \[2048, 1\], not \[1024, 1\]/,
      ],
    ],
  ],
  [
    "bnb-int8",
    [
      [
        "scales are of another shape",
        { tensors: { [`${Q}.SCB`]: zeros("F32", [32], 4) } },
        /SCB" is \[32\], not \[64\]/,
      ],
      [
        "the layout is tiled",
        {
          tensors: {
            [`${Q}.weight_format`]: (): Stored => ({
              type: "U8",
              shape: [],
              data: () => Uint8Array.of(2),
            }),
          },
        },
        /weight_format" names a layout other than rows/,
      ],
    ],
  ],
])("%s is refused when", (name, cases) => {
  it.each(cases)("%s", async (_, change, message) => {
    expect(await refusal(name, change)).toMatch(message);
  });
});

describe("quantized sources", () => {
  it("may have biases of zeros that their architecture has not, as AutoGPTQ wrote them", async () => {
    const bias = `${Q}.bias`;
    using source = openCheckpoint(
      await changed("gptq-4", { tensors: { [bias]: zeros("F16", [64], 2) } }),
    );
    expect(parseSource(source).config.architecture).toBe("llama");
    const one = new Uint8Array(new Uint16Array(64).fill(0x3c00).buffer);
    const other = await changed("gptq-4", {
      tensors: { [bias]: () => ({ type: "F16", shape: [64], data: () => one }) },
    });
    using biased = openCheckpoint(other);
    expect(() => parseSource(biased)).toThrow(/q_proj\.bias is there/);
  });

  it("wrap zero points as their writer does where one is 0", async () => {
    // AutoGPTQ adds the one to each field, GPTQModel to whole words: all ones are 0 for both, carries differ.
    const words = new Int32Array(2 * 8).fill(-1);
    const tensors = {
      [`${Q}.qzeros`]: (): Stored => ({ type: "I32", shape: [2, 8], data: () => words }),
    };
    const meta = (quantizer: string): Json => ({ meta: { quantizer: [quantizer] } });
    using auto = openCheckpoint(
      await changed("gptq-4", { tensors, settings: meta("auto_gptq:0.7.1") }),
    );
    using model = openCheckpoint(
      await changed("gptq-4", { tensors, settings: meta("gptqmodel:7.7.0") }),
    );
    const [fields, carried] = [auto.read(`${Q}.weight`), model.read(`${Q}.weight`)];
    // Output 0 is the lowest field, without a carry into it; output 1 has one.
    expect(fields.slice(0, 64)).toEqual(carried.slice(0, 64));
    expect(fields.slice(64, 128)).not.toEqual(carried.slice(64, 128));
  });

  it("may spell AWQ's layout in either case, and twice", async () => {
    const settings = { version: "GEMM", checkpoint_format: "gemm", format: "gemm" };
    using one = openCheckpoint(await changed("awq", { settings }));
    using two = openCheckpoint(await changed("awq", {}));
    expect(one.read(`${Q}.weight`)).toEqual(two.read(`${Q}.weight`));
  });

  it("change their hash with their settings, since values do", async () => {
    using one = openCheckpoint(await changed("gptq-4", {}));
    using two = openCheckpoint(
      await changed("gptq-4", { settings: { checkpoint_format: "gptq_v2", format: "gptq_v2" } }),
    );
    expect(await one.hash()).not.toBe(await two.hash());
    expect(one.read(`${Q}.weight`)).not.toEqual(two.read(`${Q}.weight`));
  });

  it("do not give their codes by name", () => {
    using source = openCheckpoint(join(fixtures, "gptq-4"));
    expect(() => source.read(`${Q}.qweight`)).toThrow(/part of a quantized weight/);
  });
});
