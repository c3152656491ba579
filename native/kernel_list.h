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
PL_KERNEL(read_memory, (const float* x, int64_t length, float* sink), (x, length, sink))
