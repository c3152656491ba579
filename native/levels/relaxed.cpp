// The relaxed WebAssembly SIMD instruction-set level; see level.h.
#define PL_LEVEL relaxed
#define PL_ISA 0
#define PL_WASM 2
#include "level.h"
