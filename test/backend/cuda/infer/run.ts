/** The kernel checks without vitest: one line each, exit code 1 when one fails. `npx tsx test/backend/cuda/infer/run.ts` */
import { CudaEngineDevice } from "../../../../src/backend/cuda/infer/device.js";
import { CHECKS } from "./checks.js";
import { END_LAYER_CHECKS } from "./checks/end-layers.js";

const print = (line: string) => process.stdout.write(`${line}\n`);
using device = new CudaEngineDevice();
print(`${device.driver.info.name}, ${CHECKS.length + END_LAYER_CHECKS.length} checks`);
let failures = 0;
for (const { name, run } of [...CHECKS, ...END_LAYER_CHECKS]) {
  try {
    const worst = run(device);
    if (!(worst <= 1)) failures++;
    print(`${worst <= 1 ? "ok  " : "FAIL"} ${name}: ${worst.toPrecision(3)} of the bound`);
  } catch (error) {
    failures++;
    print(`FAIL ${name}: ${(error as Error).message}`);
    // A failed launch leaves the context unusable.
    if (/CUDA/.test((error as Error).message)) break;
  }
}
print(failures === 0 ? "all checks passed" : `${failures} checks failed`);
if (failures > 0) process.exitCode = 1;
