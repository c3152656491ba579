// The body of one instruction-set level. levels/<name>.cpp defines PL_LEVEL and includes this file, compiled with that
// level's own flags; everything it includes lives in namespace planish::PL_LEVEL, so the levels never share code.
//
// PL_ISA orders the levels: 0 portable (any processor), 1 avx2 (with FMA and F16C), 2 avx512 (f, bw, dq, vl, vnni,
// bf16), 3 amx (tile, int8, bf16, and everything of avx512). Kernels select code with `#if PL_ISA >= 2`.
#if !defined(PL_LEVEL) || !defined(PL_ISA)
#error "define PL_LEVEL and PL_ISA before including level.h"
#endif

#if PL_ISA >= 1
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../kernel_table.h"
#include "../planish.h"
#include "../pool.h"

// Kernels, one line per file.
#include "../peaks.h"

namespace planish {
namespace PL_LEVEL {

void fill_table(KernelTable& table) {
#define PL_KERNEL(name, parameters, arguments) table.name = &planish::PL_LEVEL::name;
#include "../kernel_list.h"
#undef PL_KERNEL
}

}  // namespace PL_LEVEL
}  // namespace planish
