// The body of one instruction-set level. levels/<name>.cpp defines PL_LEVEL and includes this file, compiled with that
// level's own flags; everything it includes lives in namespace planish::PL_LEVEL, so the levels never share code.
//
// PL_ISA orders the levels: 0 portable (any processor), 1 avx2 (with FMA and F16C), 2 avx512 (f, bw, dq, vl, vnni,
// bf16), 3 amx (tile, int8, bf16, and everything of avx512). Kernels select code with `#if PL_ISA >= 2`. Levels of other
// processors have PL_ISA 0 and a macro of their own: PL_NEON 1 neon, 2 dotprod; PL_WASM 1 simd128, 2 relaxed.
#if !defined(PL_LEVEL) || !defined(PL_ISA)
#error "define PL_LEVEL and PL_ISA before including level.h"
#endif

#if !defined(PL_NEON)
#define PL_NEON 0
#endif
#if !defined(PL_WASM)
#define PL_WASM 0
#endif

#if PL_NEON
#include <arm_neon.h>
#endif
#if PL_WASM
#include <wasm_simd128.h>
#endif
#if PL_ISA >= 1
// g++ 12 reports its own "undefined" intrinsics as uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#if PL_ISA >= 3 && defined(PL_EMULATE_AMX)
#include "../test/amx_emulation.h"
#endif

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../abi/codes.h"
#include "../half.h"
#include "../kernel_table.h"
#include "../planish.h"
#include "../pool.h"

#include "../simd/simd.h"

// Kernels, one line per file.
#include "../peaks.h"
#if PL_ISA < 3
#include "../kernels/attention.h"
#include "../kernels/attention_backward.h"
#include "../kernels/cache.h"
#include "../kernels/elementwise.h"
#include "../kernels/experts.h"
#include "../kernels/flatten.h"
#include "../kernels/gptq.h"
#include "../kernels/kronecker.h"
#include "../kernels/linalg.h"
#include "../kernels/norm.h"
#include "../kernels/paged_attention.h"
#include "../kernels/quantize.h"
#include "../kernels/recurrent.h"
#include "../kernels/site.h"
#else
// kernels/ has nothing of its own for tiles: this level takes those kernels from avx512.
#define PL_PRODUCTS_ONLY
#endif
#include "../matmul_micro.h"
#include "../matmul_pack.h"
#include "../matmul_thin.h"
#include "../matmul.h"
#include "../packed_weights.h"
#include "../packed_micro.h"
#include "../packed_tasks.h"
#include "../packed_matmul.h"
#include "../group_weights.h"
#include "../group_micro.h"
#include "../group_matmul.h"

namespace planish {
namespace PL_LEVEL {

void fill_table(KernelTable& table) {
#if PL_ISA >= 3
  avx512::fill_table(table);
#endif
#define PL_KERNEL(name, parameters, arguments) table.name = &planish::PL_LEVEL::name;
#include "../abi/kernels.h"
#undef PL_KERNEL
}

}  // namespace PL_LEVEL
}  // namespace planish
