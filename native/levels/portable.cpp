// The portable instruction-set level; see level.h.
#define PL_LEVEL portable
#define PL_ISA 0
#include "level.h"
