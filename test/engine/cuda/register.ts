/** The kernel checks as tests of the GPU lane. */
import { describe, expect, it } from "vitest";
import { CudaEngineDevice } from "../../../src/engine/cuda/device.js";
import { CHECKS } from "./checks.js";

/** Registers a test per check; they share a device, opened by the first. */
export function registerEngineChecks(): void {
  let device: CudaEngineDevice | undefined;
  describe("engine kernels", () => {
    for (const { name, run } of CHECKS)
      it(name, () => {
        device ??= new CudaEngineDevice();
        expect(run(device)).toBeLessThanOrEqual(1);
      });
  });
}
