// Vectors of four 32-bit lanes in the compiler's own terms: any processor. This header defines what every instruction
// set's header has, under these names; to add one, write its header, its line in simd.h and its level.
//
// Everything is in lanes of 32 bits because that is what every multiply-add unit consumes: one f32, a pair of bf16, a
// quad of int8 (avx512, amx) or a pair of int16 (avx2). A pack of such elements is called a *group*.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "vector.h"

namespace planish::PL_LEVEL {

constexpr int LANES = 4;
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

PL_INLINE VF zero_f() { return VF{}; }
PL_INLINE VI zero_i() { return VI{}; }
PL_INLINE VI load_i(const void* p) {
  VI x;
  memcpy(&x, p, sizeof x);
  return x;
}
PL_INLINE void store_i(void* p, VI x) { memcpy(p, &x, sizeof x); }
PL_INLINE VF as_f(VI x) { return (VF)x; }
PL_INLINE VI as_i(VF x) { return (VI)x; }
PL_INLINE VI broadcast_i(const uint32_t* p) {
  const int32_t x = static_cast<int32_t>(*p);
  return VI{x, x, x, x};
}
PL_INLINE VF splat(float x) { return VF{x, x, x, x}; }
PL_INLINE VF load(const float* p) { return as_f(load_i(p)); }
PL_INLINE VF load(const int8_t* p) {
  return VF{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
PL_INLINE void store(float* p, VF x) { memcpy(p, &x, sizeof x); }
PL_INLINE VI add_i(VI x, VI y) { return x + y; }
PL_INLINE VI splat_i(int32_t x) { return VI{x, x, x, x}; }
PL_INLINE VF mul_f(VF x, VF y) { return x * y; }
// Not fused unless the baseline has FMA (64-bit Arm): a library call per lane would be the alternative.
PL_INLINE VF fma(VF x, VF y, VF z) {
#if defined(__ARM_FEATURE_FMA)
  VF r;
  for (int i = 0; i < 4; i++) r[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return r;
#else
  return x * y + z;
#endif
}
inline void sum_four(float* out, const VF (&x)[4]) {
  for (int c = 0; c < 4; c++) out[c] = (x[c][0] + x[c][2]) + (x[c][1] + x[c][3]);
}
inline void sum_four(int32_t* out, const VI (&x)[4]) {
  for (int c = 0; c < 4; c++) {
    uint32_t sum = 0;
    for (int l = 0; l < 4; l++) sum += static_cast<uint32_t>(x[c][l]);
    out[c] = static_cast<int32_t>(sum);
  }
}
PL_INLINE void store_lanes(void* p, VI x, int count) { memcpy(p, &x, sizeof(int32_t) * static_cast<size_t>(count)); }
PL_INLINE VF round_bf16(VF x) {
  const VI bits = as_i(x);
  const VI rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) & static_cast<int32_t>(0xffff0000u);
  const VI ordered = (VI)(x == x);
  return as_f((rounded & ordered) | (bits & ~ordered));
}
inline void transpose(VI (&x)[4]) {
  const VI t[4] = {x[0], x[1], x[2], x[3]};
  for (int i = 0; i < 4; i++) x[i] = VI{t[0][i], t[1][i], t[2][i], t[3][i]};
}

using VD = VectorOf<double, LANES>::type;
PL_INLINE VD splat(double x) { return VD{x, x}; }
PL_INLINE VD fma(VD a, VD b, VD c) { return a * b + c; }
// The first n (0 … LANES) lanes from memory, `fill` elsewhere; touches no byte past p + n.
PL_INLINE VF load_part(const float* p, int64_t n, float fill = 0.0f) {
  VF v = splat(fill);
  memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
PL_INLINE void store_part(float* p, VF v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 4); }
// Halves of a vector combined by f until four lanes are left.
template <class F>
PL_INLINE VF combine_to_four(VF v, F) {
  return v;
}
// LANES bytes as integers; integers as floats; LANES halves, or bf16, as floats.
PL_INLINE VI bytes_at(const uint8_t* p) { return VI{p[0], p[1], p[2], p[3]}; }
PL_INLINE VF floats_of(VI x) { return __builtin_convertvector(x, VF); }
PL_INLINE VF halves_at(const uint8_t* p) {
  uint16_t bits[LANES];
  memcpy(bits, p, sizeof bits);
  VF x;
  for (int l = 0; l < LANES; l++) x[l] = float_of_half(bits[l]);
  return x;
}
PL_INLINE VF widen_bf16(const uint8_t* p) {
  uint16_t bits[LANES];
  memcpy(bits, p, sizeof bits);
  VI x;
  for (int l = 0; l < LANES; l++) x[l] = static_cast<int32_t>(static_cast<uint32_t>(bits[l]) << 16);
  return as_f(x);
}
// table[index[0 … LANES−1]].
PL_INLINE VF gather(const float* table, const int32_t* index) {
  VF v;
  for (int l = 0; l < LANES; l++) v[l] = table[index[l]];
  return v;
}
PL_INLINE VF square_root(VF x) {
  for (int l = 0; l < LANES; l++) x[l] = std::sqrt(x[l]);
  return x;
}
// The first `bytes` lanes, integers of [−128, 127], as bytes.
PL_INLINE void store_codes(int8_t* out, VF q, size_t bytes) {
#if defined(__SSE2__)
  const __m128i integers = _mm_cvtps_epi32((__m128)q);
  const __m128i words = _mm_packs_epi32(integers, integers);
  const __m128i code = _mm_packs_epi16(words, words);
#else
  using Bytes = int8_t __attribute__((vector_size(LANES)));
  const Bytes code = __builtin_convertvector(__builtin_convertvector(q, VI), Bytes);
#endif
  memcpy(out, &code, bytes);
}

// Packed weights as columns of the units: two vectors of lanes.
PL_INLINE void nibble_columns(const uint8_t* p, VI (&out)[2]) {
  out[0] = VI{p[0] & 15, p[1] & 15, p[2] & 15, p[3] & 15};
  out[1] = VI{p[0] >> 4, p[1] >> 4, p[2] >> 4, p[3] >> 4};
}
PL_INLINE void byte_columns(const uint8_t* p, VI (&out)[2]) {
  const int8_t* codes = reinterpret_cast<const int8_t*>(p);
  for (int v = 0; v < 2; v++, codes += LANES) out[v] = VI{codes[0], codes[1], codes[2], codes[3]};
}
// Codes of 4 bits, less 8, as floats.
PL_INLINE void nibble_floats(const uint8_t* p, VF (&out)[2]) {
  VF low = zero_f(), high = zero_f();
  for (int l = 0; l < LANES; l++) {
    low[l] = static_cast<float>((p[l] & 15) - 8);
    high[l] = static_cast<float>((p[l] >> 4) - 8);
  }
  out[0] = low;
  out[1] = high;
}
// LANES groups of bf16 as UnitBf16 takes them.
PL_INLINE VI bf16_column(const uint8_t* p, int v) { return as_i(widen_bf16(p + 2 * LANES * v)); }

}  // namespace planish::PL_LEVEL
