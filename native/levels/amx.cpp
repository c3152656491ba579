// The amx instruction-set level; see level.h.
#define PL_LEVEL amx
#define PL_ISA 3
#include "level.h"
