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
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define PL_INLINE inline __attribute__((always_inline))

namespace planish::PL_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

/** Floats in one vector. */
constexpr int VL = kVectorBytes / 4;

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // The same vector at any element-aligned address; may alias plain arrays.
  typedef T loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

using vf = VecOf<float>::type;
using vi = VecOf<int32_t>::type;
using vu = VecOf<uint32_t>::type;  // for bit patterns: may wrap
using vd = VecOf<double>::type;

template <class T>
static PL_INLINE typename VecOf<T>::type loadT(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::loose*>(p);
}
template <class T>
static PL_INLINE void storeT(T* p, typename VecOf<T>::type v) {
  *reinterpret_cast<typename VecOf<T>::loose*>(p) = v;
}
static PL_INLINE vf load(const float* p) { return loadT<float>(p); }
static PL_INLINE void store(float* p, vf v) { storeT<float>(p, v); }

/** a·b + c, fused where the level has it (the build keeps the compiler from fusing on its own). */
#if defined(__AVX512F__)
static PL_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static PL_INLINE vd fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX2__)
static PL_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static PL_INLINE vd fma(vd a, vd b, vd c) { return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
static PL_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
static PL_INLINE vd fma(vd a, vd b, vd c) { return a * b + c; }
#endif

// Not `vf{} + x`: for the sake of −0 the compiler must then add before it spreads.
#if defined(__AVX512F__)
static PL_INLINE vf splat(float x) { return (vf)_mm512_set1_ps(x); }
static PL_INLINE vd splat(double x) { return (vd)_mm512_set1_pd(x); }
#elif defined(__AVX2__)
static PL_INLINE vf splat(float x) { return (vf)_mm256_set1_ps(x); }
static PL_INLINE vd splat(double x) { return (vd)_mm256_set1_pd(x); }
#else
static PL_INLINE vf splat(float x) { return vf{x, x, x, x}; }
static PL_INLINE vd splat(double x) { return vd{x, x}; }
#endif

/** First n (0…VL) lanes from memory, `fill` elsewhere; touches no byte past p+n. */
static PL_INLINE vf loadPart(const float* p, int64_t n, float fill = 0.0f) {
#if defined(__AVX512F__)
  return (vf)_mm512_mask_loadu_ps((__m512)splat(fill), (__mmask16)((1u << n) - 1u), p);
#else
  vf v = splat(fill);
  std::memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
#endif
}
static PL_INLINE void storePart(float* p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
  std::memcpy(p, &v, static_cast<size_t>(n) * 4);
#endif
}

// The operand order makes a NaN in `a` survive.
static PL_INLINE vf vmax(vf a, vf b) { return b > a ? b : a; }
static PL_INLINE vf vmin(vf a, vf b) { return b < a ? b : a; }
static PL_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

// Lanes are combined in a fixed order, halves first. (The intrinsics for it draw false warnings from GCC 12.)
typedef float v4f __attribute__((vector_size(16)));
template <class F>
static PL_INLINE float combineLanes(vf v, F f) {
#if defined(__AVX512F__)
  typedef float v8f __attribute__((vector_size(32)));
  const v8f eight = f(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#elif defined(__AVX2__)
  const vf eight = v;
#endif
#if defined(__AVX2__)
  const v4f four = f(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
  const v4f four = v;
#endif
  const v4f two = f(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return f(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}
static PL_INLINE float sumLanes(vf v) {
  return combineLanes(v, [](auto a, auto b) { return a + b; });
}
static PL_INLINE float maxLanes(vf v) {
  return combineLanes(v, [](auto a, auto b) { return b > a ? b : a; });
}
static PL_INLINE float minLanes(vf v) {
  return combineLanes(v, [](auto a, auto b) { return b < a ? b : a; });
}

/**
 * Round half to even. Adding 1.5·2²³ leaves no room for a fraction, so the addition itself rounds in the
 * processor's mode (to nearest even); exact for |x| < 2²². Callers clamp to ±kRoundLimit first.
 */
constexpr float kRoundMagic = 12582912.0f;
constexpr float kRoundLimit = 2097152.0f;
static PL_INLINE vf roundEven(vf x) { return (x + kRoundMagic) - kRoundMagic; }
static PL_INLINE vf roundEvenClamped(vf x) {
  return roundEven(vmin(vmax(x, splat(-kRoundLimit)), splat(kRoundLimit)));
}
static inline float roundEven1(float x) {
  return std::nearbyintf(std::min(std::max(x, -kRoundLimit), kRoundLimit));
}

/**
 * e^x, relative error below 1.5e-7: x = n·ln2 + r with |r| ≤ ln2/2; e^r = 1 + r + r²·q(r), q of degree 4 by Chebyshev
 * interpolation (error 1e-8); 2^n built from its exponent bits. Below −87.3 the result is 0 (no denormals), above 88.3
 * it stays at e^88.3; NaN stays NaN.
 */
static PL_INLINE vf expv(vf x) {
  const vf lowest = splat(-87.33f);
  const vf clamped = vmin(vmax(x, lowest), splat(88.3f));
  const vf shifted = fma(clamped, splat(1.44269504088896341f), splat(kRoundMagic));
  const vf n = shifted - kRoundMagic;
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

static PL_INLINE vf tanhv(vf x) {
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
static PL_INLINE vf expNegative(vf x) {
  const vf clamped = vmax(x, splat(-87.33f));
  const vf shifted = fma(clamped, splat(1.44269504088896341f), splat(kRoundMagic));
  const vf r = fma(shifted - kRoundMagic, splat(-0.69314718055994531f), clamped);
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

static PL_INLINE vf sigmoidv(vf x) { return 1.0f / (1.0f + expv(-x)); }

static inline float sigmoid1(float x) {
  return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x))));
}

/** Applies f(vector) over n elements; the tail is padded with zeros and its extra lanes are dropped. */
template <class F>
static PL_INLINE void mapLanes(const float* x, float* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, f(load(x + i)));
  if (i < n) storePart(out + i, f(loadPart(x + i, n - i)), n - i);
}
template <class F>
static PL_INLINE void mapLanes2(const float* x, const float* y, float* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, f(load(x + i), load(y + i)));
  if (i < n) storePart(out + i, f(loadPart(x + i, n - i), loadPart(y + i, n - i)), n - i);
}

}  // namespace planish::PL_LEVEL
