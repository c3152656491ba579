// What the instruction sets' headers are written in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../half.h"

#define PL_INLINE static inline __attribute__((always_inline))

namespace planish::PL_LEVEL {

// As many T as fill a vector of `lanes` floats.
template <class T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(4 * lanes)));
  // The same vector at any element-aligned address; may alias plain arrays.
  typedef T loose __attribute__((vector_size(4 * lanes), aligned(sizeof(T)), may_alias));
};

}  // namespace planish::PL_LEVEL
