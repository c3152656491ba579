/** Safetensors: what is read, what is refused and how it is said, and what is written. */

import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { openSync, closeSync, fsyncSync, renameSync, writeSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { checkHeaderLength, parseHeader } from "../../src/checkpoint/safetensors-header.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
  type WriteFs,
} from "../../src/checkpoint/safetensors.js";
import { float32Bytes, safetensorsBytes, temporaryDirectory, writeBytes } from "./files.js";

const directory = temporaryDirectory();
let counter = 0;
const freshName = (): string => `t${counter++}.safetensors`;

function open(bytes: Uint8Array): () => void {
  const path = writeBytes(directory, freshName(), bytes);
  return () => {
    openSafetensors(path).store[Symbol.dispose]();
  };
}

const f32 = (begin: number, end: number, shape: unknown = [(end - begin) / 4]): object => ({
  dtype: "F32",
  shape,
  data_offsets: [begin, end],
});

describe("reading", () => {
  it("reads tensors, scalars and empty tensors by name", () => {
    const data = float32Bytes([1, 2, 3, 4]);
    const path = writeBytes(
      directory,
      freshName(),
      safetensorsBytes(
        {
          __metadata__: { format: "pt" },
          a: f32(0, 12, [3]),
          s: f32(12, 16, []),
          e: f32(16, 16, [0, 5]),
        },
        data,
      ),
    );
    const { store, metadata } = openSafetensors(path);
    using _ = store;
    expect(metadata).toEqual({ format: "pt" });
    expect([...store.read("a")]).toEqual([1, 2, 3]);
    expect([...store.read("s")]).toEqual([4]);
    expect(store.read("e").length).toBe(0);
    expect([...store.readBytes("s")]).toEqual([...float32Bytes([4])]);
    expect(() => store.read("b")).toThrow(/no tensor "b" \(it has 3, such as "a"/);
  });

  it("converts tensors larger than its buffer", () => {
    const count = (4 << 20) / 2 + 12345;
    const halves = Uint16Array.from({ length: count }, (_, i) => 0x3f80 + (i % 64));
    const path = writeBytes(
      directory,
      freshName(),
      safetensorsBytes(
        { a: { dtype: "BF16", shape: [count], data_offsets: [0, 2 * count] } },
        new Uint8Array(halves.buffer),
      ),
    );
    const { store } = openSafetensors(path);
    using _ = store;
    const values = store.read("a");
    expect(values.length).toBe(count);
    expect(values.every((value, i) => value === 1 + (i % 64) / 128)).toBe(true);
  });

  it("notices a file that shrank after it was opened", () => {
    const path = writeBytes(
      directory,
      freshName(),
      safetensorsBytes({ a: f32(0, 400) }, new Uint8Array(400)),
    );
    const { store } = openSafetensors(path);
    using _ = store;
    writeFileSync(path, readFileSync(path).subarray(0, 100));
    expect(() => store.read("a")).toThrow(/truncated: tensor "a"/);
  });

  it("gives one hash for the same tensors in one file and in shards", async () => {
    const entries = ["x", "y", "z"].map((name, i) => entry(name, [4], [i, 2, 3, 4]));
    const whole = join(directory, freshName());
    const sharded = join(directory, "h.safetensors");
    await writeSafetensors(whole, entries, { a: "b" });
    await writeSafetensors(sharded, entries, {}, { maxShardBytes: 20 });
    using one = openSafetensors(whole).store;
    using many = openSafetensors(`${sharded}.index.json`).store;
    expect(await one.hash()).toBe(await many.hash());
    const changed = join(directory, freshName());
    await writeSafetensors(changed, [...entries.slice(1), entry("x", [4], [0, 2, 3, 5])]);
    using other = openSafetensors(changed).store;
    expect(await other.hash()).not.toBe(await one.hash());
  });
});

describe("refusing", () => {
  const cases: [string, Uint8Array, RegExp][] = [
    ["a file of less than 8 bytes", new Uint8Array(5), /truncated.*at least 8 bytes, this one 5/],
    [
      "a header length beyond the file",
      safetensorsBytes({}, undefined, 500n),
      /truncated: its header claims 500/,
    ],
    [
      "an absurd header length",
      safetensorsBytes({}, undefined, 1n << 40n),
      /claims 1099511627776 bytes, the format allows/,
    ],
    ["an empty header", safetensorsBytes(""), /header of 0 bytes/],
    ["a header that is no JSON", safetensorsBytes('{"a": '), /not valid JSON/],
    [
      "a header of invalid UTF-8",
      safetensorsBytes("{}", undefined).with(8, 0xff),
      /not valid JSON/,
    ],
    ["a header that is no object", safetensorsBytes("[1]"), /must be a JSON object/],
    ["an entry that is no object", safetensorsBytes({ a: 3 }), /tensor "a": its header entry/],
    [
      "an entry without offsets",
      safetensorsBytes({ a: { dtype: "F32", shape: [1] } }),
      /tensor "a": its data_offsets/,
    ],
    ["negative offsets", safetensorsBytes({ a: f32(-4, 0, [1]) }), /tensor "a": its data_offsets/],
    [
      "fractional offsets",
      safetensorsBytes({ a: f32(0, 4.5, [1]) }),
      /tensor "a": its data_offsets/,
    ],
    [
      "offsets in reverse",
      safetensorsBytes({ a: f32(4, 0, [1]) }, new Uint8Array(4)),
      /ends \(0\) before it begins \(4\)/,
    ],
    [
      "data beyond the file",
      safetensorsBytes({ a: f32(0, 8) }, new Uint8Array(4)),
      /tensor "a": its data ends at byte 8 but the file holds 4/,
    ],
    [
      "a shape that is no list",
      safetensorsBytes({ a: f32(0, 4, "1") }, new Uint8Array(4)),
      /its shape must be/,
    ],
    [
      "a negative extent",
      safetensorsBytes({ a: f32(0, 4, [-1]) }, new Uint8Array(4)),
      /its shape must be/,
    ],
    [
      "a shape of another size",
      safetensorsBytes({ a: f32(0, 4, [2]) }, new Uint8Array(4)),
      /shape \[2\] of F32 takes 8 bytes, its data_offsets span 4/,
    ],
    [
      "a shape beyond exact integers",
      safetensorsBytes({ a: f32(0, 4, [2 ** 40, 2 ** 40]) }, new Uint8Array(4)),
      /takes too many bytes/,
    ],
    [
      "an unknown type",
      safetensorsBytes({ a: { dtype: "F4", shape: [1], data_offsets: [0, 1] } }, new Uint8Array(1)),
      /type "F4" is not supported \(accepted: F64/,
    ],
    [
      "a type from the prototype",
      safetensorsBytes(
        { a: { dtype: "toString", shape: [1], data_offsets: [0, 1] } },
        new Uint8Array(1),
      ),
      /is not supported/,
    ],
    [
      "overlapping data",
      safetensorsBytes({ a: f32(0, 8), b: f32(4, 12) }, new Uint8Array(12)),
      /tensor "b": its data overlaps that of tensor "a"/,
    ],
    [
      "a gap",
      safetensorsBytes({ a: f32(0, 4), b: f32(8, 12) }, new Uint8Array(12)),
      /4 bytes before its data belong to no tensor/,
    ],
    [
      "bytes left over",
      safetensorsBytes({ a: f32(0, 4) }, new Uint8Array(6)),
      /2 bytes at its end belong to no tensor/,
    ],
    [
      "a name twice",
      safetensorsBytes(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        new Uint8Array(4),
      ),
      /tensor "a" is listed more than once/,
    ],
    [
      "metadata of other kinds",
      safetensorsBytes({ __metadata__: { a: 1 } }),
      /__metadata__ must map strings/,
    ],
  ];
  it.each(cases)("refuses %s in one line", (_, bytes, message) => {
    const attempt = open(bytes);
    expect(attempt).toThrow(PlanishError);
    expect(attempt).toThrow(message);
    expect(attempt).toThrow(/^[^\n]*\.safetensors[^\n]*$/);
  });

  it("refuses a missing file, a directory and a file that is not readable as one", () => {
    expect(() => openSafetensors(join(directory, "none.safetensors"))).toThrow(/does not exist/);
    expect(() => openSafetensors(directory)).toThrow(/not a regular file/);
  });

  it("survives any header: an error for people, or tensors that fit", () => {
    const json = fc.oneof(
      fc.json(),
      fc
        .dictionary(
          fc.string(),
          fc.record(
            {
              dtype: fc.constantFrom("F32", "F16", "U8", "X"),
              shape: fc.array(fc.integer({ min: -1, max: 5 }), { maxLength: 3 }),
              data_offsets: fc.array(fc.integer({ min: -1, max: 40 }), { maxLength: 3 }),
            },
            { requiredKeys: [] },
          ),
        )
        .map((value) => JSON.stringify(value)),
    );
    fc.assert(
      fc.property(json, fc.nat({ max: 64 }), (text, dataBytes) => {
        const bytes = new TextEncoder().encode(text);
        try {
          const { entries } = parseHeader(bytes, 8 + bytes.length + dataBytes, "f");
          const total = entries.reduce((sum, { bytes: size }) => sum + size, 0);
          expect(total).toBe(dataBytes);
        } catch (error) {
          expect(error).toBeInstanceOf(PlanishError);
          expect((error as Error).message).not.toContain("\n");
        }
      }),
    );
  });

  it.each<[string, string, RegExp]>([
    [
      "data_offsets 100,000 deep",
      `{"a":{"dtype":"F32","shape":[1],"data_offsets":${"[".repeat(100_000)}${"]".repeat(100_000)}}}`,
      /nested more than 64 levels deep/,
    ],
    [
      "a shape of a million ones",
      JSON.stringify({
        a: { dtype: "F32", shape: new Array<number>(1e6).fill(1), data_offsets: [0, 4] },
      }),
      /1000000 dimensions; at most 8/,
    ],
    [
      "a long list of data_offsets",
      JSON.stringify({
        a: { dtype: "F32", shape: [1], data_offsets: new Array<number>(1e5).fill(0) },
      }),
      /two non-negative integers/,
    ],
    ["1e999", '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', /no finite number/],
  ])("refuses %s in one short line", (_, text, message) => {
    const bytes = new TextEncoder().encode(text);
    const attempt = (): unknown => parseHeader(bytes, 8 + bytes.length + 4, "f");
    expect(attempt).toThrow(message);
    expect(attempt).toThrow(/^[^\n]{1,300}$/);
  });

  it("accepts header lengths up to the limit and the file only", () => {
    expect(checkHeaderLength(92n, 100, "f")).toBe(92);
    expect(() => checkHeaderLength(93n, 100, "f")).toThrow(/truncated/);
    expect(() => checkHeaderLength(100_000_001n, 2e9, "f")).toThrow(/allows/);
  });
});

describe("shards", () => {
  it("refuses an index that leads outside, or lies", async () => {
    const path = join(directory, "model.safetensors");
    await writeSafetensors(
      path,
      [entry("a", [1], [1]), entry("b", [1], [2])],
      {},
      { maxShardBytes: 4 },
    );
    const indexPath = `${path}.index.json`;
    const index = JSON.parse(readFileSync(indexPath, "utf8")) as {
      weight_map: Record<string, string>;
    };
    const withMap = (map: Record<string, unknown>): (() => void) => {
      writeFileSync(indexPath, JSON.stringify({ weight_map: map }));
      return () => {
        openSafetensors(indexPath).store[Symbol.dispose]();
      };
    };
    expect(withMap({ a: "../a.safetensors" })).toThrow(/is no name of a .safetensors file/);
    expect(withMap({ a: 3 })).toThrow(/tensor "a"/);
    expect(withMap({ ...index.weight_map, c: index.weight_map["a"] })).toThrow(
      /"c" should be in .* not there/,
    );
    expect(withMap({ a: index.weight_map["b"], b: index.weight_map["a"] })).toThrow(
      /"a" should be in/,
    );
    expect(withMap({ a: "gone.safetensors" })).toThrow(/gone.safetensors: it does not exist/);
    const copy = writeBytes(
      directory,
      "copy.safetensors",
      readFileSync(join(directory, index.weight_map["a"])),
    );
    expect(withMap({ ...index.weight_map, x: "copy.safetensors" })).toThrow(
      /tensor "a" is also in/,
    );
    expect(existsSync(copy)).toBe(true);
  });
});

describe("writing", () => {
  const types = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL"] as const;
  const widths = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, I8: 1, U8: 1, BOOL: 1 };
  const tensors = fc.uniqueArray(
    fc.record({
      name: fc.oneof(fc.string({ minLength: 1 }), fc.constantFrom("0", "__proto__", 'ä\n"')),
      type: fc.constantFrom(...types),
      shape: fc.array(fc.nat({ max: 4 }), { maxLength: 3 }),
      seed: fc.nat({ max: 255 }),
    }),
    { selector: ({ name }) => name, maxLength: 8 },
  );
  const bytesOf = ({
    type,
    shape,
    seed,
  }: {
    type: (typeof types)[number];
    shape: number[];
    seed: number;
  }): Uint8Array =>
    new Uint8Array(shape.reduce((a, b) => a * b, widths[type])).map((_, i) => seed + 7 * i);

  it("reads back what it wrote, whole or in shards, whatever the order given", async () => {
    await fc.assert(
      fc.asyncProperty(tensors, fc.constantFrom(1e9, 30), async (specs, maxShardBytes) => {
        const given = specs.filter(({ name }) => name !== "__metadata__");
        const path = join(directory, freshName());
        const toEntry = (spec: (typeof given)[number]): TensorEntry => ({
          ...spec,
          data: () => bytesOf(spec),
        });
        const { files } = await writeSafetensors(
          path,
          given.map(toEntry),
          { k: "v" },
          { maxShardBytes },
        );
        const first = files.map((file) => readFileSync(file));
        const opened = openSafetensors(files[files.length - 1]);
        using store = opened.store;
        expect(opened.metadata).toEqual({ k: "v" });
        expect([...store.tensors.keys()].sort()).toEqual(given.map(({ name }) => name).sort());
        for (const spec of given) {
          expect(store.tensors.get(spec.name)).toMatchObject({
            type: spec.type,
            shape: spec.shape,
          });
          expect(store.readBytes(spec.name)).toEqual(bytesOf(spec));
        }
        await writeSafetensors(path, given.reverse().map(toEntry), { k: "v" }, { maxShardBytes });
        expect(files.map((file) => readFileSync(file))).toEqual(first);
      }),
      { numRuns: 60 },
    );
  });

  it("keeps shards within the limit and names them as transformers does", async () => {
    const path = join(directory, "sharded.safetensors");
    const entries = Array.from({ length: 5 }, (_, i) =>
      entry(`t${i}`, [10], Array<number>(10).fill(i)),
    );
    const { files, dataBytes } = await writeSafetensors(path, entries, {}, { maxShardBytes: 80 });
    expect(dataBytes).toBe(200);
    expect(files.map((file) => file.slice(directory.length + 1))).toEqual([
      "sharded-00001-of-00003.safetensors",
      "sharded-00002-of-00003.safetensors",
      "sharded-00003-of-00003.safetensors",
      "sharded.safetensors.index.json",
    ]);
    expect(JSON.parse(readFileSync(files[3], "utf8"))).toMatchObject({
      metadata: { total_size: 200 },
      weight_map: {
        t0: "sharded-00001-of-00003.safetensors",
        t4: "sharded-00003-of-00003.safetensors",
      },
    });
  });

  it("refuses names given twice and data of the wrong size, leaving nothing", async () => {
    const path = join(directory, "bad.safetensors");
    await expect(
      writeSafetensors(path, [entry("a", [1], [1]), entry("a", [1], [1])]),
    ).rejects.toThrow(/"a" is given twice/);
    await expect(writeSafetensors(path, [entry("a", [2], [1])])).rejects.toThrow(
      /takes 8 bytes, its data have 4/,
    );
    expect(readdirSync(directory).filter((name) => name.startsWith("bad"))).toEqual([]);
  });

  it("says how much a full disk would have needed, and removes what it began", async () => {
    const path = join(directory, "full.safetensors");
    let room = 100;
    const fs: WriteFs = {
      openSync,
      closeSync,
      fsyncSync,
      renameSync,
      writeSync(fd, data, offset, length) {
        if (length > room) {
          const written = writeSync(fd, data, offset, room);
          room = 0;
          if (written > 0) return written;
          throw Object.assign(new Error("ENOSPC: no space left on device, write"), {
            code: "ENOSPC",
          });
        }
        room -= length;
        return writeSync(fd, data, offset, length);
      },
    };
    const entries = ["a", "b"].map((name) => entry(name, [25], Array<number>(25).fill(1)));
    const attempt = writeSafetensors(path, entries, {}, { fs });
    await expect(attempt).rejects.toThrow(PlanishError);
    // 200 bytes of data, 8 of length, and a header of two entries padded to a multiple of 8.
    await expect(attempt).rejects.toThrow(
      /^disk full: .*full\.safetensors needs 328 bytes \(0\.0 MB\).*free some space/,
    );
    expect(readdirSync(directory).filter((name) => name.startsWith("full"))).toEqual([]);
  });

  it("writes a tensor of more bytes than a Uint8Array holds, in pieces below 2 GiB", async () => {
    // Neither the array's pages nor the file's are ever touched.
    const data = new Float32Array(2 ** 30 + 3);
    let written = 0;
    let longest = 0;
    const fs: WriteFs = {
      openSync,
      closeSync,
      fsyncSync,
      renameSync,
      writeSync(_fd, _bytes, _offset, length) {
        written += length;
        longest = Math.max(longest, length);
        return length;
      },
    };
    const huge = { name: "a", type: "F32" as const, shape: [data.length], data: () => data };
    const path = join(directory, "huge.safetensors");
    const { dataBytes } = await writeSafetensors(path, [huge], {}, { fs, maxShardBytes: 1e10 });
    expect(dataBytes).toBe(2 ** 32 + 12);
    const header = `{"a":{"dtype":"F32","shape":[${data.length}],"data_offsets":[0,${dataBytes}]}}`;
    expect(written).toBe(8 + Math.ceil(header.length / 8) * 8 + dataBytes);
    expect(longest).toBeLessThan(2 ** 31);
  });

  it("leaves the old file alone until the new one is complete", async () => {
    const path = join(directory, "kept.safetensors");
    await writeSafetensors(path, [entry("a", [1], [1])]);
    const before = readFileSync(path);
    const abort = new AbortController();
    const entries = [
      { ...entry("b", [1], [2]), data: () => (abort.abort(), float32Bytes([2])) },
      entry("c", [1], [3]),
    ];
    await expect(writeSafetensors(path, entries, {}, { signal: abort.signal })).rejects.toThrow(
      /interrupted/,
    );
    expect(readFileSync(path)).toEqual(before);
    expect(existsSync(`${path}.partial`)).toBe(false);
  });
});

function entry(name: string, shape: number[], values: number[]): TensorEntry {
  return { name, type: "F32", shape, data: () => float32Bytes(values) };
}
