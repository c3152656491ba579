/** The tests of the engine's own kernels on WebAssembly, level simd128: integers exact, everything else within the bounds. */
import { describe, test } from "vitest";
import { useWasm, whyNoWasm } from "./levels.js";

const reason = whyNoWasm("simd128");
if (reason) {
  describe.skip(`wasm simd128: ${reason}`, () => test("kernels"));
} else {
  useWasm("simd128");
  await import("../cpu/infer/kernels.test.js");
}
