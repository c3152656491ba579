// The level's multiply-add units.
#pragma once

#if PL_ISA >= 3
#include "units_amx.h"
#elif PL_ISA == 2
#include "units_avx512.h"
#elif PL_ISA == 1
#include "units_avx2.h"
#elif PL_NEON
#include "units_neon.h"
#elif PL_WASM
#include "units_wasm.h"
#else
#include "units_portable.h"
#endif
