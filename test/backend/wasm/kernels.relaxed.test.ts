/** The tests of the engine's own kernels on WebAssembly, level relaxed: integers exact, everything else within the bounds. */
import { describe, test } from "vitest";
import { useWasm, whyNoWasm } from "./levels.js";

const reason = whyNoWasm("relaxed");
if (reason) {
  describe.skip(`wasm relaxed: ${reason}`, () => test("kernels"));
} else {
  useWasm("relaxed");
  await import("../cpu/infer/kernels.test.js");
}
