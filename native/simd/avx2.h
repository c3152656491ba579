// AVX2 with FMA and F16C: vectors of eight 32-bit lanes. What each name means: portable.h.
#pragma once

#include "vector.h"

namespace planish::PL_LEVEL {

constexpr int LANES = 8;
using VF = __m256;
using VI = __m256i;

PL_INLINE VF zero_f() { return _mm256_setzero_ps(); }
PL_INLINE VI zero_i() { return _mm256_setzero_si256(); }
PL_INLINE VI load_i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
PL_INLINE void store_i(void* p, VI x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
PL_INLINE VF as_f(VI x) { return _mm256_castsi256_ps(x); }
PL_INLINE VI as_i(VF x) { return _mm256_castps_si256(x); }
PL_INLINE VI broadcast_i(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
PL_INLINE VF splat(float x) { return _mm256_set1_ps(x); }
PL_INLINE VF load(const float* p) { return _mm256_loadu_ps(p); }
PL_INLINE VF load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
PL_INLINE void store(float* p, VF x) { _mm256_storeu_ps(p, x); }
PL_INLINE VI add_i(VI x, VI y) { return _mm256_add_epi32(x, y); }
PL_INLINE VI splat_i(int32_t x) { return _mm256_set1_epi32(x); }
PL_INLINE VF mul_f(VF x, VF y) { return _mm256_mul_ps(x, y); }
PL_INLINE VF fma(VF x, VF y, VF z) { return _mm256_fmadd_ps(x, y, z); }
inline void sum_four(float* out, const VF (&x)[4]) {
  const VF all = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
inline void sum_four(int32_t* out, const VI (&x)[4]) {
  const VI all = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
// By halves: a masked store is microcoded on AMD's processors, some forty operations.
PL_INLINE void store_lanes(void* p, VI x, int count) {
  char* to = static_cast<char*>(p);
  __m128i part = _mm256_castsi256_si128(x);
  if (count & 8) {
    store_i(to, x);
    return;
  }
  if (count & 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), part);
    part = _mm256_extracti128_si256(x, 1);
    to += 16;
  }
  if (count & 2) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), part);
    part = _mm_unpackhi_epi64(part, part);
    to += 8;
  }
  if (count & 1) {
    const int32_t lane = _mm_cvtsi128_si32(part);
    memcpy(to, &lane, sizeof lane);
  }
}
PL_INLINE VF round_bf16(VF x) {
  const VI bits = as_i(x);
  const VI odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const VI rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const VF result = as_f(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  return _mm256_blendv_ps(result, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

inline void transpose(VI (&x)[8]) {
  VI t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    x[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    x[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    x[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
  }
  for (int i = 0; i < 8; i++) x[i] = t[i];
}

using VD = VectorOf<double, LANES>::type;
PL_INLINE VD splat(double x) { return (VD)_mm256_set1_pd(x); }
PL_INLINE VD fma(VD a, VD b, VD c) { return (VD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
PL_INLINE VF load_part(const float* p, int64_t n, float fill = 0.0f) {
  VF v = splat(fill);
  memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
PL_INLINE void store_part(float* p, VF v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 4); }
template <class F>
PL_INLINE VectorOf<float, 4>::type combine_to_four(VF v, F f) {
  using Four = VectorOf<float, 4>::type;
  return f((Four)__builtin_shufflevector(v, v, 0, 1, 2, 3), (Four)__builtin_shufflevector(v, v, 4, 5, 6, 7));
}
PL_INLINE VI bytes_at(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
PL_INLINE VF floats_of(VI x) { return _mm256_cvtepi32_ps(x); }
PL_INLINE VF halves_at(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PL_INLINE VF widen_bf16(const uint8_t* p) {
  return as_f(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
PL_INLINE VF gather(const float* table, const int32_t* index) { return _mm256_i32gather_ps(table, load_i(index), 4); }
PL_INLINE VF square_root(VF x) {
  for (int l = 0; l < LANES; l++) x[l] = std::sqrt(x[l]);
  return x;
}
PL_INLINE void store_codes(int8_t* out, VF q, size_t bytes) {
  // GCC narrows eight integers one by one where a saturating pack does it in two steps.
  const __m256i integers = _mm256_cvtps_epi32(q);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  const __m128i packed = _mm_packs_epi16(words, words);
  memcpy(out, &packed, bytes);
}

PL_INLINE void nibble_columns(const uint8_t* p, VI (&out)[2]) {
  const VI low = _mm256_set1_epi8(15), both = load_i(p);
  out[0] = _mm256_and_si256(both, low);
  out[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
}
PL_INLINE void byte_columns(const uint8_t* p, VI (&out)[2]) {
  out[0] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  out[1] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
}
PL_INLINE void nibble_floats(const uint8_t* p, VF (&out)[2]) {
  const VI both = bytes_at(p), eight = _mm256_set1_epi32(8);
  out[0] = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(both, _mm256_set1_epi32(15)), eight));
  out[1] = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(both, 4), eight));
}
PL_INLINE VI bf16_column(const uint8_t* p, int v) { return as_i(widen_bf16(p + 2 * LANES * v)); }

}  // namespace planish::PL_LEVEL
