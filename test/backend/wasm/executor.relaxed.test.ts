/** The engine's executor on WebAssembly, level relaxed, against the simulated model, by the native executor's own tests. */
import { describe, test } from "vitest";
import { useWasm, whyNoWasm } from "./levels.js";

const reason = whyNoWasm("relaxed");
if (reason) {
  describe.skip(`wasm relaxed: ${reason}`, () => test("executor"));
} else {
  useWasm("relaxed");
  await import("../cpu/infer/executor.test.js");
}
