/** Conformance of the cpu backend on WebAssembly, level simd128, in a process of its own. */

import { describeWasmLevel } from "./levels.js";

describeWasmLevel("simd128");
