/** Models in several GGUF files. */
import { afterAll, describe, expect, it } from "vitest";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { ggufBytes, type GgufField } from "./file-bytes.js";
import { temporaryDirectory, writeBytes } from "./files.js";
import { modelBytes, modelFields, modelTensors } from "./gguf-models.js";

const root = temporaryDirectory();
afterAll(() => rmSync(root, { recursive: true, force: true }));

const tensors = modelTensors();
const whole = writeBytes(root, "whole.gguf", modelBytes());

const nameOf = (part: number, count = 3) =>
  `model-${String(part).padStart(5, "0")}-of-${String(count).padStart(5, "0")}.gguf`;

/** Writes the tiny model in three parts into a directory of its own; `change` may alter or leave out a part. */
function parts(
  change: (
    part: number,
    fields: Record<string, GgufField>,
  ) => Record<string, GgufField> | undefined = (_, fields) => fields,
): string {
  const directory = temporaryDirectory();
  const cut = [0, 3, 11, tensors.length];
  for (let part = 0; part < 3; part++) {
    const split: Record<string, GgufField> = {
      "split.no": { u32: part },
      "split.count": { u32: 3 },
      "split.tensors.count": { u32: tensors.length },
    };
    const fields = change(part, part === 0 ? { ...modelFields("llama"), ...split } : split);
    if (!fields) continue;
    const own = tensors.slice(cut[part], cut[part + 1]);
    writeBytes(directory, nameOf(part + 1), ggufBytes(fields, own));
  }
  return directory;
}

describe("a model in three GGUF files", () => {
  it.each([1, 2, 3])("is read whole when part %i is given", (given) => {
    const directory = parts();
    using expected = openCheckpoint(whole);
    using model = openCheckpoint(join(directory, nameOf(given)));
    expect(model.config).toEqual(expected.config);
    expect([...model.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort());
    for (const name of expected.tensors.keys())
      expect(model.read(name)).toEqual(expected.read(name));
    expect(model.tokenizerFiles()).toEqual(expected.tokenizerFiles());
  });

  it("names the part that is missing", () => {
    const directory = parts((part, fields) => (part === 1 ? undefined : fields));
    expect(() => openCheckpoint(join(directory, nameOf(3)))).toThrow(
      /is part 3 of 3 of a model, and model-00002-of-00003\.gguf is missing beside it/,
    );
  });

  it.each([
    ["another number", { "split.no": { u32: 0 } }, /is part 1 of 3 of another model/],
    ["another count", { "split.count": { u32: 4 } }, /is part 2 of 4 of another model/],
    ["other tensors", { "split.tensors.count": { u32: 7 } }, /is part 2 of 3 of another model/],
  ] as const)("refuses a part with %s", (_, field, message) => {
    const directory = parts((part, fields) => (part === 1 ? { ...fields, ...field } : fields));
    expect(() => openCheckpoint(join(directory, nameOf(1)))).toThrow(message);
  });

  it("refuses parts that do not hold the tensors they declare", () => {
    const directory = parts((_, fields) => ({ ...fields, "split.tensors.count": { u32: 99 } }));
    expect(() => openCheckpoint(join(directory, nameOf(1)))).toThrow(
      new RegExp(`hold ${tensors.length} tensors together and declare 99`),
    );
  });

  it.each([
    [{ "split.no": { u32: 5 }, "split.count": { u32: 3 } }, /name no part of a model/],
    [{ "split.no": { u32: 0 }, "split.count": { u32: 4_000_000_000 } }, /name no part of a model/],
    [{ "split.no": { u32: 0 }, "split.count": { u32: 2 } }, /its name does not tell the others/],
  ] as const)("refuses %j in a file alone", (fields, message) => {
    const path = writeBytes(temporaryDirectory(), "alone.gguf", modelBytes("llama", { ...fields }));
    expect(() => openCheckpoint(path)).toThrow(message);
  });
});
