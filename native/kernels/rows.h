// Per-row statistics shared by the quantizers and clipping: extremes, ties at the extremes, gradients into them.
#pragma once

#include "lanes.h"

namespace planish::PL_LEVEL {

struct Extremes {
  float lo, hi;
};

/** Smallest and largest element of a row. */
PL_INLINE Extremes row_extremes(const float* x, int64_t n) {
  vf lo = splat(x[0]), hi = lo;
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    const vf v = load(x + i);
    lo = vmin(lo, v);
    hi = vmax(hi, v);
  }
  if (i < n) {
    const vf v = load_part(x + i, n - i, x[0]);
    lo = vmin(lo, v);
    hi = vmax(hi, v);
  }
  return {min_lanes(lo), max_lanes(hi)};
}

/** Adds `grad` to the elements that equal `value`, shared equally; nearly always there is one. */
static inline void spread_over_ties(const float* x, int64_t n, float value, float grad, float* grad_x) {
  if (grad == 0.0f) return;
  vi indices;
  for (int l = 0; l < VL; ++l) indices[l] = l;
  vi count = {}, sum = {};
  int64_t i = 0;
  for (; i + VL <= n; i += VL, indices += VL) {
    const vi equal = load(x + i) == value;
    count -= equal;
    sum += equal & indices;
  }
  int64_t ties = 0, place = 0;
  for (int l = 0; l < VL; ++l) {
    ties += count[l];
    place += sum[l];
  }
  for (; i < n; ++i) {
    ties += x[i] == value;
    place += x[i] == value ? i : 0;
  }
  if (ties == 0) return;
  // The sum of the places of a single tie is its place.
  if (ties == 1) {
    grad_x[place] += grad;
    return;
  }
  const float share = grad / static_cast<float>(ties);
  for (i = 0; i < n; ++i) grad_x[i] += x[i] == value ? share : 0.0f;
}

/**
 * Σ over a row of a lane expression. Lanes are summed in f32 over at most 4096 elements, then in double, so the error
 * stays a few ulp of the sum of magnitudes however long the row is. `f(i, count)` returns the vector at i, with its
 * lanes past `count` zero.
 */
template <class F>
PL_INLINE double sum_row(int64_t n, F f) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += 4096) {
    const int64_t end = n - begin > 4096 ? begin + 4096 : n;
    vf a = vf{}, b = vf{};
    int64_t i = begin;
    for (; i + 2 * VL <= end; i += 2 * VL) {
      a += f(i, static_cast<int64_t>(VL));
      b += f(i + VL, static_cast<int64_t>(VL));
    }
    for (; i < end; i += VL) a += f(i, end - i < VL ? end - i : static_cast<int64_t>(VL));
    total += static_cast<double>(sum_lanes(a + b));
  }
  return total;
}

/** A vector at x+i of which `count` lanes are valid and the others zero. */
PL_INLINE vf load_up_to(const float* x, int64_t count) { return count >= VL ? load(x) : load_part(x, count); }

}  // namespace planish::PL_LEVEL
