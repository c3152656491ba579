// The avx2 instruction-set level; see level.h.
#define PL_LEVEL avx2
#define PL_ISA 1
#include "level.h"
