/** GGUF files: agreement with another parser, names, configuration and row order, and hostile files. */

import { join } from "node:path";
import { gguf } from "@huggingface/gguf";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { FileReader } from "../../src/checkpoint/file-reader.js";
import { llama3Factors, rotateHalfRow } from "../../src/checkpoint/gguf-config.js";
import { parseGguf } from "../../src/checkpoint/gguf-parser.js";
import { checkHeaderLength } from "../../src/checkpoint/safetensors-header.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { ByteWriter, ggufBytes, temporaryDirectory, writeBytes, type GgufField } from "./files.js";
import {
  HEADS,
  HIDDEN,
  KV_HEADS,
  matrix,
  modelBytes,
  modelTensors,
  vector,
} from "./gguf-models.js";

const directory = temporaryDirectory();
let counter = 0;
const write = (bytes: Uint8Array): string => writeBytes(directory, `m${counter++}.gguf`, bytes);

describe("parsing", () => {
  it("agrees with @huggingface/gguf on metadata and tensors", async () => {
    const path = write(
      modelBytes("llama", { "x.flag": { bool: true }, "x.list": { f32s: [0.5, 2] } }),
    );
    using reader = new FileReader(path);
    const ours = parseGguf(reader);
    const theirs = await gguf(path, { allowLocalFile: true });
    for (const [key, value] of ours.metadata) {
      const plain = ArrayBuffer.isView(value) ? Array.from(value as Float32Array) : value;
      expect(plain, key).toEqual((theirs.metadata as Record<string, unknown>)[key]);
    }
    expect(ours.tensors.map(({ name, shape }) => [name, [...shape].reverse()])).toEqual(
      theirs.tensorInfos.map(({ name, shape }) => [name, shape.map(Number)]),
    );
    const dataStart = Number(theirs.tensorDataOffset);
    expect(ours.tensors.map(({ position }) => position)).toEqual(
      theirs.tensorInfos.map(({ offset }) => dataStart + Number(offset)),
    );
  });
});

