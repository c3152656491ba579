/** Conformance of the cpu backend, level amx, in a process of its own. */

import { describeCpuLevel } from "./cpu-levels.js";

describeCpuLevel("amx");
