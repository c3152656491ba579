// Vector lanes for the kernels: one fixed-width float (and double) vector per instruction-set level, written
// with the compiler's vector extension so that one source serves AVX-512, AVX2 and the portable level.
// Only exp, rounding and masked tails need care; everything else is +, −, ×, ÷ and selects.
//
// Included by every levels/*.cpp inside its own namespace; holds no state.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../simd/simd.h"

namespace planish::PL_LEVEL {

/** Floats in one vector. */
constexpr int VL = LANES;
constexpr int VECTOR_BYTES = 4 * LANES;

template <class T>
struct VecOf : VectorOf<T, LANES> {
  static constexpr int lanes = VECTOR_BYTES / static_cast<int>(sizeof(T));
};

using vf = VF;
using vi = VecOf<int32_t>::type;
using vu = VecOf<uint32_t>::type;  // for bit patterns: may wrap
using vd = VD;

template <class T>
PL_INLINE typename VecOf<T>::type load_t(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::loose*>(p);
}
template <class T>
PL_INLINE void store_t(T* p, typename VecOf<T>::type v) {
  *reinterpret_cast<typename VecOf<T>::loose*>(p) = v;
}

// The operand order makes a NaN in `a` survive.
PL_INLINE vf vmax(vf a, vf b) { return b > a ? b : a; }
PL_INLINE vf vmin(vf a, vf b) { return b < a ? b : a; }
PL_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

// Lanes are combined in a fixed order, halves first.
template <class F>
PL_INLINE float combine_lanes(vf v, F f) {
  const auto four = combine_to_four(v, f);
  const auto two = f(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return f(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}
PL_INLINE float sum_lanes(vf v) {
  return combine_lanes(v, [](auto a, auto b) { return a + b; });
}
PL_INLINE float max_lanes(vf v) {
  return combine_lanes(v, [](auto a, auto b) { return b > a ? b : a; });
}
PL_INLINE float min_lanes(vf v) {
  return combine_lanes(v, [](auto a, auto b) { return b < a ? b : a; });
}

/**
 * Round half to even. Adding 1.5·2²³ leaves no room for a fraction, so the addition itself rounds in the
 * processor's mode (to nearest even); exact for |x| < 2²². Callers clamp to ±ROUND_LIMIT first.
 */
constexpr float ROUND_MAGIC = 12582912.0f;
constexpr float ROUND_LIMIT = 2097152.0f;
PL_INLINE vf round_even(vf x) { return (x + ROUND_MAGIC) - ROUND_MAGIC; }
PL_INLINE vf round_even_clamped(vf x) { return round_even(vmin(vmax(x, splat(-ROUND_LIMIT)), splat(ROUND_LIMIT))); }
static inline float round_even1(float x) { return std::nearbyintf(std::min(std::max(x, -ROUND_LIMIT), ROUND_LIMIT)); }

/**
 * e^x, relative error below 1.5e-7: x = n·ln2 + r with |r| ≤ ln2/2; e^r = 1 + r + r²·q(r), q of degree 4 by Chebyshev
 * interpolation (error 1e-8); 2^n built from its exponent bits. Below −87.3 the result is 0 (no denormals), above 88.3
 * it stays at e^88.3; NaN stays NaN.
 */
PL_INLINE vf expv(vf x) {
  const vf lowest = splat(-87.33f);
  const vf clamped = vmin(vmax(x, lowest), splat(88.3f));
  const vf shifted = fma(clamped, splat(1.44269504088896341f), splat(ROUND_MAGIC));
  const vf n = shifted - ROUND_MAGIC;
  // ln2 in two parts; n times the first is exact.
  vf r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  vf q = splat(1.3926203361634337e-3f);
  q = fma(q, r, splat(8.3631948824190414e-3f));
  q = fma(q, r, splat(4.1666554498413700e-2f));
  q = fma(q, r, splat(1.6666576894606600e-1f));
  q = fma(q, r, splat(0.5f));
  const vf p = fma(q, r * r, r) + 1.0f;
  // The low bits of `shifted` hold n (the magic constant's own low bits are zero).
  const vf power = (vf)(((vu)shifted + 127u) << 23);
  const vf result = p * power;
  return x < lowest ? vf{} : result;
}

PL_INLINE vf tanhv(vf x) {
  // 1 − 2/(e^{2x}+1); where |x| is small the odd series keeps the relative error down.
  const vf wide = 1.0f - 2.0f / (expv(2.0f * x) + 1.0f);
  const vf square = x * x;
  vf p = splat(-17.0f / 315.0f);
  p = fma(p, square, splat(2.0f / 15.0f));
  p = fma(p, square, splat(-1.0f / 3.0f));
  const vf narrow = fma(x * square, p, x);
  return vabs(x) < splat(0.1f) ? narrow : wide;
}

/**
 * e^x for x ≤ 0 (up to rounding), as softmax needs it: relative error below 2e-7 + |x|·2e-8, never below e^−87.3, so
 * that what must be zero has to be cleared by the caller. A third fewer instructions than expv. NaN stays NaN.
 */
PL_INLINE vf exp_negative(vf x) {
  const vf clamped = vmax(x, splat(-87.33f));
  const vf shifted = fma(clamped, splat(1.44269504088896341f), splat(ROUND_MAGIC));
  const vf r = fma(shifted - ROUND_MAGIC, splat(-0.69314718055994531f), clamped);
  vf p = splat(1.3926203361634337e-3f);
  p = fma(p, r, splat(8.3631948824190414e-3f));
  p = fma(p, r, splat(4.1666554498413700e-2f));
  p = fma(p, r, splat(1.6666576894606600e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  // 2^n is added to the exponent: p lies in [0.7, 1.42], so nothing reaches the sign for x in the domain.
  return (vf)((vu)p + ((vu)shifted << 23));
}

PL_INLINE vf sigmoidv(vf x) { return 1.0f / (1.0f + expv(-x)); }

static inline float sigmoid1(float x) { return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x)))); }

/** Applies f(vector) over n elements; the tail is padded with zeros and its extra lanes are dropped. */
template <class F>
PL_INLINE void map_lanes(const float* x, float* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, f(load(x + i)));
  if (i < n) store_part(out + i, f(load_part(x + i, n - i)), n - i);
}
template <class F>
PL_INLINE void map_lanes2(const float* x, const float* y, float* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, f(load(x + i), load(y + i)));
  if (i < n) store_part(out + i, f(load_part(x + i, n - i), load_part(y + i, n - i)), n - i);
}

}  // namespace planish::PL_LEVEL
