/** The conformance suite on the native kernels, once per instruction-set level that this machine runs. */

import { createCpuBackend } from "../../src/backend/cpu/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { describeConformance } from "./conformance-suite.js";

const library = loadNativeLibrary();

for (const level of library.levels()) {
  describeConformance(`cpu at level ${level}`, () => {
    library.selectLevel(level);
    return createCpuBackend();
  });
}
