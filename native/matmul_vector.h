// Vectors of 32-bit lanes for the matrix products: what matmul_pack.h and matmul_micro.h need from an instruction set.
//
// Everything is written in lanes of 32 bits because that is what every multiply-add unit consumes: one f32, a pair of
// bf16, a quad of int8 (avx512, amx) or a pair of int16 (avx2). A pack of such elements is called a *group* below.
namespace planish {
namespace PL_LEVEL {

#if PL_ISA >= 2

constexpr int LANES = 16;
using VF = __m512;
using VI = __m512i;

inline VF zero_f() { return _mm512_setzero_ps(); }
inline VI zero_i() { return _mm512_setzero_si512(); }
inline VI load_i(const void* p) { return _mm512_loadu_si512(p); }
inline void store_i(void* p, VI x) { _mm512_storeu_si512(p, x); }
inline VF as_f(VI x) { return _mm512_castsi512_ps(x); }
inline VI as_i(VF x) { return _mm512_castps_si512(x); }
inline VI broadcast_i(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
inline VF set_f(float x) { return _mm512_set1_ps(x); }
inline VF load_f(const float* p) { return _mm512_loadu_ps(p); }
inline VF load_f(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_f(float* p, VF x) { _mm512_storeu_ps(p, x); }
inline VF mul_f(VF x, VF y) { return _mm512_mul_ps(x, y); }
inline VF fma_f(VF x, VF y, VF z) { return _mm512_fmadd_ps(x, y, z); }
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
inline void store_lanes(void* p, VI x, int count) {
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << count) - 1), x);
}
// Rounds each lane to bf16 (nearest, ties to even) and widens it back.
inline VF round_bf16(VF x) {
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

#elif PL_ISA == 1

constexpr int LANES = 8;
using VF = __m256;
using VI = __m256i;

inline VF zero_f() { return _mm256_setzero_ps(); }
inline VI zero_i() { return _mm256_setzero_si256(); }
inline VI load_i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_i(void* p, VI x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline VF as_f(VI x) { return _mm256_castsi256_ps(x); }
inline VI as_i(VF x) { return _mm256_castps_si256(x); }
inline VI broadcast_i(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
inline VF set_f(float x) { return _mm256_set1_ps(x); }
inline VF load_f(const float* p) { return _mm256_loadu_ps(p); }
inline VF load_f(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_f(float* p, VF x) { _mm256_storeu_ps(p, x); }
inline VF mul_f(VF x, VF y) { return _mm256_mul_ps(x, y); }
inline VF fma_f(VF x, VF y, VF z) { return _mm256_fmadd_ps(x, y, z); }
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
inline void store_lanes(void* p, VI x, int count) {
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
inline VF round_bf16(VF x) {
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

#else

constexpr int LANES = 4;
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

inline VF zero_f() { return VF{}; }
inline VI zero_i() { return VI{}; }
inline VI load_i(const void* p) {
  VI x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline void store_i(void* p, VI x) { memcpy(p, &x, sizeof x); }
inline VF as_f(VI x) { return (VF)x; }
inline VI as_i(VF x) { return (VI)x; }
inline VI broadcast_i(const uint32_t* p) {
  const int32_t x = static_cast<int32_t>(*p);
  return VI{x, x, x, x};
}
inline VF set_f(float x) { return VF{x, x, x, x}; }
inline VF load_f(const float* p) { return as_f(load_i(p)); }
inline VF load_f(const int8_t* p) {
  return VF{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
inline void store_f(float* p, VF x) { memcpy(p, &x, sizeof x); }
inline VF mul_f(VF x, VF y) { return x * y; }
// Not fused unless the baseline has FMA (64-bit Arm): a library call per lane would be the alternative.
inline VF fma_f(VF x, VF y, VF z) {
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
inline void store_lanes(void* p, VI x, int count) { memcpy(p, &x, sizeof(int32_t) * static_cast<size_t>(count)); }
inline VF round_bf16(VF x) {
  const VI bits = as_i(x);
  const VI rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) & static_cast<int32_t>(0xffff0000u);
  const VI ordered = (VI)(x == x);
  return as_f((rounded & ordered) | (bits & ~ordered));
}
inline void transpose(VI (&x)[4]) {
  const VI t[4] = {x[0], x[1], x[2], x[3]};
  for (int i = 0; i < 4; i++) x[i] = VI{t[0][i], t[1][i], t[2][i], t[3][i]};
}

#endif

}  // namespace PL_LEVEL
}  // namespace planish
