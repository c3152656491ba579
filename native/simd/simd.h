// The level's vectors: one set of names, whatever the instruction set (portable.h says what they mean).
#pragma once

#if PL_ISA >= 3
#include "amx.h"
#elif PL_ISA == 2
#include "avx512.h"
#elif PL_ISA == 1
#include "avx2.h"
#elif PL_NEON
#include "neon.h"
#elif PL_WASM
#include "wasm.h"
#else
#include "portable.h"
#endif
