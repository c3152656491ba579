/** What is kept of a run: hashes of files, damage found on resuming, schemas, results that JSON can hold, the machine. */
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { writeSafetensors, type TensorEntry } from "../../src/checkpoint/safetensors.js";
import { packageRoot } from "../../src/common/package.js";
import { silentProgress } from "../../src/common/progress.js";
import { finiteJson, relativeError } from "../../src/common/ratio.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { quantize, type QuantizeOptions } from "../../src/quantize/run/pipeline.js";
import { METHODS } from "../../src/quantize/methods/index.js";
import {
  parseQuantizationInfo,
  readQuantizationInfo,
} from "../../src/quantize/artifact/quantization-info.js";
import { verifyArtifact } from "../../src/quantize/artifact/verify.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { smallCalibration } from "./methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-artifact-files-"));
const backend = openBackend({ device: "cpu", threads: 1 });
const model = join(directory, "model");
const calibration = smallCalibration(directory);
const small = { samples: 4, seqLen: 64, epochs: 1, batch: 2 };
const whole = join(directory, "whole");
const at = (name: string): string => join(directory, name);

beforeAll(async () => {
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), model, 2);
  await run({ out: whole });
});

afterAll(() => {
  backend[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

async function run(options: Partial<QuantizeOptions> & { out: string }, path = model) {
  using source = openCheckpoint(path);
  return await quantize({
    backend,
    source,
    sourceName: "m",
    recipe: small,
    calibration,
    ...options,
  });
}

function flip(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length - 1] ^= 0x10;
  writeFileSync(path, bytes);
}

function contents(path: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(path).map((name) => [name, readFileSync(join(path, name), "latin1")]),
  );
}

describe("files of an artifact", () => {
  it("are recorded, every one, and found whole", () => {
    const { files = {} } = readQuantizationInfo(whole);
    expect([...Object.keys(files), "quantization.json"].sort()).toEqual(readdirSync(whole).sort());
    expect(verifyArtifact(whole)).toMatchObject({
      files: Object.keys(files).length,
      unrecorded: false,
    });
  });

  it("with one bit flipped are named by verifying, and refused on loading", () => {
    for (const name of Object.keys(readQuantizationInfo(whole).files ?? {})) {
      const copy = at("flipped");
      cpSync(whole, copy, { recursive: true });
      flip(join(copy, name));
      expect(() => verifyArtifact(copy), name).toThrow(`${name} does not hold`);
      expect(() => loadModel(backend, copy), name).toThrow(`${name} does not hold`);
      writeFileSync(join(copy, name), "");
      expect(() => loadModel(backend, copy), name).toThrow(name);
      rmSync(join(copy, name));
      expect(() => loadModel(backend, copy), name).toThrow(`${name} is missing`);
      rmSync(copy, { recursive: true });
    }
  });

  /** A copy whose quantization.json says something else, and keeps no hashes. */
  function rewritten(name: string, change: object = {}): string {
    const copy = at(name);
    cpSync(whole, copy, { recursive: true });
    const file = join(copy, "quantization.json");
    const { files: _files, ...rest } = JSON.parse(readFileSync(file, "utf8")) as { files: unknown };
    writeFileSync(file, JSON.stringify({ ...rest, ...change }));
    return copy;
  }

  it("of a version that kept no hashes load", () => {
    const copy = rewritten("unrecorded");
    loadModel(backend, copy)[Symbol.dispose]();
    expect(verifyArtifact(copy)).toMatchObject({ files: 0, unrecorded: true });
  });

  it.each([
    ["method", { method: "rtn" }, 'method is "rtn" in quantization.json, and "flatquant" in'],
    ["scheme", { scheme: "w4a4kv8" }, 'scheme is "w4a4kv8" in quantization.json, and "w4a4kv4"'],
  ])("that contradict the weights in their %s are refused", (name, change, message) => {
    const copy = rewritten(`other-${name}`, change);
    expect(() => loadModel(backend, copy)).toThrow(message);
    expect(() => verifyArtifact(copy)).toThrow(message);
  });

  it.each(["chat_template.jinja", "special_tokens_map.json", "parameters.safetensors"])(
    "%s that came later is refused, a note for people is not",
    (name) => {
      const copy = at(`stranger-${name}`);
      cpSync(whole, copy, { recursive: true });
      writeFileSync(join(copy, "README.md"), "mine");
      loadModel(backend, copy)[Symbol.dispose]();
      writeFileSync(join(copy, name), "{}");
      expect(() => loadModel(backend, copy)).toThrow(`${name} would be read, and was not written`);
      expect(() => verifyArtifact(copy)).toThrow(name);
    },
  );

  it("that the records leave out are refused", () => {
    const copy = rewritten("half-recorded", { files: {} });
    expect(() => loadModel(backend, copy)).toThrow("config.json would be read, and was not");
  });
});

describe("quantization.json", () => {
  const document = () =>
    JSON.parse(readFileSync(join(whole, "quantization.json"), "utf8")) as Record<string, unknown>;

  it("with a field taken away, unknown, or of another type is refused in one line", () => {
    const fields = Object.keys(document());
    const optional = ["preset", "calibration", "machine", "refineLoss", "files"];
    fc.assert(
      fc.property(
        fc.constantFrom(...fields),
        fc.oneof(
          fc.constant(undefined),
          fc.constant(null),
          fc.double(),
          fc.boolean(),
          fc.array(fc.integer(), { minLength: 1 }),
          fc.dictionary(fc.string({ minLength: 1 }), fc.constant([null]), { minKeys: 1 }),
        ),
        (field, value) => {
          fc.pre(!(value === undefined && optional.includes(field)));
          fc.pre(!(field === "seed" && typeof value === "number" && Number.isFinite(value)));
          fc.pre(
            !(
              field === "recipe" &&
              typeof value === "object" &&
              !Array.isArray(value) &&
              value !== null
            ),
          );
          const changed = { ...document(), [field]: value };
          expect(() => parseQuantizationInfo(changed, "q.json")).toThrow(/^q\.json: [^\n]+$/);
        },
      ),
    );
    expect(() => parseQuantizationInfo({ ...document(), colour: 1 }, "q")).toThrow("colour");
  });

  it("with numbers out of bounds is refused", () => {
    const changes: ((layer: Record<string, unknown>) => void)[] = [
      (layer) => (layer.errorFinal = -1),
      (layer) => (layer.errorFinal = null),
      (layer) => (layer.layer = 0.5),
      (layer) => (layer.parameters = { "attn_in.p": [-1] }),
      (layer) => (layer.parameters = { "attn_in.p": [1e300] }),
      (layer) => (layer.parameters = { "attn_in.p": new Array<number>(1e6).fill(1) }),
      (layer) => (layer.surprise = 1),
    ];
    for (const change of changes) {
      const changed = document();
      change((changed.layers as Record<string, unknown>[])[0]);
      expect(() => parseQuantizationInfo(changed, "q")).toThrow(/^q: layers\.0/);
    }
  });
});

describe("results", () => {
  it("relative errors are finite whatever they are made of", () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1e150, noNaN: true }),
        fc.double({ min: 1e-150, max: 1e150, noNaN: true }),
        (error, expected) => {
          expect(relativeError(error, expected)).toBe(error / expected);
          expect(relativeError(0, 0)).toBe(0);
          expect(relativeError(error, 0)).toBe(error === 0 ? 0 : 1);
        },
      ),
    );
  });

  it("that are not finite cannot be written", () => {
    for (const value of [NaN, Infinity, -Infinity])
      expect(() => finiteJson({ a: [{ b: value }] })).toThrow('"b"');
    expect(finiteJson({ a: undefined, b: 1.5 })).toBe('{"b":1.5}');
  });
});

