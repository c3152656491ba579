/** The engine's executor on WebAssembly, level simd128, against the simulated model, by the native executor's own tests. */
import { describe, test } from "vitest";
import { useWasm, whyNoWasm } from "./levels.js";

const reason = whyNoWasm("simd128");
if (reason) {
  describe.skip(`wasm simd128: ${reason}`, () => test("executor"));
} else {
  useWasm("simd128");
  await import("../cpu/infer/executor.test.js");
}
