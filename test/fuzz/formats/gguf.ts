/** GGUF: the container, and the configuration and tokenizer that are rebuilt from its metadata. */
import { createTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { openGguf } from "../../../src/checkpoint/gguf.js";
import { ByteWriter, float32Bytes } from "../../checkpoint/file-bytes.js";
import type { Random } from "../../../src/common/random.js";
import { ensure, ensureFinite, type Target } from "../target.js";
import { mutatedBytes, pick } from "../mutate.js";
import { scratchFile } from "../scratch.js";
import { checkConfig } from "./config.js";

/** Value types of the format that the mutations use. */
const U32 = 4;
const I32 = 5;
const F32 = 6;
const BOOL = 7;
const STRING = 8;
const LIST = 9;
const U64 = 10;

type Value = number | bigint | string | readonly (number | string)[];
interface Field {
  readonly key: string;
  readonly type: number;
  /** Of a list's elements. */
  readonly of?: number;
  readonly value: Value;
}
interface Tensor {
  readonly name: string;
  readonly extents: readonly bigint[];
  readonly type: number;
  readonly offset: bigint;
}
interface File {
  readonly version: number;
  readonly tensors: readonly Tensor[];
  readonly fields: readonly Field[];
  readonly tensorCount?: bigint;
  readonly fieldCount?: bigint;
  readonly data: number;
}

const WIDTH = 8;

function baseFields(architecture: string): Field[] {
  const key = (name: string): string => `${architecture}.${name}`;
  return [
    { key: "general.architecture", type: STRING, value: architecture },
    { key: "general.alignment", type: U32, value: 32 },
    { key: key("block_count"), type: U32, value: 1 },
    { key: key("context_length"), type: U32, value: 64 },
    { key: key("embedding_length"), type: U32, value: WIDTH },
    { key: key("feed_forward_length"), type: U32, value: WIDTH },
    { key: key("attention.head_count"), type: U32, value: 2 },
    { key: key("attention.head_count_kv"), type: U32, value: 1 },
    { key: key("attention.layer_norm_rms_epsilon"), type: F32, value: 1e-5 },
    { key: key("rope.freq_base"), type: F32, value: 10000 },
    { key: key("rope.dimension_count"), type: U32, value: 4 },
    { key: key("vocab_size"), type: U32, value: 8 },
    { key: "tokenizer.ggml.model", type: STRING, value: "gpt2" },
    { key: "tokenizer.ggml.pre", type: STRING, value: "gpt-2" },
    { key: "tokenizer.ggml.tokens", type: LIST, of: STRING, value: ["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "<|im_end|>"] },
    { key: "tokenizer.ggml.token_type", type: LIST, of: I32, value: [3, 3, 1, 1, 1, 1, 1, 3] },
    { key: "tokenizer.ggml.merges", type: LIST, of: STRING, value: ["a b"] },
    { key: "tokenizer.ggml.bos_token_id", type: U32, value: 0 },
    { key: "tokenizer.ggml.eos_token_id", type: U32, value: 1 },
    { key: "tokenizer.ggml.padding_token_id", type: U32, value: 1 },
    { key: "tokenizer.ggml.add_bos_token", type: BOOL, value: 1 },
    { key: "tokenizer.chat_template", type: STRING, value: "{{ messages[0].content }}" },
  ]; // prettier-ignore
}

/** As SentencePiece models have them. */
const SCORED: readonly Field[] = [
  { key: "tokenizer.ggml.model", type: STRING, value: "llama" },
  {
    key: "tokenizer.ggml.tokens",
    type: LIST,
    of: STRING,
    value: ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a", "b"],
  },
  { key: "tokenizer.ggml.scores", type: LIST, of: F32, value: [0, 0, 0, 0, -1, -2, -3, -4] },
  { key: "tokenizer.ggml.token_type", type: LIST, of: I32, value: [2, 3, 3, 6, 1, 1, 1, 1] },
];

const KEYS = [
  "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "attention.sliding_window", "attention.key_length",
  "attention.value_length", "attention.head_count_kv", "expert_count", "rope.scaling.original_context_length",
]; // prettier-ignore

function baseTensors(): { tensors: Tensor[]; data: number } {
  const shapes: [string, number[]][] = [
    ["token_embd.weight", [WIDTH, 8]],
    ["output_norm.weight", [WIDTH]],
    ["blk.0.attn_norm.weight", [WIDTH]],
    ["blk.0.attn_q.weight", [WIDTH, WIDTH]],
    ["blk.0.attn_k.weight", [WIDTH, WIDTH / 2]],
    ["blk.0.attn_v.weight", [WIDTH, WIDTH / 2]],
    ["blk.0.attn_output.weight", [WIDTH, WIDTH]],
    ["blk.0.ffn_norm.weight", [WIDTH]],
    ["blk.0.ffn_gate.weight", [WIDTH, WIDTH]],
    ["blk.0.ffn_up.weight", [WIDTH, WIDTH]],
    ["blk.0.ffn_down.weight", [WIDTH, WIDTH]],
  ];
  let data = 0;
  const tensors = shapes.map(([name, extents]) => {
    const offset = data;
    data = Math.ceil((offset + 4 * extents.reduce((a, b) => a * b)) / 32) * 32;
    return { name, extents: extents.map(BigInt), type: 0, offset: BigInt(offset) };
  });
  return { tensors, data };
}

const BASES: readonly File[] = ["llama", "qwen2", "qwen3", "mistral"].flatMap((architecture) => {
  const fields = baseFields(architecture);
  const replaced = new Set(SCORED.map(({ key }) => key));
  const scored = [
    ...fields.filter(({ key }) => !replaced.has(key) && !key.endsWith(".merges")),
    ...SCORED,
  ];
  return [fields, scored].map((each) => ({ version: 3, fields: each, ...baseTensors() }));
});

const WHOLE = [0n, 1n, 2n, 3n, 31n, 32n, 33n, 64n, 2n ** 16n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]; // prettier-ignore
const REAL = [0, -0, -1, 0.5, 1, 1.5, 2, 1e-30, 1e30, NaN, Infinity, -Infinity];
const TEXT = ["", "a", "llama", "qwen2", "linear", "yarn", "none", "gpt2", "bert", "\u0000", "x".repeat(300), "a\nb", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "rope_freqs.weight"]; // prettier-ignore

function mutated(file: File, random: Random): File {
  const fields = [...file.fields];
  const tensors = [...file.tensors];
  const at = random.below(fields.length);
  const which = random.below(tensors.length);
  const tensor = tensors[which];
  switch (random.below(13)) {
    case 0:
      fields.splice(at, 1);
      break;
    case 1:
      fields.push({ ...fields[at], value: otherValue(fields[at], random) });
      break;
    case 2:
    case 3:
    case 4:
      fields[at] = { ...fields[at], value: otherValue(fields[at], random) };
      break;
    case 5:
      fields[at] = { key: fields[at].key, ...anyValue(random) };
      break;
    case 6: {
      const architecture =
        fields.find(({ key }) => key === "general.architecture")?.value ?? "llama";
      fields.push({ key: `${String(architecture)}.${pick(random, KEYS)}`, ...anyValue(random) });
      break;
    }
    case 7:
      tensors.splice(which, 1);
      break;
    case 8:
      tensors[which] = { ...tensor, name: pick(random, [...TEXT, tensors[0].name]) };
      break;
    case 9:
      tensors[which] = {
        ...tensor,
        type: pick(random, [0, 1, 2, 3, 8, 10, 12, 14, 24, 30, 39, 255, 2 ** 32 - 1]),
      };
      break;
    case 10: {
      const extents = [...tensor.extents];
      if (random.uniform() < 0.3) extents.push(pick(random, WHOLE));
      else extents[random.below(extents.length)] = pick(random, WHOLE);
      tensors[which] = { ...tensor, extents };
      break;
    }
    case 11:
      tensors[which] = { ...tensor, offset: pick(random, [...WHOLE, tensors[0].offset]) };
      break;
    default:
      return random.uniform() < 0.5
        ? { ...file, tensorCount: pick(random, WHOLE) }
        : {
            ...file,
            fieldCount: pick(random, WHOLE),
            version: pick(random, [0, 1, 2, 3, 4, 0x03000000]),
          };
  }
  return { ...file, fields, tensors };
}

function otherValue({ value, of }: Field, random: Random): Value {
  if (typeof value === "string") return pick(random, TEXT);
  if (typeof value === "number")
    return random.uniform() < 0.3 ? pick(random, REAL) : Number(pick(random, WHOLE));
  if (!Array.isArray(value)) return pick(random, WHOLE);
  const list = [...(value as (number | string)[])];
  const at = random.below(list.length);
  const kind = random.below(4);
  if (kind === 0) list.splice(at, 1);
  else if (kind === 1) list.push(list[at]);
  else
    list[at] =
      of === STRING
        ? pick(random, TEXT)
        : kind === 2
          ? pick(random, REAL)
          : Number(pick(random, WHOLE));
  return list;
}

function anyValue(random: Random): Omit<Field, "key"> {
  const type = pick(random, [U32, I32, F32, BOOL, STRING, LIST, U64]);
  if (type === STRING) return { type, value: pick(random, TEXT) };
  if (type === F32) return { type, value: pick(random, REAL) };
  if (type !== LIST) return { type, value: pick(random, WHOLE) };
  const of = pick(random, [U32, F32, STRING, LIST]);
  const items = Array.from({ length: random.below(12) }, () =>
    of === STRING ? pick(random, TEXT) : pick(random, REAL),
  );
  return { type, of, value: items };
}

function writeScalar(out: ByteWriter, type: number, value: Value): void {
  if (type === STRING) out.string(String(value));
  else if (type === F32) out.f32(Number(value));
  else if (type === BOOL) out.bytes(Uint8Array.of(Number(value) & 255));
  else if (type === U64) out.u64(BigInt.asUintN(64, whole(value)));
  // An empty list of bytes, for lists within lists.
  else if (type === LIST) out.u32(0).u64(0);
  else out.u32(Number(BigInt.asUintN(32, whole(value))));
}

function whole(value: Value): bigint {
  if (typeof value === "bigint") return value;
  const number = Math.trunc(Number(value));
  return Number.isFinite(number) ? BigInt(number) : 0n;
}

function bytesOf({ version, fields, tensors, fieldCount, tensorCount, data }: File): Uint8Array {
  const out = new ByteWriter().bytes(new TextEncoder().encode("GGUF")).u32(version);
  out.u64(tensorCount ?? tensors.length).u64(fieldCount ?? fields.length);
  for (const { key, type, of, value } of fields) {
    out.string(key).u32(type);
    if (type !== LIST) writeScalar(out, type, value);
    else {
      const list = Array.isArray(value) ? (value as (number | string)[]) : [];
      out.u32(of ?? U32).u64(list.length);
      for (const item of list) writeScalar(out, of ?? U32, item);
    }
  }
  for (const { name, extents, type, offset } of tensors) {
    out.string(name).u32(extents.length);
    for (const extent of extents) out.u64(extent);
    out.u32(type).u64(offset);
  }
  return out
    .pad(32)
    .bytes(float32Bytes(new Float32Array(data / 4).fill(0.5)))
    .result();
}

export const ggufTarget: Target = {
  name: "GGUF",
  generate(random) {
    let file = pick(random, BASES);
    const changes = 1 + random.below(2);
    for (let i = 0; i < changes; i++) file = mutated(file, random);
    const bytes = bytesOf(file);
    // Of the front, since nothing looks at the weights.
    return random.uniform() < 0.25 ? mutatedBytes(bytes, random, bytes.length - file.data) : bytes;
  },
  run(input) {
    using checkpoint = openGguf(scratchFile("model.gguf", input));
    for (const { name, shape, bytes } of checkpoint.tensors.values()) {
      ensure(bytes <= input.length, `${name} has ${bytes} bytes in a file of ${input.length}`);
      const elements = shape.reduce((a, b) => a * b, 1);
      ensure(checkpoint.read(name).length === elements, `${name}: other elements than its shape's`);
    }
    ensureFinite(checkpoint.config, "config");
    const embedding = checkpoint.tensors.get("model.embed_tokens.weight");
    ensure(
      checkpoint.config["vocab_size"] === embedding?.shape[0],
      "another vocabulary than the embedding's",
    );
    checkConfig(checkpoint.config);
    const tokenizer = createTokenizer(
      checkpoint.tokenizerFiles(),
      checkpoint.config,
      checkpoint.generationConfig,
    );
    for (const id of tokenizer.eosTokenIds)
      ensure(Number.isSafeInteger(id) && id >= 0, `an end-of-text id of ${id}`);
    for (const id of tokenizer.encode("a b"))
      ensure(id >= 0 && id < tokenizer.vocabSize, `token ${id}`);
  },
};