describe("as a checkpoint", () => {
  it("speaks Hugging Face's language", () => {
    using checkpoint = openCheckpoint(write(modelBytes()));
    expect(checkpoint.format).toBe("gguf");
    expect(checkpoint.config).toEqual({
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      hidden_size: 64,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      hidden_act: "silu",
      max_position_embeddings: 4096,
      rms_norm_eps: 1e-5,
      rope_theta: 1e6,
      attention_bias: false,
      tie_word_embeddings: true,
      vocab_size: 8,
      bos_token_id: 0,
      eos_token_id: 1,
    });
    expect(checkpoint.generationConfig).toEqual({ bos_token_id: 0, eos_token_id: [1, 7] });
    expect([...checkpoint.tensors.keys()].filter((name) => !name.includes(".1."))).toEqual([
      "model.embed_tokens.weight",
      "model.norm.weight",
      "model.layers.0.input_layernorm.weight",
      "model.layers.0.self_attn.q_proj.weight",
      "model.layers.0.self_attn.k_proj.weight",
      "model.layers.0.self_attn.v_proj.weight",
      "model.layers.0.self_attn.o_proj.weight",
      "model.layers.0.post_attention_layernorm.weight",
      "model.layers.0.mlp.gate_proj.weight",
      "model.layers.0.mlp.up_proj.weight",
      "model.layers.0.mlp.down_proj.weight",
    ]);
    expect(checkpoint.tensors.get("model.layers.1.mlp.down_proj.weight")?.shape).toEqual([64, 96]);
  });

  it("undoes the converter's permutation of q and k, for values and for bytes", () => {
    using checkpoint = openCheckpoint(write(modelBytes()));
    for (const [name, heads] of [
      ["q", HEADS],
      ["k", KV_HEADS],
    ] as const) {
      const tensor = `model.layers.1.self_attn.${name}_proj.weight`;
      const values = checkpoint.read(tensor);
      const headDim = HIDDEN / HEADS;
      // The converter: reshape(heads, 2, headDim / 2).swapaxes(1, 2), so Hugging Face's row (h, j, i) is
      // the file's row (h, i, j). Row r of the file holds values r + column / 1000.
      for (let h = 0; h < heads; h++) {
        for (let j = 0; j < 2; j++) {
          for (let i = 0; i < headDim / 2; i++) {
            const row = h * headDim + j * (headDim / 2) + i;
            const stored = h * headDim + 2 * i + j;
            expect(values[row * HIDDEN]).toBe(stored);
            expect(values[row * HIDDEN + 5]).toBe(Math.fround(stored + 0.005));
          }
        }
      }
      expect(new Float32Array(checkpoint.readBytes(tensor).buffer)).toEqual(values);
    }
    expect(checkpoint.read("model.layers.1.self_attn.v_proj.weight")[3 * HIDDEN]).toBe(3);
  });

  it("permutes rows within their head, one to one", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 64 }),
        (heads, half) => {
          const rows = Array.from({ length: heads * 2 * half }, (_, row) =>
            rotateHalfRow(row, 2 * half),
          );
          expect(new Set(rows).size).toBe(rows.length);
          rows.forEach((from, row) => {
            expect(Math.floor(from / (2 * half))).toBe(Math.floor(row / (2 * half)));
          });
        },
      ),
    );
  });

  it("leaves Qwen's rows as they are and takes its biases, norms and output matrix", () => {
    using qwen2 = openCheckpoint(
      write(
        modelBytes("qwen2", {}, [
          vector(
            "blk.0.attn_q.bias",
            Float32Array.from({ length: HIDDEN }, (_, i) => i),
          ),
          matrix("output.weight", 8, HIDDEN),
        ]),
      ),
    );
    expect(qwen2.config).toMatchObject({
      architectures: ["Qwen2ForCausalLM"],
      model_type: "qwen2",
      attention_bias: true,
      tie_word_embeddings: false,
    });
    expect(qwen2.read("model.layers.0.self_attn.q_proj.weight")[HIDDEN]).toBe(1);
    expect(qwen2.read("model.layers.0.self_attn.q_proj.bias")[1]).toBe(1);
    expect(qwen2.tensors.has("lm_head.weight")).toBe(true);
    using qwen3 = openCheckpoint(
      write(
        modelBytes(
          "qwen3",
          {
            "qwen3.attention.key_length": { u32: 32 },
            "qwen3.attention.value_length": { u32: 32 },
          },
          [
            vector("blk.0.attn_q_norm.weight", new Float32Array(32)),
            vector("blk.0.attn_k_norm.weight", new Float32Array(32)),
          ],
        ),
      ),
    );
    expect(qwen3.config).toMatchObject({ model_type: "qwen3", head_dim: 32 });
    expect(qwen3.tensors.has("model.layers.0.self_attn.q_norm.weight")).toBe(true);
    expect(qwen3.tensors.has("model.layers.0.self_attn.k_norm.weight")).toBe(true);
  });

  it("recognises llama3 scaling by its rotary factors, and refuses others", () => {
    // Llama 3.2's published settings: theta 500000, head 64, factor 32. Pair 16 has wavelength
    // 2π·√500000 = 4442.9, so smooth = (8192/4442.9 − 1)/3 = 0.28129 and the divisor
    // 1/((1 − 0.28129)/32 + 0.28129) = 3.2922.
    const published = llama3Factors(32, 500000, 64);
    expect([published[0], published[20], published[31]]).toEqual([1, 32, 32]);
    expect(published[16]).toBeCloseTo(3.2922, 3);
    const factors = llama3Factors(32, 500000, 16);
    const fields: Record<string, GgufField> = { "llama.rope.freq_base": { f32: 500000 } };
    using checkpoint = openCheckpoint(
      write(modelBytes("llama", fields, [vector("rope_freqs.weight", factors)])),
    );
    expect(checkpoint.config["rope_scaling"]).toEqual({
      rope_type: "llama3",
      factor: 32,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    });
    const other = Float32Array.from(factors, (value, i) => (i === 4 ? value * 1.01 : value));
    expect(() =>
      openCheckpoint(write(modelBytes("llama", fields, [vector("rope_freqs.weight", other)]))),
    ).toThrow(/follows neither llama3 scaling/);
  });

  it.each<[string, Record<string, GgufField>, unknown]>([
    ["a factor without type", { "llama.rope.scaling.factor": { f32: 4 } }, 4],
    ["the older key", { "llama.rope.scale_linear": { f32: 2 } }, 2],
    ["a factor of 0", { "llama.rope.scaling.factor": { f32: 0 } }, undefined],
  ])("reads linear rope scaling from %s", (_, fields, factor) => {
    using checkpoint = openCheckpoint(write(modelBytes("llama", fields)));
    expect(checkpoint.config["rope_scaling"]).toEqual(
      factor === undefined ? undefined : { rope_type: "linear", factor },
    );
  });

  it.each<[string, GgufField, GgufField]>([
    ["attention.logit_softcapping", { f32: 50 }, { f32: 0 }],
    ["final_logit_softcapping", { f32: 30 }, { f32: 0 }],
    ["attention.scale", { f32: 0.1 }, { f32: 0 }],
    ["logit_scale", { f32: 0.5 }, { f32: 1 }],
    ["residual_scale", { f32: 0.5 }, { f32: 1 }],
    ["attention.causal", { bool: false }, { bool: true }],
    ["expert_used_count", { u32: 2 }, { u32: 0 }],
    ["attention.sliding_window", { u32: 512 }, { u32: 4096 }],
  ])("refuses %s where it changes the arithmetic, and only there", (key, wrong, right) => {
    expect(() => openCheckpoint(write(modelBytes("llama", { [`llama.${key}`]: wrong })))).toThrow(
      `metadata llama.${key} is `,
    );
    openCheckpoint(write(modelBytes("llama", { [`llama.${key}`]: right })))[Symbol.dispose]();
  });

  it.each([
    [
      "another architecture",
      modelBytes("gemma"),
      /architecture "gemma" is not supported.*llama, qwen2, qwen3/,
    ],
    [
      "experts where the family has none",
      modelBytes("qwen2", { "qwen2.expert_count": { u32: 8 } }),
      /mixtures of experts are not supported in GGUF files of architecture qwen2/,
    ],
    [
      "experts without their number a token",
      modelBytes("llama", { "llama.expert_count": { u32: 8 } }),
      /llama.expert_used_count is missing/,
    ],
    [
      "another way of scoring experts",
      modelBytes("llama", {
        "llama.expert_count": { u32: 8 },
        "llama.expert_used_count": { u32: 2 },
        "llama.expert_gating_func": { u32: 2 },
      }),
      /llama.expert_gating_func is 2; of this architecture only 1 is read/,
    ],
    [
      "further layers that predict",
      modelBytes("llama", { "llama.nextn_predict_layers": { u32: 1 } }),
      /llama.nextn_predict_layers is 1/,
    ],
    [
      "a tensor of no known place",
      modelBytes("llama", {}, [matrix("blk.0.ffn_gate_inp.weight", 8, 64)]),
      /"blk.0.ffn_gate_inp.weight" has no place/,
    ],
    [
      "heads that do not divide",
      modelBytes("llama", { "llama.attention.head_count": { u32: 5 } }),
      /heads of 12.8 dimensions/,
    ],
    [
      "a setting of the wrong type",
      modelBytes("llama", { "llama.block_count": { string: "2" } }),
      /llama.block_count must be one non-negative integer/,
    ],
    [
      "a model without embedding",
      ggufBytes(
        {
          "general.architecture": { string: "llama" },
          "llama.embedding_length": { u32: 64 },
          "llama.attention.head_count": { u32: 4 },
        },
        [],
      ),
      /token_embd.weight is missing/,
    ],
    ["no architecture", ggufBytes({}, []), /general.architecture is missing/],
  ])("refuses %s", (_, bytes, message) => {
    const path = write(bytes);
    expect(() => openCheckpoint(path)).toThrow(PlanishError);
    expect(() => openCheckpoint(path)).toThrow(message);
  });

  it.each(["padding", "unknown", "bos", "eos"])(
    "goes on without a %s id that is no token",
    (name) => {
      for (const u32 of [8, 0xffffffff]) {
        const key = `tokenizer.ggml.${name}_token_id`;
        const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
        using checkpoint = openCheckpoint(write(modelBytes("llama", { [key]: { u32 } })));
        checkpoint.tokenizerFiles();
        expect(warn.mock.calls[0][0]).toContain(`metadata ${key} is ${u32}, there are 8 tokens`);
        warn.mockRestore();
        const { config, generationConfig } = checkpoint;
        expect([config["bos_token_id"], config["eos_token_id"]]).not.toContain(u32);
        expect(generationConfig?.["eos_token_id"]).not.toContain(u32);
      }
    },
  );

  it.each([
    ["version https://git-lfs.github.com/spec/v1\noid sha256:0", /is a Git LFS pointer/],
    ["<!DOCTYPE html><html></html>", /is a web page/],
    ['{"error":"Repository not found"}', /is a server's error in JSON/],
    ["PK\u0003\u0004archive/data.pkl", /is a zip archive or a PyTorch pickle/],
    ["", /is empty/],
  ])("names what lies in a model's place: %j", (text, message) => {
    expect(() => openCheckpoint(write(Buffer.from(text)))).toThrow(message);
    const bytes = Buffer.from(text);
    const first = Buffer.alloc(8);
    bytes.copy(first);
    expect(() =>
      checkHeaderLength(first.readBigUInt64LE(), bytes.length, "model.safetensors"),
    ).toThrow(message);
  });

  it("says that the tokenizer is missing only when it is asked for", () => {
    const path = write(ggufBytes({ ...withoutTokenizer() }, modelTensors()));
    using checkpoint = openCheckpoint(path);
    expect(checkpoint.tensors.size).toBe(20);
    expect(() => checkpoint.tokenizerFiles()).toThrow(/no tokenizer in its metadata/);
  });
});

