// The table of the chosen instruction-set level.
#pragma once
#include "kernel_table.h"

namespace planish {
// Chooses the best level first when none was chosen.
const KernelTable& kernels();
}  // namespace planish
