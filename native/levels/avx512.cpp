// The avx512 instruction-set level; see level.h.
#define PL_LEVEL avx512
#define PL_ISA 2
#include "level.h"