function withoutTokenizer(): Record<string, GgufField> {
  return {
    "general.architecture": { string: "llama" },
    "llama.block_count": { u32: 2 },
    "llama.context_length": { u32: 64 },
    "llama.embedding_length": { u32: HIDDEN },
    "llama.feed_forward_length": { u32: 96 },
    "llama.attention.head_count": { u32: HEADS },
    "llama.attention.layer_norm_rms_epsilon": { f32: 1e-5 },
  };
}

describe("hostile files", () => {
  const start = (version = 3): ByteWriter =>
    new ByteWriter().bytes(new TextEncoder().encode("GGUF")).u32(version);
  const oneTensor = (describe: (out: ByteWriter) => ByteWriter): Uint8Array =>
    describe(start().u64(1).u64(0).string("t")).pad(32).bytes(new Uint8Array(128)).result();
  const huge = 1n << 60n;

  it.each([
    ["no magic number", new Uint8Array(64), /does not begin with "GGUF"/],
    [
      "an old version",
      start(1).u64(0).u64(0).result(),
      /version 1 is not supported \(accepted: 2 and 3\)/,
    ],
    [
      "the other byte order",
      start(3 << 24)
        .u64(0)
        .u64(0)
        .result(),
      /big-endian/,
    ],
    [
      "a file that ends in its header",
      start().u64(0).result(),
      /truncated: the number of metadata keys/,
    ],
    [
      "a huge tensor count",
      start().u64(huge).u64(0).result(),
      /claims 1152921504606846976 for the number of tensors/,
    ],
    [
      "a tensor count beyond the file",
      start().u64(1000).u64(0).result(),
      /claims 1000 for the number of tensors, more than the 8 bytes left/,
    ],
    ["a huge key count", start().u64(0).u64(huge).result(), /for the number of metadata keys/],
    ["a huge key", start().u64(0).u64(1).u64(huge).u64(0).result(), /the length of metadata key 0/],
    [
      "a huge string list",
      start().u64(0).u64(1).string("k").u32(9).u32(8).u64(huge).result(),
      /the elements of metadata "k", more than the 4000000/,
    ],
    [
      "a string list beyond the file",
      start().u64(0).u64(1).string("k").u32(9).u32(8).u64(3_999_999).result(),
      /the elements of metadata "k", more than the 0 bytes left/,
    ],
    [
      "a huge number list",
      start().u64(0).u64(1).string("k").u32(9).u32(12).u64(huge).result(),
      /the elements of metadata "k"/,
    ],
    ["lists nested without end", nested(40), /nests arrays more than two deep/],
    [
      "an unknown value type",
      start().u64(0).u64(1).string("k").u32(77).u64(0).result(),
      /metadata "k" has unknown value type 77/,
    ],
    [
      "a key twice",
      start().u64(0).u64(2).string("k").u32(4).u32(1).string("k").u32(4).u32(1).result(),
      /metadata "k" is listed more than once/,
    ],
    [
      "an alignment that is none",
      start().u64(0).u64(1).string("general.alignment").u32(4).u32(24).result(),
      /general.alignment must be a power of two/,
    ],
    [
      "an alignment of 1.5",
      start().u64(0).u64(1).string("general.alignment").u32(6).f32(1.5).result(),
      /general.alignment must be a power of two up to 1048576, not 1.5/,
    ],
    [
      "an alignment of NaN",
      start().u64(0).u64(1).string("general.alignment").u32(6).f32(NaN).result(),
      /general.alignment must be a power of two up to 1048576, not NaN/,
    ],
    [
      "many arrays inside an array",
      start()
        .u64(0)
        .u64(1)
        .string("k")
        .u32(9)
        .u32(9)
        .u64(70_000)
        .bytes(new Uint8Array(12 * 70_000))
        .result(),
      /brings the arrays inside arrays to 70000, at most 65536/,
    ],
    [
      "a tensor of many dimensions",
      oneTensor((out) => out.u32(4_000_000_000)),
      /has 4000000000 dimensions/,
    ],
    ["a dimension of 0", oneTensor((out) => out.u32(1).u64(0).u32(0).u64(0)), /dimension 0 is 0/],
    [
      "a huge dimension",
      oneTensor((out) => out.u32(1).u64(huge).u32(0).u64(0)),
      /dimension 0 is 1152921504606846976/,
    ],
    [
      "dimensions of a huge product",
      oneTensor((out) =>
        out
          .u32(2)
          .u64(1n << 40n)
          .u64(1n << 40n)
          .u32(0)
          .u64(0),
      ),
      /are too large/,
    ],
    [
      "a type that is not read",
      oneTensor((out) => out.u32(1).u64(256).u32(10).u64(0)),
      /type Q2_K is not supported \(accepted: F32/,
    ],
    [
      "an unknown type",
      oneTensor((out) => out.u32(1).u64(256).u32(999).u64(0)),
      /type 999 is not supported/,
    ],
    [
      "rows of no whole block",
      oneTensor((out) => out.u32(2).u64(48).u64(2).u32(2).u64(0)),
      /rows of 48 are no whole number of Q4_0 blocks of 32/,
    ],
    [
      "data beyond the file",
      oneTensor((out) => out.u32(1).u64(64).u32(0).u64(0)),
      /its 256 bytes at offset 0 reach beyond the end/,
    ],
    [
      "an offset beyond the file",
      oneTensor((out) =>
        out
          .u32(1)
          .u64(4)
          .u32(0)
          .u64(1n << 63n),
      ),
      /reach beyond the end/,
    ],
    [
      "an offset out of line",
      oneTensor((out) => out.u32(1).u64(4).u32(0).u64(4)),
      /offset 4 is no multiple of the alignment 32/,
    ],
    [
      "overlapping tensors",
      ggufBytes({}, [matrix("a", 4, 16), { ...matrix("b", 4, 16), offset: 32 }]),
      /"b": its data overlaps that of tensor "a"/,
    ],
    [
      "a tensor twice",
      ggufBytes({}, [matrix("a", 1, 8), matrix("a", 1, 8)]),
      /"a" is listed more than once/,
    ],
  ])("refuses %s in one line", (_, bytes, message) => {
    const path = write(bytes);
    expect(() => openCheckpoint(path)).toThrow(PlanishError);
    expect(() => openCheckpoint(path)).toThrow(message);
    expect(() => openCheckpoint(path)).toThrow(/^[^\n]*\.gguf[^\n]*$/);
  });

  it("survives any damage to a file: an error for people, or tensors within the file", () => {
    const whole = modelBytes();
    const headerEnd = 3000;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat({ max: headerEnd }), fc.nat({ max: 255 })), { maxLength: 4 }),
        fc.option(fc.nat({ max: whole.length }), { freq: 2 }),
        (changes, cut) => {
          const bytes = whole.slice(0, cut ?? whole.length);
          for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
          const path = writeBytes(directory, "damaged.gguf", bytes);
          try {
            using checkpoint = openCheckpoint(path);
            for (const name of checkpoint.tensors.keys()) checkpoint.read(name);
            checkpoint.tokenizerFiles();
          } catch (error) {
            expect(error).toBeInstanceOf(PlanishError);
            expect((error as Error).message).not.toContain("\n");
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it("tells a truncated file by its tensors", () => {
    const whole = modelBytes();
    const path = writeBytes(directory, "cut.gguf", whole.subarray(0, whole.length - 64));
    expect(() => openCheckpoint(path)).toThrow(
      /blk\.1\.ffn_down\.weight.*reach beyond the end of the file/,
    );
    expect(() => openCheckpoint(join(directory, "none.gguf"))).toThrow(/does not exist/);
  });

  function nested(depth: number): Uint8Array {
    const out = start().u64(0).u64(1).string("k").u32(9);
    for (let i = 0; i < depth; i++) out.u32(9).u64(1);
    return out.u32(0).u64(0).result();
  }
});
