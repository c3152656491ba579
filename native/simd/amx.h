// AMX: the vectors of AVX-512. Its tiles, 16 rows of 64 bytes, multiply in units_amx.h.
#pragma once

#include "avx512.h"
