/** The program on the kernels in WebAssembly: asked for, and where there are no native ones. */
import { describe, expect, it } from "vitest";
import { wasmModuleExists } from "../../src/backend/wasm/module.js";
import { planish } from "./run-program.js";

const GENERATE = ["generate", "models/tiny-llama", "--prompt", "The ship was", "--max-tokens", "6"];
const WITHOUT = { PLANISH_NATIVE_LIBRARY: "/nowhere/planish_native.so" };

describe.skipIf(!wasmModuleExists())(
  "WebAssembly (skipped where npm run build:wasm found no zig)",
  () => {
    it("--device wasm continues a prompt", async () => {
      const { code, stdout, stderr } = await planish([
        ...GENERATE,
        "--device",
        "wasm",
        "--threads",
        "1",
      ]);
      expect(code).toBe(0);
      expect(stdout).toMatch(/^The ship was \w[^\n]*\n$/);
      expect(stderr).toMatch(/^3 prompt tokens in .* tokens\/s after\n$/);
    });

    it("serves where no native library fits, with one warning", async () => {
      const asked = await planish([...GENERATE, "--device", "wasm"]);
      const { code, stdout, stderr } = await planish(GENERATE, { env: WITHOUT });
      expect(code).toBe(0);
      expect(stdout).toBe(asked.stdout);
      expect(stderr.match(/WebAssembly/g)).toHaveLength(1);
      expect(stderr).toMatch(/warning: no native kernels fit here.*4 GiB.*planish doctor/i);
    });

    it("--device cpu does not take it silently", async () => {
      const { code, stderr } = await planish([...GENERATE, "--device", "cpu"], { env: WITHOUT });
      expect(code).toBe(1);
      expect(stderr).toContain("PLANISH_NATIVE_LIBRARY names /nowhere/planish_native.so");
    });
  },
);

it("says what to do where WebAssembly's kernels are not built either", async () => {
  const env = { ...WITHOUT, PLANISH_WASM: "/nowhere" };
  const { code, stderr } = await planish([...GENERATE, "--device", "wasm"], { env });
  expect(code).toBe(1);
  expect(stderr).toMatch(
    /--device wasm: the WebAssembly kernels are not built; run `npm run build:wasm`/,
  );
});
