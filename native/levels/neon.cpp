// The NEON instruction-set level; see level.h.
#define PL_LEVEL neon
#define PL_ISA 0
#define PL_NEON 1
#include "level.h"
