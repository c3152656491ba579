/** Opening checkpoints by path: what is accepted, and the one-line errors for the rest. */

import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { packageRoot } from "../../src/common/package.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { temporaryDirectory, writeBytes } from "./files.js";
import { modelBytes } from "./gguf-models.js";

const directory = temporaryDirectory();
const tinyLlama = join(packageRoot, "models/tiny-llama");
let counter = 0;

/** A copy of tiny-llama's directory without some files. */
function modelDirectory(...without: string[]): string {
  const copy = join(directory, `model${counter++}`);
  mkdirSync(copy);
  for (const name of [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]) {
    if (!without.includes(name)) copyFileSync(join(tinyLlama, name), join(copy, name));
  }
  return copy;
}

describe("openCheckpoint", () => {
  it("opens the embedded models", () => {
    using llama = openCheckpoint(tinyLlama);
    expect(llama.format).toBe("safetensors");
    expect(llama.config).toMatchObject({ model_type: "llama", hidden_size: 256 });
    expect(llama.generationConfig).toMatchObject({ eos_token_id: 0 });
    expect(llama.tensors.get("model.embed_tokens.weight")).toMatchObject({
      shape: [4096, 256],
      type: "BF16",
      bytes: 2 * 4096 * 256,
    });
    expect(llama.read("model.embed_tokens.weight").every(Number.isFinite)).toBe(true);
    using opt = openCheckpoint(join(packageRoot, "models/tiny-opt"));
    expect(opt.tensors.get("model.decoder.embed_tokens.weight")?.type).toBe("F16");
  });

  it("opens a directory by its weights, and GGUF by content whatever its name", () => {
    using byFile = openCheckpoint(join(tinyLlama, "model.safetensors"));
    expect(byFile.path).toBe(tinyLlama);
    using byContent = openCheckpoint(writeBytes(directory, "blob", modelBytes()));
    expect(byContent.format).toBe("gguf");
    expect(loadTokenizer(byContent).encode("ab c", { addSpecialTokens: false })).toEqual([5, 6, 4]);
  });

  it("does without generation_config.json and tokenizer_config.json", () => {
    using checkpoint = openCheckpoint(
      modelDirectory("generation_config.json", "tokenizer_config.json"),
    );
    expect(checkpoint.generationConfig).toBeUndefined();
    expect(loadTokenizer(checkpoint)).toMatchObject({ bosTokenId: 0, eosTokenIds: [0] });
  });

  it("finds a chat template that is a file of its own", () => {
    const model = modelDirectory();
    writeFileSync(join(model, "chat_template.jinja"), "{{ messages[0].content }}");
    using checkpoint = openCheckpoint(model);
    expect(loadTokenizer(checkpoint).chatTemplate).toBe("{{ messages[0].content }}");
    const config = {
      chat_template: [
        { name: "tools", template: "t" },
        { name: "default", template: "d" },
      ],
    };
    writeFileSync(join(model, "tokenizer_config.json"), JSON.stringify(config));
    expect(loadTokenizer(checkpoint).chatTemplate).toBe("d");
  });

  it("hashes the same content alike, and other content differently", async () => {
    const model = modelDirectory();
    using original = openCheckpoint(tinyLlama);
    using copy = openCheckpoint(model);
    const hash = await original.hash();
    expect(hash).toMatch(/^[0-9a-f]{64}$/);
    expect(await copy.hash()).toBe(hash);
    const path = join(model, "model.safetensors");
    const bytes = readFileSync(path);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(path, bytes);
    using changed = openCheckpoint(model);
    expect(await changed.hash()).not.toBe(hash);
  });

  const accepted = /give a model directory .* or a \.gguf file/;
  it.each([
    [
      "a path that is not there",
      () => join(directory, "none"),
      /does not exist; give a model directory/,
    ],
    ["a file of another kind", () => writeBytes(directory, "weights.bin", "hello"), accepted],
    ["an empty file", () => writeBytes(directory, "empty", ""), accepted],
    [
      "a directory without config.json",
      () => modelDirectory("config.json"),
      /has no config\.json; a model directory holds/,
    ],
    [
      "a directory without weights",
      () => modelDirectory("model.safetensors"),
      /has neither model\.safetensors nor/,
    ],
  ])("refuses %s in one line", (_, make, message) => {
    const path = make();
    expect(() => openCheckpoint(path)).toThrow(PlanishError);
    expect(() => openCheckpoint(path)).toThrow(message);
    expect(() => openCheckpoint(path)).toThrow(/^[^\n]*$/);
  });

  it("says that pickled weights are not read", () => {
    const model = modelDirectory("model.safetensors");
    writeFileSync(join(model, "pytorch_model.bin"), "x");
    expect(() => openCheckpoint(model)).toThrow(/pytorch_model\.bin is a pickle file/);
  });

  it.each([
    ["{", /config\.json is not valid JSON/],
    [
      "version https://git-lfs.github.com/spec/v1\noid sha256:0",
      /config\.json is a Git LFS pointer/,
    ],
    ["<!DOCTYPE html><html></html>", /config\.json is a web page/],
    ['{"error":"Repository not found"}', /config\.json is a server's error in JSON/],
    ["\u001f\u008b\u0008", /config\.json is compressed with gzip/],
    ["PK\u0003\u0004", /config\.json is a zip archive/],
    ["[]", /config\.json must hold a JSON object, not an array/],
  ])("refuses a config.json of %s", (text, message) => {
    const model = modelDirectory();
    writeFileSync(join(model, "config.json"), Buffer.from(text, "latin1"));
    expect(() => openCheckpoint(model)).toThrow(message);
  });

  it("refuses truncated weights", () => {
    const model = modelDirectory();
    const path = join(model, "model.safetensors");
    writeFileSync(path, readFileSync(path).subarray(0, 1_000_000));
    expect(() => openCheckpoint(model)).toThrow(
      /model\.safetensors: tensor ".*": its data ends at byte/,
    );
  });

  it("says what is missing when there is no tokenizer.json", () => {
    const model = modelDirectory("tokenizer.json");
    using checkpoint = openCheckpoint(model);
    expect(() => checkpoint.tokenizerFiles()).toThrow(
      /has no tokenizer\.json; copy the tokenizer files/,
    );
    writeFileSync(join(model, "tokenizer.model"), "x");
    expect(() => checkpoint.tokenizerFiles()).toThrow(/tokenizer\.model alone cannot be read/);
  });

  it("refuses reads after it is closed", () => {
    const checkpoint = openCheckpoint(tinyLlama);
    checkpoint[Symbol.dispose]();
    expect(() => checkpoint.read("model.norm.weight")).toThrow(/it is closed/);
    rmSync(join(directory, "blob"), { force: true });
  });
});
