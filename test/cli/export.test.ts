/** `planish export` as people call it. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { planish } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

describe("planish export", () => {
  it("rounds an original and writes it for other programs", async () => {
    const out = directory.file("ct");
    const flags = ["--scheme", "w4a16kv16", "--to", "compressed-tensors", "--out", out];
    const { code, stdout } = await planish(["export", "models/tiny-llama", ...flags, "--json"]);
    expect(code).toBe(0);
    const result = JSON.parse(stdout) as { format: string; bytes: number; dropped: string[] };
    expect(result).toMatchObject({ format: "compressed-tensors, pack-quantized", dropped: [] });
    const config = JSON.parse(readFileSync(join(out, "config.json"), "utf8")) as {
      quantization_config: { quant_method: string };
    };
    expect(config.quantization_config.quant_method).toBe("compressed-tensors");
    const inspected = await planish(["inspect", out]);
    expect(inspected.stdout).toMatch(
      /^format +safetensors, compressed-tensors: 56 weights at 4 bits/m,
    );
    const again = await planish(["export", "models/tiny-llama", ...flags]);
    expect(again.code).not.toBe(0);
    expect(again.stderr).toMatch(/exists/);
  });

  it("writes an original as GGUF, which runs as it is", async () => {
    const out = directory.file("tiny.gguf");
    const flags = ["--to", "gguf", "--type", "q8_0", "--calibration", "LICENSE", "--samples", "2"];
    const { code, stdout } = await planish([
      ...["export", "models/tiny-llama", ...flags, "--seq-len", "64", "--out", out, "--json"],
    ]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ format: "gguf", bytes: statSync(out).size });
    const inspected = await planish(["inspect", out]);
    expect(inspected.stdout).toMatch(/^format +gguf$/m);
    expect(inspected.stdout).toMatch(/^use +as an original: quantize, .*generate/m);
    const elsewhere = await planish([
      ...["export", "models/tiny-llama", "--to", "flatquant", "--type", "q4_0", "--out", out],
    ]);
    expect(elsewhere.code).toBe(2);
    expect(elsewhere.stderr).toMatch(/--type goes with --to gguf/);
  });

  it("writes FlatQuant's own layout, which comes back as an artifact", async () => {
    const [out, back] = [directory.file("flatquant"), directory.file("imported")];
    const made = await planish([
      ...["export", "models/tiny-llama", "--scheme", "w4a4kv4", "--to", "flatquant", "--out", out],
    ]);
    expect(made.code).toBe(0);
    const flags = ["--scheme", "w4a4kv4", "--out", back];
    const { code, stdout } = await planish(["import", out, ...flags]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^imported +\S*imported$/m);
    const inspected = await planish(["inspect", back]);
    expect(inspected.stdout).toMatch(/^format +artifact of planish quantize$/m);
    expect(inspected.stdout).toMatch(/^scheme +w4a4kv4$/m);
    const plain = await planish([
      ...["import", "models/tiny-llama", "--scheme", "w4a4kv4", "--out", directory.file("no")],
    ]);
    expect(plain.code).toBe(2);
    expect(plain.stderr).toMatch(
      /has no quantization_config\.json: it is no checkpoint of FlatQuant/,
    );
  });

  it("asks for a scheme, and for parts and formats that there are", async () => {
    const out = ["--out", directory.file("none")];
    const bare = await planish([
      "export",
      "models/tiny-llama",
      "--to",
      "compressed-tensors",
      ...out,
    ]);
    expect(bare.code).toBe(2);
    expect(bare.stderr).toMatch(/is no artifact: quantize it first, or give --scheme/);
    const format = await planish(["export", "models/tiny-llama", "--to", "onnx", ...out]);
    expect(format.code).toBe(2);
    const part = await planish([
      ...["export", "models/tiny-llama", "--to", "compressed-tensors", "--drop", "weights", ...out],
    ]);
    expect(part.code).toBe(2);
    expect(part.stderr).toMatch(/clips, cache/);
  });
});
