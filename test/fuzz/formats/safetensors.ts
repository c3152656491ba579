/** Weights: safetensors files, and the index of shards. */
import { readFileSync } from "node:fs";
import { openSafetensors, type Safetensors } from "../../../src/checkpoint/safetensors.js";
import { ELEMENT_BYTES, type ElementType } from "../../../src/checkpoint/element-types.js";
import { safetensorsBytes } from "../../checkpoint/file-bytes.js";
import { ensure, type Target } from "../target.js";
import { decode, encode, JsonBase, mutatedBytes, pick } from "../mutate.js";
import { scratch, scratchFile } from "../scratch.js";

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly number[];
}

/** The header of a real file with its first tensors made small. */
function smallHeader(count: number): { header: Record<string, unknown>; bytes: number } {
  const file = readFileSync(
    new URL("../../../models/tiny-llama/model.safetensors", import.meta.url),
  );
  const length = Number(file.readBigUInt64LE(0));
  const real = JSON.parse(file.toString("utf8", 8, 8 + length)) as Record<string, Entry>;
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let bytes = 0;
  for (const [name, { shape }] of Object.entries(real)
    .filter(([key]) => key !== "__metadata__")
    .slice(0, count)) {
    const small = shape.map((extent) => Math.max(1, extent % 5));
    const dtype = pick2(["BF16", "F32", "F16", "I8"], bytes);
    const end = bytes + small.reduce((a, b) => a * b, ELEMENT_BYTES[dtype]);
    header[name] = { dtype, shape: small, data_offsets: [bytes, end] };
    bytes = end;
  }
  return { header, bytes };
}

function pick2(types: readonly ElementType[], at: number): ElementType {
  return types[at % types.length];
}

const { header: HEADER, bytes: DATA_BYTES } = smallHeader(8);
const BASE = new JsonBase(
  HEADER,
  ["dtype", "shape", "data_offsets"],
  ["F64", "I64", "BOOL", "F8_E4M3", "U8", [0, 4], [4, 0], [1, 1]],
);

function checkTensors({ store }: Safetensors): void {
  for (const [name, { type, shape, bytes }] of store.tensors) {
    const claimed = shape.reduce((a, b) => a * b, ELEMENT_BYTES[type as ElementType]);
    ensure(claimed === bytes, `${name}: ${claimed} bytes by its shape, ${bytes} by its place`);
    ensure(store.readBytes(name).length === bytes, `${name}: other bytes than it claims`);
    ensure(
      store.read(name).length === bytes / ELEMENT_BYTES[type as ElementType],
      `${name}: other elements`,
    );
  }
}

export const safetensorsTarget: Target = {
  name: "safetensors",
  generate(random) {
    const data = new Uint8Array(DATA_BYTES);
    const kind = random.uniform();
    if (kind < 0.7) return safetensorsBytes(BASE.mutated(random), data);
    const whole = safetensorsBytes(HEADER, data);
    if (kind < 0.85) return mutatedBytes(whole, random);
    const claims = [
      0n,
      1n,
      2n,
      100_000_000n,
      100_000_001n,
      2n ** 53n,
      2n ** 64n - 1n,
      BigInt(whole.length),
    ];
    return safetensorsBytes(HEADER, data, pick(random, claims));
  },
  run(input) {
    const opened = openSafetensors(scratchFile("model.safetensors", input));
    try {
      checkTensors(opened);
    } finally {
      opened.store[Symbol.dispose]();
    }
  },
};

const SHARDS = ["one.safetensors", "two.safetensors"];
const INDEX = new JsonBase(
  { metadata: { total_size: 16 }, weight_map: { a: SHARDS[0], b: SHARDS[0], c: SHARDS[1] } },
  ["a", "b", "c", "d"],
  [
    ...SHARDS,
    "three.safetensors",
    "../one.safetensors",
    "/dev/zero",
    "",
    ".safetensors",
    "model.safetensors.index.json",
  ],
);
let shardsIn: string | undefined;

function writeShards(): void {
  if (shardsIn === scratch()) return;
  const entry = (at: number): Entry => ({ dtype: "F32", shape: [1], data_offsets: [at, at + 4] });
  scratchFile(SHARDS[0], safetensorsBytes({ a: entry(0), b: entry(4) }, new Uint8Array(8)));
  scratchFile(SHARDS[1], safetensorsBytes({ c: entry(0) }, new Uint8Array(4)));
  shardsIn = scratch();
}

export const safetensorsIndexTarget: Target = {
  name: "safetensors index",
  generate: (random) => encode(INDEX.mutated(random)),
  run(input) {
    writeShards();
    const opened = openSafetensors(scratchFile("model.safetensors.index.json", decode(input)));
    try {
      checkTensors(opened);
    } finally {
      opened.store[Symbol.dispose]();
    }
  },
};
