// The WebAssembly SIMD instruction-set level; see level.h.
#define PL_LEVEL simd128
#define PL_ISA 0
#define PL_WASM 1
#include "level.h"