/** The model with all values of some tensors zero. */
async function zeroed(name: string, zero: RegExp): Promise<string> {
  const path = at(name);
  if (existsSync(path)) return path;
  cpSync(model, path, { recursive: true });
  using source = openCheckpoint(model);
  const entries = [...source.tensors.values()].map((t): TensorEntry => {
    const bytes = source.readBytes(t.name);
    return {
      name: t.name,
      type: t.type as TensorEntry["type"],
      shape: t.shape,
      data: () => (zero.test(t.name) ? bytes.fill(0) : bytes),
    };
  });
  await writeSafetensors(join(path, "model.safetensors"), entries);
  return path;
}

/** Those that round any model; the others have tests of their own. */
const ROUNDING = METHODS.filter((method) => !("keep" in method));

describe.each(ROUNDING.map(({ name, presets }) => [name, presets] as const))(
  "a model with dead parts, by %s",
  (method, presets) => {
    it.each([
      ["values", /layers\.1\.self_attn\.v_proj/],
      ["outputs", /layers\.1\.(self_attn\.o|mlp\.down)_proj/],
      ["norm", /layers\.1\.input_layernorm/],
    ])("%s", async (part, zero) => {
      const path = await zeroed(`zero-${part}`, zero);
      const out = at(`${method}-${part}`);
      const [defaults] = Object.values(presets) as Record<string, unknown>[];
      const recipe = Object.fromEntries(Object.entries(small).filter(([key]) => key in defaults));
      const scheme = method === "awq" ? "w4a16kv16" : "w4a4kv4";
      await run({ out, method, recipe, scheme }, path);
      expect(readFileSync(join(out, "quantization.json"), "utf8")).not.toContain("null");
      loadModel(backend, out)[Symbol.dispose]();
    });
  },
);

