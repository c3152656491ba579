/** Conformance of the cpu backend on WebAssembly, level relaxed, in a process of its own. */

import { describeWasmLevel } from "./levels.js";

describeWasmLevel("relaxed");
