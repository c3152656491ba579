// WebAssembly's 128-bit vectors: four 32-bit lanes. PL_WASM: 1 the base set (SIMD128), 2 with the relaxed instructions.
// What each name means: portable.h.
#pragma once

#include "vector.h"

namespace planish::PL_LEVEL {

constexpr int LANES = 4;
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

PL_INLINE VF zero_f() { return VF{}; }
PL_INLINE VI zero_i() { return VI{}; }
PL_INLINE VI load_i(const void* p) { return (VI)wasm_v128_load(p); }
PL_INLINE void store_i(void* p, VI x) { wasm_v128_store(p, (v128_t)x); }
PL_INLINE VF as_f(VI x) { return (VF)x; }
PL_INLINE VI as_i(VF x) { return (VI)x; }
PL_INLINE VI broadcast_i(const uint32_t* p) { return (VI)wasm_v128_load32_splat(p); }
PL_INLINE VF splat(float x) { return (VF)wasm_f32x4_splat(x); }
PL_INLINE VF load(const float* p) { return (VF)wasm_v128_load(p); }
PL_INLINE VF load(const int8_t* p) {
  return (VF)wasm_f32x4_convert_i32x4(
      wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p))));
}
PL_INLINE void store(float* p, VF x) { wasm_v128_store(p, (v128_t)x); }
PL_INLINE VI add_i(VI x, VI y) { return x + y; }
PL_INLINE VI splat_i(int32_t x) { return (VI)wasm_i32x4_splat(x); }
PL_INLINE VF mul_f(VF x, VF y) { return x * y; }
// Fused or not as the processor has it, but the same everywhere in a process.
PL_INLINE VF fma(VF x, VF y, VF z) {
#if PL_WASM >= 2
  return (VF)wasm_f32x4_relaxed_madd((v128_t)x, (v128_t)y, (v128_t)z);
#else
  return x * y + z;
#endif
}
inline void sum_four(float* out, const VF (&x)[4]) {
  for (int c = 0; c < 4; c++) out[c] = (x[c][0] + x[c][2]) + (x[c][1] + x[c][3]);
}
inline void sum_four(int32_t* out, const VI (&x)[4]) {
  const VI low = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5) + __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  const VI high = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5) + __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  store_i(out, __builtin_shufflevector(low, high, 0, 1, 4, 5) + __builtin_shufflevector(low, high, 2, 3, 6, 7));
}
PL_INLINE void store_lanes(void* p, VI x, int count) {
  char* to = static_cast<char*>(p);
  if (count & 4) {
    store_i(to, x);
    return;
  }
  if (count & 2) {
    wasm_v128_store64_lane(to, (v128_t)x, 0);
    x = __builtin_shufflevector(x, x, 2, 3, 2, 3);
    to += 8;
  }
  if (count & 1) wasm_v128_store32_lane(to, (v128_t)x, 0);
}
PL_INLINE VF round_bf16(VF x) {
  const VI bits = as_i(x);
  const VI rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) & static_cast<int32_t>(0xffff0000u);
  return as_f((VI)wasm_v128_bitselect((v128_t)rounded, (v128_t)bits, (v128_t)(x == x)));
}
inline void transpose(VI (&x)[4]) {
  const VI a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5), b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  const VI c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5), d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  x[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  x[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

using VD = VectorOf<double, LANES>::type;
PL_INLINE VD splat(double x) { return VD{x, x}; }
PL_INLINE VD fma(VD a, VD b, VD c) {
#if PL_WASM >= 2
  return (VD)wasm_f64x2_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)c);
#else
  return a * b + c;
#endif
}
PL_INLINE VF load_part(const float* p, int64_t n, float fill = 0.0f) {
  float lanes[LANES] = {fill, fill, fill, fill};
  for (int l = 0; l < LANES && l < n; l++) lanes[l] = p[l];
  return load(lanes);
}
PL_INLINE void store_part(float* p, VF v, int64_t n) { store_lanes(p, as_i(v), static_cast<int>(n)); }
template <class F>
PL_INLINE VF combine_to_four(VF v, F) {
  return v;
}
PL_INLINE VI bytes_at(const uint8_t* p) {
  return (VI)wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p)));
}
PL_INLINE VF floats_of(VI x) { return (VF)wasm_f32x4_convert_i32x4((v128_t)x); }
// The bits of a normal half, moved into place, are 2¹¹²-fold too small a float, and a subnormal one's too: a product
// mends the exponent of both. What that makes of infinities and NaNs (exponent 31) is mended after it.
PL_INLINE VF halves_at(const uint8_t* p) {
  const VI bits = (VI)wasm_u32x4_load16x4(p);
  const VI magnitude = (bits & 0x7fff) << 13;
  const VI scaled = as_i(as_f(magnitude) * 0x1p112f);
  const VI special = (VI)(magnitude >= (0x7c00 << 13)) & 0x7f800000;
  return as_f(scaled | special | ((bits & 0x8000) << 16));
}
PL_INLINE VF widen_bf16(const uint8_t* p) { return as_f((VI)wasm_u32x4_load16x4(p) << 16); }
PL_INLINE VF gather(const float* table, const int32_t* index) {
  return VF{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
PL_INLINE VF square_root(VF x) { return (VF)wasm_f32x4_sqrt((v128_t)x); }
PL_INLINE void store_codes(int8_t* out, VF q, size_t bytes) {
  const v128_t integers = wasm_i32x4_trunc_sat_f32x4((v128_t)q);
  const v128_t words = wasm_i16x8_narrow_i32x4(integers, integers);
  const v128_t code = wasm_i8x16_narrow_i16x8(words, words);
  if (bytes == 4) {
    wasm_v128_store32_lane(out, code, 0);
  } else {
    memcpy(out, &code, bytes);
  }
}

// A code to 16 bits, or with the relaxed dot product to 8 for nibbles: see units_wasm.h.
PL_INLINE void nibble_columns(const uint8_t* p, VI (&out)[2]) {
#if PL_WASM >= 2
  const v128_t both = wasm_v128_load(p), low = wasm_i8x16_const_splat(15);
  out[0] = (VI)wasm_v128_and(both, low);
  out[1] = (VI)wasm_v128_and(wasm_u16x8_shr(both, 4), low);
#else
  const v128_t both = wasm_u16x8_load8x8(p);
  out[0] = (VI)wasm_v128_and(both, wasm_i16x8_const_splat(15));
  out[1] = (VI)wasm_u16x8_shr(both, 4);
#endif
}
PL_INLINE void byte_columns(const uint8_t* p, VI (&out)[2]) {
  out[0] = (VI)wasm_i16x8_load8x8(p);
  out[1] = (VI)wasm_i16x8_load8x8(p + 8);
}
PL_INLINE void nibble_floats(const uint8_t* p, VF (&out)[2]) {
  const VI both = bytes_at(p);
  out[0] = floats_of((both & 15) - 8);
  out[1] = floats_of((both >> 4) - 8);
}
PL_INLINE VI bf16_column(const uint8_t* p, int v) { return as_i(widen_bf16(p + 2 * LANES * v)); }

}  // namespace planish::PL_LEVEL