describe("resuming", () => {
  /** A run stopped when everything but the last block's packing is kept. */
  async function stopped(name: string, when: (note: string) => boolean) {
    const controller = new AbortController();
    const out = at(name);
    const progress = {
      ...silentProgress,
      note: (text: string) => {
        if (when(text)) controller.abort();
      },
    };
    await expect(run({ out, progress, signal: controller.signal })).rejects.toThrow();
    return out;
  }

  it("does a damaged block again, says so, and ends in the same bytes", async () => {
    for (const [i, damage] of [
      flip,
      (path: string) => writeFileSync(path, ""),
      (path: string) => rmSync(path),
    ].entries())
      for (const file of ["block-000.safetensors", "block-000.json"]) {
        const out = await stopped(`stopped-${i}-${file}`, (text) => text.startsWith("block 0"));
        const kept = join(`${out}.run`, file);
        expect(existsSync(kept)).toBe(true);
        damage(kept);
        const warnings: string[] = [];
        const progress = { ...silentProgress, warn: (text: string) => warnings.push(text) };
        await run({ out, resume: true, progress });
        if (!(file.endsWith(".json") && i === 2)) {
          expect(warnings).toHaveLength(1);
          expect(warnings[0]).toContain("block-000");
        }
        expect(contents(out)).toEqual(contents(whole));
        rmSync(out, { recursive: true });
      }
  });

  it("with other threads or on another device is refused, with the flags that would do", async () => {
    const out = await stopped("machine", (text) => text.startsWith("block 0"));
    using two = openBackend({ device: "cpu", threads: 2 });
    await expect(run({ out, backend: two, resume: true })).rejects.toThrow(
      "threads was 1, is 2: --threads 1 computes as it did",
    );
    // The threads are the process's: the last to be opened decides.
    using one = openBackend({ device: "cpu", threads: 1 });
    using reference = openBackend({ device: "reference" });
    await expect(run({ out, backend: reference, resume: true })).rejects.toThrow("--device cpu");
    await run({ out, backend: one, resume: true });
    expect(contents(out)).toEqual(contents(whole));
    expect(readQuantizationInfo(out).machine).toMatchObject({ device: "cpu", threads: 1 });
  });

  it("ends a run that was stopped after its artifact got its name", async () => {
    const out = at("complete");
    cpSync(whole, out, { recursive: true });
    const journal = `${out}.run`;
    mkdirSync(journal);
    writeFileSync(join(journal, "block-001.json"), "half gone");
    await expect(run({ out, resume: true, seed: 1 })).rejects.toThrow("exists already");
    await expect(run({ out })).rejects.toThrow("exists already");
    await run({ out, resume: true });
    expect(existsSync(journal)).toBe(false);
    expect(contents(out)).toEqual(contents(whole));
  });
});
