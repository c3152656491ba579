/**
 * An artifact's tensors against their description: whatever is done to a tensor's shape, type, presence or values, every
 * way of loading refuses it by name, before native code sees it.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { ELEMENT_BYTES, type ElementType } from "../../src/checkpoint/element-types.js";
import { floatToHalfBits } from "../../src/common/half.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { writeSafetensors } from "../../src/checkpoint/safetensors.js";
import { packageRoot } from "../../src/common/package.js";
import { openSource } from "../../src/engine/source.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { endLayerTensors } from "../../src/quantize/artifact/tensors.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { planRun } from "../../src/quantize/run/preview.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { smallCalibration } from "./methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-artifact-tensors-"));
const backend = openBackend({ device: "reference" });
const cpu = openBackend({ device: "cpu" });
const small = { samples: 4, seqLen: 64 };
const made = { flat: join(directory, "flat"), split: join(directory, "split") };

beforeAll(async () => {
  const calibration = smallCalibration(directory);
  for (const [name, model, method] of [
    ["flat", "tiny-llama", "flatquant"],
    ["split", "tiny-opt", "flattenquant"],
  ] as const) {
    const path = join(directory, model);
    await writeFirstBlocks(join(packageRoot, "models", model), path, 1);
    using source = openCheckpoint(path);
    const recipe = method === "flatquant" ? { ...small, epochs: 1, batch: 2 } : small;
    await quantize({ backend: cpu, source, out: made[name], method, recipe, calibration });
  }
});

afterAll(() => {
  backend[Symbol.dispose]();
  cpu[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

interface Stored {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}
type Change = (tensor: Stored) => Stored | undefined;

let copies = 0;

/** A copy of an artifact with one tensor changed, taken away (undefined), or added. */
async function changed(of: keyof typeof made, name: string, change: Change): Promise<string> {
  const path = join(directory, `copy-${copies++}`);
  cpSync(made[of], path, { recursive: true });
  // As somebody would write it who has no use for hashes: they are not what protects the kernels.
  const info = join(path, "quantization.json");
  const { files: _files, ...rest } = JSON.parse(readFileSync(info, "utf8")) as { files: unknown };
  writeFileSync(info, JSON.stringify(rest));
  using artifact = openCheckpoint(made[of]);
  const tensors = [...artifact.tensors.values()].map((t): Stored => ({
    name: t.name,
    type: t.type as ElementType,
    shape: t.shape,
    data: artifact.readBytes(t.name),
  }));
  expect(tensors.some((t) => t.name === name)).toBe(true);
  const entries = tensors
    .flatMap((t) => (t.name === name ? (change(t) ?? []) : t))
    .map(({ data, ...rest }) => ({ ...rest, data: () => data }));
  await writeSafetensors(join(path, "model.safetensors"), entries);
  return path;
}

/** Both ways to load an artifact, to the last block (CUDA reads through the second). */
function loadToSimulate(path: string): void {
  loadModel(backend, path)[Symbol.dispose]();
}

function loadForEngine(path: string): void {
  using source = openSource(path);
  for (let layer = 0; layer < source.config.numLayers; layer++) source.block(layer);
}

const zeros = (type: ElementType, shape: readonly number[]): Uint8Array =>
  new Uint8Array(ELEMENT_BYTES[type] * shape.reduce((a, b) => a * b, 1));
const reshaped =
  (...shape: number[]): Change =>
  (t) => ({ ...t, shape, data: zeros(t.type, shape) });
const retyped =
  (type: ElementType): Change =>
  (t) => ({ ...t, type, data: zeros(type, t.shape) });
const gone: Change = () => undefined;
const half =
  (value: number): Change =>
  (t) => {
    const data = t.data.slice();
    new DataView(data.buffer).setUint16(data.length - 2, floatToHalfBits(value), true);
    return { ...t, data };
  };
const single =
  (value: number): Change =>
  (t) => {
    const data = t.data.slice();
    new DataView(data.buffer).setFloat32(data.length - 4, value, true);
    return { ...t, data };
  };
const integer =
  (value: number): Change =>
  (t) => {
    const data = t.data.slice();
    new DataView(data.buffer).setInt32(data.length - 4, value, true);
    return { ...t, data };
  };

