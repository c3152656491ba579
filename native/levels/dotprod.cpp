// The NEON (with dot products) instruction-set level; see level.h.
#define PL_LEVEL dotprod
#define PL_ISA 0
#define PL_NEON 2
#include "level.h"
