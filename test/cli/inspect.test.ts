import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SMALL_RUN } from "./artifacts.js";
import { planish } from "./run-program.js";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "planish-inspect-"));
});
afterAll(() => {
  rmSync(directory, { recursive: true });
});

describe("planish inspect", () => {
  it("prints tables that read without a manual", async () => {
    const { code, stdout, stderr } = await planish(["inspect", "models/tiny-llama"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^architecture +llama$/m);
    expect(stdout).toMatch(/^parameters +6\.95M \(5\.90M in linears\)$/m);
    expect(stdout).toMatch(/^mlp_down +704 +mlp\.down_proj 256×704$/m);
    expect(stdout).toMatch(/^BF16 +74 +13\.9 MB$/m);
    expect(stdout).not.toContain("layers.3");
  });

  it("lists every tensor with --tensors", async () => {
    const { stdout } = await planish(["inspect", "models/tiny-llama", "--tensors"]);
    expect(stdout.match(/^model\.\S+ +BF16 +[\d×]+ +[\d.]+ K?B$/gm)).toHaveLength(73);
    expect(stdout).toMatch(/^model\.embed_tokens\.weight +BF16 +4096×256 +2\.10 MB$/m);
  });

  it("says how weights are stored that are quantized already, and what can be done with them", async () => {
    const { code, stdout } = await planish(["inspect", "test/fixtures/quantized/ct-mixed"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^format +safetensors, compressed-tensors: 7 weights at 4 bits \(int\) in groups of 16; 8 bits \(int\) in rows, read as they dequantize; not followed: inputs at 8 bits$/m,
    );
    expect(stdout).toMatch(/^use +as an original: quantize, .*$/m);
    // 4 bits and 16-bit scales of groups for the MLP, 8 bits for attention.
    expect(stdout).toMatch(/^compressed-tensors +7 +24\.\d KB$/m);
    const refused = await planish(["inspect", "test/fixtures/quantized"]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/has no config\.json; a model directory holds/);
  });

  it("prints one JSON document and nothing else with --json", async () => {
    const { code, stdout, stderr } = await planish(["inspect", "models/tiny-opt", "--json"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const document = JSON.parse(stdout) as { config: { architecture: string }; tensors: unknown[] };
    expect(document.config.architecture).toBe("opt");
    expect(document.tensors).toHaveLength(100);
  });

  it("says what a recipe would do, and the run does it", async () => {
    interface Plan {
      readonly artifactBytes: number;
      readonly parameters: Record<string, number[]>;
    }
    for (const [name, flags] of [
      ["rtn", ["--method", "rtn", "--scheme", "w3a8kv4"]],
      ["flatquant", ["--method", "flatquant", "--scheme", "w4a4kv4"]],
    ] as const) {
      const planned = await planish(["inspect", "models/tiny-llama", ...flags, "--json"]);
      expect(planned.code).toBe(0);
      const { plan } = JSON.parse(planned.stdout) as { plan: Plan };
      const out = join(directory, name);
      const small = name === "flatquant" ? SMALL_RUN : [];
      const args = [
        "quantize",
        "models/tiny-llama",
        "--out",
        out,
        ...flags,
        ...small,
        "--json",
        "--no-verdict",
      ];
      const { code, stdout } = await planish(args);
      expect(code).toBe(0);
      const run = JSON.parse(stdout) as {
        bytes: number;
        info: { layers: { parameters: Record<string, number[]> }[] };
      };
      expect(plan.artifactBytes).toBe(run.bytes);
      expect(plan.parameters).toEqual(run.info.layers[0].parameters);
    }
    const again = await planish(["inspect", join(directory, "rtn"), "--preset", "fast"]);
    expect(again.code).toBe(2);
    expect(again.stderr).toMatch(/is quantized already; give --method, [^\n]+\n$/);
  });

  it("prints a plan as tables, after those of the model", async () => {
    const { code, stdout } = await planish(["inspect", "models/tiny-llama", "--preset", "paper"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^mlp_down +704 +mlp\.down_proj 256×704$/m);
    expect(stdout).toMatch(/^would do +flatquant, preset paper, w4a4kv4$/m);
    expect(stdout).toMatch(/^mlp_down +22×32 Kronecker \+ diag +3,774$/m);
    expect(stdout).toMatch(/^attn_out +8×8 over heads +136$/m);
    expect(stdout).toMatch(/^time +about .+ on this machine$/m);
    expect((await planish(["inspect", "models/tiny-llama", "--preset", "slow"])).code).toBe(2);
  });

  it("exits 2 without a model, and with one that is neither here nor known", async () => {
    expect(await planish(["inspect"])).toEqual({
      code: 2,
      stdout: "",
      stderr: "planish: missing required argument 'model'; see `planish inspect --help`\n",
    });
    const missing = await planish(["inspect", "no/such/model"]);
    expect(missing.code).toBe(2);
    expect(missing.stderr).toMatch(
      /^planish: no model "no\/such\/model": give a path that exists, [^\n]+\n$/,
    );
  });

  it("exits 1 with a file and a directory that hold no model", async () => {
    const text = await planish(["inspect", "README.md"]);
    expect(text.code).toBe(1);
    expect(text.stderr).toMatch(
      /^planish: cannot open .*README\.md: give a model directory [^\n]+\n$/,
    );
    const empty = await planish(["inspect", "docs"]);
    expect(empty.code).toBe(1);
    expect(empty.stderr).toMatch(/^planish: .*docs has no config\.json; [^\n]+\n$/);
  });

  it("refuses a model type that it does not know, listing those it does", async () => {
    writeFileSync(join(directory, "config.json"), JSON.stringify({ model_type: "mamba" }));
    writeFileSync(join(directory, "model.safetensors"), emptySafetensors());
    const { code, stderr } = await planish(["inspect", directory]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^planish: [^\n]*"mamba"[^\n]*llama[^\n]*\n$/);
  });
});

/** A safetensors file of no tensors: the header's length in 8 bytes, then the header. */
function emptySafetensors(): Buffer {
  const header = Buffer.from("{}      ");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header]);
}
