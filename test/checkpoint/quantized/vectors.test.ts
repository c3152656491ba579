/** Quantized sources against what the Python packages that write them dequantize them to (fixtures/quantized/make.py). */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { elementsToFloat32, type ElementType } from "../../../src/checkpoint/element-types.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { parseSource } from "../../../src/models/source.js";

const root = new URL("../../fixtures/quantized/", import.meta.url).pathname;
const names = readdirSync(root, { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() ? [entry.name] : [],
);

type Expected = Record<string, { shape: number[]; sha256: string; first: number[] }>;

describe.each(names)("%s", (name) => {
  const expected = JSON.parse(readFileSync(`${root}${name}/expected.json`, "utf8")) as Expected;

  it("has the package's values to the bit", () => {
    using source = openCheckpoint(root + name);
    expect([...(source.quantized?.tensors ?? [])].sort()).toEqual(Object.keys(expected).sort());
    for (const [tensor, { shape, sha256, first }] of Object.entries(expected)) {
      const values = source.read(tensor);
      expect(source.tensors.get(tensor)?.shape, tensor).toEqual(shape);
      expect([...values.subarray(0, 4)], tensor).toEqual(first);
      const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      expect(createHash("sha256").update(bytes).digest("hex"), tensor).toBe(sha256);
    }
  });

  it("has the same values as stored bytes of the type that it says", () => {
    using source = openCheckpoint(root + name);
    for (const tensor of Object.keys(expected)) {
      const { type, bytes } = source.tensors.get(tensor)!;
      const stored = source.readBytes(tensor);
      expect(stored.length, tensor).toBe(bytes);
      const values = source.read(tensor);
      const read = new Float32Array(values.length);
      elementsToFloat32(type as ElementType, stored, read, 0);
      expect(read, tensor).toEqual(values);
    }
  });

  // gpt-oss is a mixture of experts, and its fixture has no more than those.
  it.skipIf(name === "mxfp4")("is an original like any other", () => {
    using source = openCheckpoint(root + name);
    expect(parseSource(source).config.numLayers).toBe(1);
  });
});
