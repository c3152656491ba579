/** Gemma 2 and 3 as GGUF: the converter's names, and gains to which it has added 1, come out as the original's. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { parseSource } from "../../src/models/source.js";
import { float32Bytes, ggufBytes, type GgufTensorSpec } from "./file-bytes.js";
import { temporaryDirectory, writeBytes } from "./files.js";
import { tokenizerFields } from "./gguf-models.js";

const NAMES: Readonly<Record<string, string>> = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  input_layernorm: "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  post_attention_layernorm: "post_attention_norm",
  pre_feedforward_layernorm: "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  post_feedforward_layernorm: "post_ffw_norm",
};

function converted(name: string): string {
  const [, block, stem] = /^(?:model\.layers\.(\d+)\.)?(.+)\.weight$/.exec(name) ?? [];
  return `${block === undefined ? "" : `blk.${block}.`}${NAMES[stem]}.weight`;
}

/** Where the converter's files say something that the fixture's configuration says otherwise. */
const KINDS = [
  ["gemma2", { caps: true, full: (layer: number) => layer % 2 === 1 }],
  ["gemma3", { caps: false, full: (layer: number) => layer % 6 === 5 }],
] as const;

describe.each(KINDS)("%s", (name, has) => {
  using original = openCheckpoint(join(import.meta.dirname, "../fixtures/architectures", name));
  const { config } = parseSource(original);
  const tensors = [...original.tensors.values()].map((tensor): GgufTensorSpec => {
    const values = original.read(tensor.name);
    const gains = tensor.name.endsWith("norm.weight");
    const data = float32Bytes(gains ? values.map((gain) => gain + 1) : values);
    return { name: converted(tensor.name), extents: [...tensor.shape].reverse(), type: 0, data };
  });
  const expected = new Map([...original.tensors.keys()].map((each) => [each, original.read(each)]));
  const key = (suffix: string): string => `${name}.${suffix}`;
  const caps = has.caps
    ? {
        [key("attn_logit_softcapping")]: { f32: 25 },
        [key("final_logit_softcapping")]: { f32: 15 },
      }
    : {};
  const path = writeBytes(
    temporaryDirectory(),
    "model.gguf",
    ggufBytes(
      {
        "general.architecture": { string: name },
        [key("block_count")]: { u32: config.numLayers },
        [key("context_length")]: { u32: config.maxPositions },
        [key("embedding_length")]: { u32: config.hiddenSize },
        [key("feed_forward_length")]: { u32: config.intermediateSize },
        [key("attention.head_count")]: { u32: config.numHeads },
        [key("attention.head_count_kv")]: { u32: config.numKvHeads },
        [key("attention.key_length")]: { u32: config.headDim },
        [key("attention.value_length")]: { u32: config.headDim },
        [key("attention.layer_norm_rms_epsilon")]: { f32: config.norm.epsilon },
        [key("attention.sliding_window")]: { u32: 8 },
        ...caps,
        [key("rope.freq_base")]: { f32: 2000 },
        ...tokenizerFields,
      },
      tensors,
    ),
  );

  it("has the original's tensors, and the file's windows and caps", () => {
    using checkpoint = openCheckpoint(path);
    const read = parseSource(checkpoint).config;
    const windows = Array.from({ length: config.numLayers }, (_, layer) =>
      has.full(layer) ? undefined : 8,
    );
    expect(read.layers?.map(({ window }) => window)).toEqual(windows);
    expect(read.attention).toEqual({
      scale: config.headDim ** -0.5,
      softcap: has.caps ? 25 : undefined,
    });
    expect(read.logitSoftcap).toBe(has.caps ? 15 : undefined);
    expect(read.positions).toMatchObject({ theta: 2000 });
    for (const [tensor, values] of expected) {
      const own = checkpoint.read(tensor);
      const gap = own.reduce((most, x, i) => Math.max(most, Math.abs(x - values[i])), 0);
      // 1 + gain is rounded to f32.
      expect(gap).toBeLessThan(tensor.endsWith("norm.weight") ? 3e-7 : 1e-30);
    }
  });
});
