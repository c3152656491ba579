/** Conformance of the cpu backend, level portable, in a process of its own. */

import { describeCpuLevel } from "./cpu-levels.js";

describeCpuLevel("portable");
