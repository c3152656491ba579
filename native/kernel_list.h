// Every kernel of the library, once: PL_KERNEL(name, (parameters), (arguments)).
//
// The list is included several times under different definitions of PL_KERNEL: it declares `pl_<name>` in the C ABI
// (planish.h), the members of KernelTable (kernel_table.h), the exports that forward to the chosen instruction-set
// level (dispatch.cpp) and the filling of each level's table (levels/level.h).
//
// To add a kernel: write `inline int <name>(parameters)` in namespace planish::PL_LEVEL in native/kernels/<file>.h,
// include that file in native/levels/level.h, and add its line here. Kernels return 0, or the code that
// `planish::fail(code, "one line")` returned. Parameters are flat: pointers, int64_t, int32_t, float, double.
// No include guard on purpose.

// Measured ceilings (peaks.h): register-only loops on every thread; `operations` receives the multiply-adds times two.
PL_KERNEL(peak_f32, (int64_t iterations, double* operations), (iterations, operations))
PL_KERNEL(peak_bf16, (int64_t iterations, double* operations), (iterations, operations))
PL_KERNEL(peak_i8, (int64_t iterations, double* operations), (iterations, operations))
PL_KERNEL(peak_i4, (int64_t iterations, double* operations), (iterations, operations))
PL_KERNEL(read_memory, (const float* x, int64_t length, float* sink), (x, length, sink))

// Matrix products (matmul.h). Operand flags: 1 transposed, 2 int8 codes (else f32). Product flags: 1 accumulate, 2 bf16.
// Offsets, strides and batch strides count elements; k_scale, n_scale and bias may be null.
PL_KERNEL(matmul,
          (int64_t m, int64_t n, int64_t k, int64_t batch, const void* a, int64_t a_offset, int64_t a_stride,
           int64_t a_batch, int32_t a_flags, const void* b, int64_t b_offset, int64_t b_stride, int64_t b_batch,
           int32_t b_flags, float* out, int64_t out_offset, int64_t out_stride, int64_t out_batch, const float* k_scale,
           const float* n_scale, const float* bias, double alpha, int32_t flags),
          (m, n, k, batch, a, a_offset, a_stride, a_batch, a_flags, b, b_offset, b_stride, b_batch, b_flags, out,
           out_offset, out_stride, out_batch, k_scale, n_scale, bias, alpha, flags))
// a [m,k], b [n,k] int8; out[m,n] = a_scale[m]·b_scale[n]·Σ a·b (+ bias[n]).
PL_KERNEL(int_matmul,
          (int64_t m, int64_t n, int64_t k, const int8_t* a, const float* a_scale, const int8_t* b, const float* b_scale,
           const float* bias, float* out),
          (m, n, k, a, a_scale, b, b_scale, bias, out))

// Packed weights of the engine (packed_weights.h, packed_matmul.h); kinds: PackedKind.
PL_KERNEL(packed_bytes, (int32_t kind, int64_t n, int64_t k, int64_t* bytes), (kind, n, k, bytes))
PL_KERNEL(pack_weights, (int32_t kind, int64_t n, int64_t k, const void* source, uint8_t* packed),
          (kind, n, k, source, packed))
PL_KERNEL(packed_rows,
          (int32_t kind, int64_t n, int64_t k, const uint8_t* packed, const int32_t* ids, int64_t rows, float* out),
          (kind, n, k, packed, ids, rows, out))
PL_KERNEL(packed_matmul_parts,
          (int32_t kind, int64_t m, int64_t k, int64_t parts, const int64_t* table, int32_t accumulate),
          (kind, m, k, parts, table, accumulate))
PL_KERNEL(packed_matmul,
          (int32_t kind, int64_t m, int64_t n, int64_t k, const void* a, const float* a_scale, const uint8_t* packed,
           const float* b_scale, const float* bias, float* out, int32_t accumulate),
          (kind, m, n, k, a, a_scale, packed, b_scale, bias, out, accumulate))

// Attention, norms, transforms, grids, elementwise maps, small matrices.
#if !defined(PL_MATMUL_ONLY)
#include "kernels/list.h"
#endif
