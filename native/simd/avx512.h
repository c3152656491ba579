// AVX-512 with VNNI and BF16: vectors of sixteen 32-bit lanes. What each name means: portable.h.
#pragma once

#include "vector.h"

namespace planish::PL_LEVEL {

constexpr int LANES = 16;
using VF = __m512;
using VI = __m512i;

PL_INLINE VF zero_f() { return _mm512_setzero_ps(); }
PL_INLINE VI zero_i() { return _mm512_setzero_si512(); }
PL_INLINE VI load_i(const void* p) { return _mm512_loadu_si512(p); }
PL_INLINE void store_i(void* p, VI x) { _mm512_storeu_si512(p, x); }
PL_INLINE VF as_f(VI x) { return _mm512_castsi512_ps(x); }
PL_INLINE VI as_i(VF x) { return _mm512_castps_si512(x); }
PL_INLINE VI broadcast_i(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
PL_INLINE VF splat(float x) { return _mm512_set1_ps(x); }
PL_INLINE VF load(const float* p) { return _mm512_loadu_ps(p); }
PL_INLINE VF load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
PL_INLINE void store(float* p, VF x) { _mm512_storeu_ps(p, x); }
PL_INLINE VI add_i(VI x, VI y) { return _mm512_add_epi32(x, y); }
PL_INLINE VI splat_i(int32_t x) { return _mm512_set1_epi32(x); }
PL_INLINE VF mul_f(VF x, VF y) { return _mm512_mul_ps(x, y); }
PL_INLINE VF fma(VF x, VF y, VF z) { return _mm512_fmadd_ps(x, y, z); }
// out[c] = sum of the lanes of x[c].
inline void sum_four(float* out, const VF (&x)[4]) {
  const VF low = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const VF high = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
  const VF all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
inline void sum_four(int32_t* out, const VI (&x)[4]) {
  const VI low = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const VI high = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const VI all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
PL_INLINE void store_lanes(void* p, VI x, int count) {
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << count) - 1), x);
}
// Rounds each lane to bf16 (nearest, ties to even) and widens it back.
PL_INLINE VF round_bf16(VF x) {
  return as_f(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

// Rows become columns: x[i] lane j ↔ x[j] lane i.
inline void transpose(VI (&x)[16]) {
  VI t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

using VD = VectorOf<double, LANES>::type;
PL_INLINE VD splat(double x) { return (VD)_mm512_set1_pd(x); }
PL_INLINE VD fma(VD a, VD b, VD c) { return (VD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
// The first n (0 … LANES) lanes from memory, `fill` elsewhere; touches no byte past p + n.
PL_INLINE VF load_part(const float* p, int64_t n, float fill = 0.0f) {
  return _mm512_mask_loadu_ps(splat(fill), static_cast<__mmask16>((1u << n) - 1u), p);
}
PL_INLINE void store_part(float* p, VF v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
}
// Halves of a vector combined by f until four lanes are left. (The intrinsics for it draw false warnings from GCC 12.)
template <class F>
PL_INLINE VectorOf<float, 4>::type combine_to_four(VF v, F f) {
  using Eight = VectorOf<float, 8>::type;
  const Eight eight = f((Eight)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                        (Eight)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  return f(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
}
// LANES bytes as integers; integers as floats; LANES halves, or bf16, as floats.
PL_INLINE VI bytes_at(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PL_INLINE VF floats_of(VI x) { return _mm512_cvtepi32_ps(x); }
PL_INLINE VF halves_at(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
PL_INLINE VF widen_bf16(const uint8_t* p) {
  return as_f(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
// table[index[0 … LANES−1]].
PL_INLINE VF gather(const float* table, const int32_t* index) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(index), table, 4);
}
PL_INLINE VF square_root(VF x) { return _mm512_maskz_sqrt_ps(static_cast<__mmask16>(0xffff), x); }
// The first `bytes` lanes, integers of [−128, 127], as bytes.
PL_INLINE void store_codes(int8_t* out, VF q, size_t bytes) {
  using Bytes = int8_t __attribute__((vector_size(LANES)));
  const Bytes code = __builtin_convertvector(__builtin_convertvector(q, VectorOf<int32_t, LANES>::type), Bytes);
  memcpy(out, &code, bytes);
}

// Packed weights as columns of the units: two vectors of lanes.
PL_INLINE void nibble_columns(const uint8_t* p, VI (&out)[2]) {
  const VI low = _mm512_set1_epi8(15), both = load_i(p);
  out[0] = _mm512_and_si512(both, low);
  out[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
}
PL_INLINE void byte_columns(const uint8_t* p, VI (&out)[2]) {
  out[0] = load_i(p);
  out[1] = load_i(p + 64);
}
// Codes of 4 bits, less 8, as floats.
PL_INLINE void nibble_floats(const uint8_t* p, VF (&out)[2]) {
  const VF table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const VI both = bytes_at(p);
  // The permutation reads the low four bits of each index.
  out[0] = _mm512_permutexvar_ps(both, table);
  out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
}
// LANES groups of bf16 as UnitBf16 takes them.
PL_INLINE VI bf16_column(const uint8_t* p, int v) { return load_i(p + 64 * v); }

}  // namespace planish::PL_LEVEL
