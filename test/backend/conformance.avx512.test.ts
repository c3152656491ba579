/** Conformance of the cpu backend, level avx512, in a process of its own. */

import { describeCpuLevel } from "./cpu-levels.js";

describeCpuLevel("avx512");
