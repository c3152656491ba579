// 64-bit Arm's NEON: four 32-bit lanes. What each name means: portable.h.
#pragma once

#include "vector.h"

namespace planish::PL_LEVEL {

constexpr int LANES = 4;
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

PL_INLINE VF zero_f() { return VF{}; }
PL_INLINE VI zero_i() { return VI{}; }
PL_INLINE VI load_i(const void* p) { return (VI)vld1q_u8(static_cast<const uint8_t*>(p)); }
PL_INLINE void store_i(void* p, VI x) { vst1q_u8(static_cast<uint8_t*>(p), (uint8x16_t)x); }
PL_INLINE VF as_f(VI x) { return (VF)x; }
PL_INLINE VI as_i(VF x) { return (VI)x; }
PL_INLINE VI broadcast_i(const uint32_t* p) { return (VI)vld1q_dup_u32(p); }
PL_INLINE VF splat(float x) { return (VF)vdupq_n_f32(x); }
PL_INLINE VF load(const float* p) { return (VF)vld1q_f32(p); }
PL_INLINE VF load(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return (VF)vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
PL_INLINE void store(float* p, VF x) { vst1q_f32(p, (float32x4_t)x); }
PL_INLINE VI add_i(VI x, VI y) { return x + y; }
PL_INLINE VI splat_i(int32_t x) { return (VI)vdupq_n_s32(x); }
PL_INLINE VF mul_f(VF x, VF y) { return x * y; }
PL_INLINE VF fma(VF x, VF y, VF z) { return (VF)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y); }
inline void sum_four(float* out, const VF (&x)[4]) {
  const float32x4_t low = vpaddq_f32((float32x4_t)x[0], (float32x4_t)x[1]);
  const float32x4_t high = vpaddq_f32((float32x4_t)x[2], (float32x4_t)x[3]);
  vst1q_f32(out, vpaddq_f32(low, high));
}
inline void sum_four(int32_t* out, const VI (&x)[4]) {
  const int32x4_t low = vpaddq_s32((int32x4_t)x[0], (int32x4_t)x[1]);
  const int32x4_t high = vpaddq_s32((int32x4_t)x[2], (int32x4_t)x[3]);
  vst1q_s32(out, vpaddq_s32(low, high));
}
PL_INLINE void store_lanes(void* p, VI x, int count) {
  char* to = static_cast<char*>(p);
  if (count & 4) {
    store_i(to, x);
    return;
  }
  uint32x4_t rest = (uint32x4_t)x;
  if (count & 2) {
    vst1_u8(reinterpret_cast<uint8_t*>(to), vreinterpret_u8_u32(vget_low_u32(rest)));
    rest = vextq_u32(rest, rest, 2);
    to += 8;
  }
  if (count & 1) {
    const uint32_t lane = vgetq_lane_u32(rest, 0);
    memcpy(to, &lane, sizeof lane);
  }
}
PL_INLINE VF round_bf16(VF x) {
  const VI bits = as_i(x);
  const VI rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) & static_cast<int32_t>(0xffff0000u);
  return (VF)vbslq_u32(vceqq_f32((float32x4_t)x, (float32x4_t)x), (uint32x4_t)rounded, (uint32x4_t)bits);
}
inline void transpose(VI (&x)[4]) {
  const int32x4_t a = vzip1q_s32((int32x4_t)x[0], (int32x4_t)x[2]), b = vzip2q_s32((int32x4_t)x[0], (int32x4_t)x[2]);
  const int32x4_t c = vzip1q_s32((int32x4_t)x[1], (int32x4_t)x[3]), d = vzip2q_s32((int32x4_t)x[1], (int32x4_t)x[3]);
  x[0] = (VI)vzip1q_s32(a, c);
  x[1] = (VI)vzip2q_s32(a, c);
  x[2] = (VI)vzip1q_s32(b, d);
  x[3] = (VI)vzip2q_s32(b, d);
}

using VD = VectorOf<double, LANES>::type;
PL_INLINE VD splat(double x) { return (VD)vdupq_n_f64(x); }
PL_INLINE VD fma(VD a, VD b, VD c) { return (VD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
PL_INLINE VF load_part(const float* p, int64_t n, float fill = 0.0f) {
  VF v = splat(fill);
  memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
PL_INLINE void store_part(float* p, VF v, int64_t n) { store_lanes(p, as_i(v), static_cast<int>(n)); }
template <class F>
PL_INLINE VF combine_to_four(VF v, F) {
  return v;
}
PL_INLINE VI bytes_at(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return (VI)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
}
PL_INLINE VF floats_of(VI x) { return (VF)vcvtq_f32_s32((int32x4_t)x); }
PL_INLINE VF halves_at(const uint8_t* p) { return (VF)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
PL_INLINE VF widen_bf16(const uint8_t* p) { return (VF)vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16); }
PL_INLINE VF gather(const float* table, const int32_t* index) {
  return VF{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
PL_INLINE VF square_root(VF x) { return (VF)vsqrtq_f32((float32x4_t)x); }
PL_INLINE void store_codes(int8_t* out, VF q, size_t bytes) {
  const int16x4_t words = vqmovn_s32(vcvtq_s32_f32((float32x4_t)q));
  const int8x8_t code = vqmovn_s16(vcombine_s16(words, words));
  memcpy(out, &code, bytes);
}

PL_INLINE void nibble_columns(const uint8_t* p, VI (&out)[2]) {
  const uint8x16_t both = vld1q_u8(p);
  out[0] = (VI)vandq_u8(both, vdupq_n_u8(15));
  out[1] = (VI)vshrq_n_u8(both, 4);
}
PL_INLINE void byte_columns(const uint8_t* p, VI (&out)[2]) {
#if PL_NEON >= 2
  out[0] = load_i(p);
  out[1] = load_i(p + 16);
#else
  const int8_t* const codes = reinterpret_cast<const int8_t*>(p);
  out[0] = (VI)vmovl_s8(vld1_s8(codes));
  out[1] = (VI)vmovl_s8(vld1_s8(codes + 8));
#endif
}
PL_INLINE void nibble_floats(const uint8_t* p, VF (&out)[2]) {
  const VI both = bytes_at(p);
  out[0] = floats_of((both & 15) - 8);
  out[1] = floats_of((both >> 4) - 8);
}
PL_INLINE VI bf16_column(const uint8_t* p, int v) { return as_i(widen_bf16(p + 2 * LANES * v)); }

}  // namespace planish::PL_LEVEL