const L = "model.layers.0.";
const O = "model.decoder.layers.0.";
const cases: [keyof typeof made, string, string, Change][] = [
  ["split", `${O}self_attn.q_proj.bias`, "one shorter", reshaped(255)],
  ["split", `${O}fc1.bias`, "one longer", reshaped(1025)],
  ["split", `${O}fc1.bias`, "Infinity", half(Infinity)],
  ["split", `${O}self_attn_layer_norm.bias`, "as a row", reshaped(1, 256)],
  ["flat", `${L}self_attn.kcache_trans.matrix`, "2×2 for heads of 32", reshaped(2, 2)],
  ["flat", `${L}self_attn.kcache_trans.matrix`, "gone", gone],
  ["flat", `${L}self_attn.kcache_trans.matrix`, "singular", reshaped(32, 32)],
  ["flat", `${L}self_attn.ln_trans.matrix_left`, "[1, n²]", reshaped(1, 256)],
  ["flat", `${L}self_attn.ln_trans.matrix_left`, "gone", gone],
  ["flat", `${L}mlp.down_trans.matrix_right`, "NaN", half(NaN)],
  ["flat", `${L}mlp.up_gate_trans.matrix_right`, "smaller", reshaped(8, 8)],
  ["flat", `${L}self_attn.o_trans.matrix`, "of one head", reshaped(1, 1)],
  ["flat", `${L}self_attn.q_proj.act_quantizer.clip_factor_a_max`, "NaN", half(NaN)],
  ["flat", `${L}self_attn.q_proj.act_quantizer.clip_factor_a_min`, "gone", gone],
  ["flat", `${L}self_attn.k_cache_quantizer.clip_factor_a_min`, "empty", reshaped(0)],
  ["flat", `${L}input_layernorm.weight`, "NaN", half(NaN)],
  ["flat", `${L}input_layernorm.weight`, "F32", retyped("F32")],
  ["flat", `${L}mlp.up_proj.linear.weight`, "a column less", reshaped(704, 127)],
  ["flat", `${L}mlp.up_proj.linear.weight`, "I8", retyped("I8")],
  ["flat", `${L}mlp.up_proj.linear.weight`, "gone", gone],
  ["flat", `quantizer.${L}mlp.up_proj.linear.scale`, "NaN", single(NaN)],
  ["flat", `quantizer.${L}mlp.up_proj.linear.scale`, "zero", single(0)],
  ["flat", `quantizer.${L}mlp.up_proj.linear.scale`, "negative", single(-0.5)],
  ["flat", `quantizer.${L}mlp.up_proj.linear.scale`, "a row less", reshaped(703, 1)],
  ["flat", "model.norm.weight", "one shorter", reshaped(255)],
  ["flat", "model.embed_tokens.weight", "fewer rows", reshaped(4095, 256)],
  ["flat", "model.embed_tokens.weight", "I8", retyped("I8")],
  ["split", `${O}self_attn.q_proj.act_quantizer.scale`, "gone", gone],
  ["split", `${O}self_attn.q_proj.act_quantizer.scale`, "negative", single(-1)],
  ["split", `${O}self_attn.q_proj.act_quantizer.scale`, "empty", reshaped(0)],
  ["split", `${O}self_attn.q_proj.act_quantizer.bits`, "9", integer(9)],
  ["split", `${O}self_attn.q_proj.act_quantizer.bits`, "one", reshaped(1)],
  ["split", `${O}self_attn.q_proj.act_quantizer.bits`, "F32", retyped("F32")],
];

describe("a tensor of an artifact that is not as described", () => {
  it.each(cases)("%s: %s: %s", async (of, name, _what, change) => {
    const path = await changed(of, name, change);
    expect(() => loadToSimulate(path)).toThrow(name);
    expect(() => loadForEngine(path)).toThrow(name);
  });

  it("a matrix where the method put none, and a tensor of another model", async () => {
    for (const extra of [`${L}self_attn.o_trans.matrix_right`, "model.layers.1.mlp.up_proj.bias"]) {
      const path = await changed("flat", "model.norm.weight", (t) => t);
      using artifact = openCheckpoint(made.flat);
      const entries = [...artifact.tensors.values()].map((t) => ({
        name: t.name,
        type: t.type as ElementType,
        shape: t.shape,
        data: () => artifact.readBytes(t.name),
      }));
      entries.push({ name: extra, type: "F16", shape: [1], data: () => new Uint8Array(2) });
      await writeSafetensors(join(path, "model.safetensors"), entries);
      expect(() => loadToSimulate(path)).toThrow(extra);
      expect(() => loadForEngine(path)).toThrow(extra);
    }
  });

  it("columns of split channels out of range", async () => {
    using artifact = openCheckpoint(made.split);
    const columns = [...artifact.tensors.keys()].filter((n) => /\.(channel|part)$/.test(n));
    expect(columns.length).toBeGreaterThan(1);
    for (const name of columns.slice(0, 2))
      for (const value of [-1, 1 << 30, 2 ** 31 - 1]) {
        const path = await changed("split", name, integer(value));
        expect(() => loadForEngine(path)).toThrow(name);
      }
  });

  it("any shape but the own is refused, of any tensor", async () => {
    using artifact = openArtifact(made.flat);
    const names = [...artifact.checkpoint.tensors.keys()];
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...names),
        fc.array(fc.integer({ min: 0, max: 40 }), { maxLength: 3 }),
        async (name, shape) => {
          const own = artifact.checkpoint.tensors.get(name)?.shape ?? [];
          fc.pre(own.join() !== shape.join());
          const path = await changed("flat", name, reshaped(...shape));
          expect(() => openArtifact(path)).toThrow(name);
          rmSync(path, { recursive: true });
        },
      ),
      { numRuns: 40 },
    );
  });
});

describe("the description", () => {
  it("is what was written: every tensor, nothing more, and the planned size", () => {
    using artifact = openArtifact(made.flat);
    const bytes = [...artifact.checkpoint.tensors.values()].reduce((sum, t) => sum + t.bytes, 0);
    using source = openCheckpoint(join(directory, "tiny-llama"));
    const plan = planRun({
      backend,
      source,
      method: "flatquant",
      scheme: parseScheme("w4a4kv4"),
    });
    expect(plan.artifactBytes).toBe(bytes);
    const endLayers = endLayerTensors(artifact.architecture, artifact.config);
    expect(endLayers.filter(({ optional }) => !optional).map(({ name }) => name)).toEqual([
      "model.embed_tokens.weight",
      "model.norm.weight",
    ]);
  });

  it("loads what was written", () => {
    for (const path of Object.values(made)) {
      loadToSimulate(path);
      loadForEngine(path);
    }
  });
});
