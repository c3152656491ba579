/** Qwen3.5 as it is published, inside a model that sees pictures, gives what the language model by itself gives. */
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";

type Json = Record<string, unknown>;

const fixture = (name: string) => join(import.meta.dirname, "../fixtures/architectures", name);
const readConfig = (name: string) =>
  JSON.parse(readFileSync(join(fixture(name), "config-hub.json"), "utf8")) as Json;

function wrapped(name: string): Json {
  const { architectures, model_type, ...text } = readConfig(name);
  const outer = String(model_type).replace(/_text$/, "");
  return {
    architectures: (architectures as string[]).map((each) =>
      each.replace("ForCausalLM", "ForConditionalGeneration"),
    ),
    model_type: outer,
    text_config: { ...text, model_type, mtp_num_hidden_layers: 1, attn_output_gate: true },
    vision_config: { model_type: outer, depth: 27, hidden_size: 1152 },
    ...{ image_token_id: 1, video_token_id: 2, vision_start_token_id: 3, vision_end_token_id: 4 },
  };
}

/** The fixture's tensors under the names that they have inside, and one of the part that is not read. */
function wrappedDirectory(name: string): string {
  const target = temporaryDirectory();
  writeFileSync(join(target, "config.json"), JSON.stringify(wrapped(name)));
  const bytes = readFileSync(join(fixture(name), "model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Json;
  const inner = Object.entries(header).map(([key, value]) => [
    key.replace(/^model\./, "model.language_model."),
    value,
  ]);
  const spare = { dtype: "BF16", shape: [0], data_offsets: [0, 0] };
  const renamed = JSON.stringify({ ...Object.fromEntries(inner), "model.visual.x": spare });
  const padded = Buffer.from(renamed.padEnd(Math.ceil(renamed.length / 8) * 8));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(padded.length));
  writeFileSync(
    join(target, "model.safetensors"),
    Buffer.concat([size, padded, bytes.subarray(8 + length)]),
  );
  return target;
}

it.each(["qwen3.5", "qwen3.5-moe"])("%s", (name) => {
  const backend = createReferenceBackend({ realType: "f32" });
  const ids = Int32Array.of(5, 17, 3, 99, 41, 8);
  const logits = (path: string) => {
    using checkpoint = openCheckpoint(path);
    using model = LanguageModel.load(backend, checkpoint);
    using g = new Graph(backend);
    return g.read(model.logits(g, model.hidden(g, ids)));
  };
  const plain = temporaryDirectory();
  copyFileSync(join(fixture(name), "config-hub.json"), join(plain, "config.json"));
  copyFileSync(join(fixture(name), "model.safetensors"), join(plain, "model.safetensors"));
  expect(logits(wrappedDirectory(name))).toEqual(logits(plain));
});

it("refuses what it does not read inside, and what is not there", () => {
  const config = wrapped("qwen3.5");
  const text = config.text_config as Json;
  expect(() => parseModelConfig({ ...config, text_config: { ...text, soft_cap: 30 } })).toThrow(
    /"soft_cap" is 30/,
  );
  expect(() => parseModelConfig({ ...config, text_config: undefined })).toThrow(
    /text_config must be an object/,
  );
  expect(() =>
    parseModelConfig({ ...config, text_config: { ...text, attn_output_gate: false } }),
  ).toThrow(/attn_output_gate is false; only true is supported/);
});
