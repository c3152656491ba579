/** Conformance of the cpu backend, level avx2, in a process of its own. */

import { describeCpuLevel } from "./cpu-levels.js";

describeCpuLevel("avx2");
