// The table of kernels that one instruction-set level fills; see abi/kernels.h.
#pragma once
#include <cstdint>

namespace planish {

struct KernelTable {
#define PL_KERNEL(name, parameters, arguments) int(*name) parameters;
#include "abi/kernels.h"
#undef PL_KERNEL
};

#define PL_DECLARE_LEVEL(level)                   \
  namespace level {                               \
  void fill_table(::planish::KernelTable& table); \
  }
PL_DECLARE_LEVEL(portable)
PL_DECLARE_LEVEL(avx2)
PL_DECLARE_LEVEL(avx512)
PL_DECLARE_LEVEL(amx)
PL_DECLARE_LEVEL(neon)
PL_DECLARE_LEVEL(dotprod)
PL_DECLARE_LEVEL(simd128)
PL_DECLARE_LEVEL(relaxed)
#undef PL_DECLARE_LEVEL

}  // namespace planish
