import { cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { planish, root } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

const PROMPT = ["generate", "models/tiny-llama", "--prompt", "The ship was", "--max-tokens", "6"];

describe("planish generate", () => {
  it("prints the prompt and its continuation on stdout, the speed on stderr", async () => {
    const { code, stdout, stderr } = await planish(PROMPT);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^The ship was \w[^\n]*\n$/);
    expect(stderr).toMatch(
      /^3 prompt tokens in .*, 6 new tokens \(length\), [\d.]+ tokens\/s after\n$/,
    );
  });

  it("prints the same text as one JSON document with --json", async () => {
    const plain = await planish(PROMPT);
    const { stdout } = await planish([...PROMPT, "--json"]);
    const document = JSON.parse(stdout) as { prompt: string; text: string; tokens: number[] };
    expect(`${document.prompt}${document.text}\n`).toBe(plain.stdout);
    expect(document.tokens).toHaveLength(6);
  });

  it.each([
    ["--temperature", "-1", "Give a number from 0 to 100"],
    ["--top-p", "0", "Give a number from"],
    ["--max-tokens", "0", "Give a whole number from 1 to"],
    ["--device", "tpu", "Allowed choices are auto, cuda, cpu, wasm, reference"],
  ])("refuses %s %s", async (flag, value, accepted) => {
    const { code, stdout, stderr } = await planish([...PROMPT, flag, value]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(accepted);
  });

  it("prints warnings of the engine's thread as its own", async () => {
    const model = directory.file("model");
    cpSync(join(root, "models/tiny-llama"), model, { recursive: true });
    writeFileSync(join(model, "generation_config.json"), '{"eos_token_id": 999999}');
    const { code, stderr } = await planish([
      "generate", model, "--prompt", "The ship", "--max-tokens", "1",
    ]); // prettier-ignore
    expect(code).toBe(0);
    expect(stderr).toMatch(
      /^planish: warning: generation_config\.json: eos_token_id is 999,?999[^\n]*\n/m,
    );
    expect(stderr).not.toContain("(node:");
  });

  it("needs a prompt", async () => {
    const { code, stderr } = await planish(["generate", "models/tiny-llama"]);
    expect(code).toBe(2);
    expect(stderr).toContain("required option '--prompt <text>' not specified");
  });
});
