// Ceilings: how many multiply-adds per second this level's units do when nothing but registers is touched, and how
// fast memory can be read. `planish bench kernels` divides every measured rate by these.
//
// At each level the loop uses the unit that the level's matrix product uses for that precision: where no bf16 or int8
// unit exists, that is the f32 FMA (bf16) and the widening 16-bit multiply-add (int8).
namespace planish {
namespace PL_LEVEL {

#if PL_ISA >= 1
// Keeps a value alive in a register without letting the compiler see through it.
#define PL_OPAQUE(value) asm volatile("" : "+v"(value))
#elif defined(__x86_64__)
#define PL_OPAQUE(value) asm volatile("" : "+x"(value))
#elif defined(__aarch64__)
#define PL_OPAQUE(value) asm volatile("" : "+w"(value))
#else
#define PL_OPAQUE(value) asm volatile("" : "+m"(value))
#endif

// Twelve independent chains cover latency × throughput of every vector unit here (at most 2 per cycle × 5 cycles).
constexpr int PEAK_CHAINS = 12;

template <class Vector, class Step>
inline void peak_loop(int64_t iterations, const Vector& zero, const Step& step) {
  Vector acc[PEAK_CHAINS];
  for (int j = 0; j < PEAK_CHAINS; j++) acc[j] = zero;
  for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
    for (int j = 0; j < PEAK_CHAINS; j++) {
      // A local, since an array element named in asm would be given an address.
      Vector next = step(acc[j]);
      PL_OPAQUE(next);
      acc[j] = next;
    }
  }
}

#if PL_ISA >= 3
// Palette 1, eight tiles of 16 rows × 64 bytes.
inline void configure_peak_tiles() {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; t++) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}
#endif

inline int peak_f32(int64_t iterations, double* operations) {
#if PL_ISA >= 2
  constexpr int lanes = 16;
  parallel_for(thread_count(), [&](int64_t) {
    __m512 x = _mm512_set1_ps(1e-3f), y = _mm512_set1_ps(0.5f);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm512_setzero_ps(), [&](__m512 a) { return _mm512_fmadd_ps(x, y, a); });
  });
#elif PL_ISA == 1
  constexpr int lanes = 8;
  parallel_for(thread_count(), [&](int64_t) {
    __m256 x = _mm256_set1_ps(1e-3f), y = _mm256_set1_ps(0.5f);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm256_setzero_ps(), [&](__m256 a) { return _mm256_fmadd_ps(x, y, a); });
  });
#else
  constexpr int lanes = 4;
  typedef float Vector __attribute__((vector_size(16)));
  parallel_for(thread_count(), [&](int64_t) {
    Vector x = {1e-3f, 1e-3f, 1e-3f, 1e-3f}, y = {0.5f, 0.5f, 0.5f, 0.5f};
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, Vector{}, [&](Vector a) {
#if PL_NEON
      return (Vector)vfmaq_f32((float32x4_t)a, (float32x4_t)x, (float32x4_t)y);
#else
      Vector product = x * y;
      PL_OPAQUE(product);
      return a + product;
#endif
    });
  });
#endif
  *operations = 2.0 * lanes * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
}

inline int peak_bf16(int64_t iterations, double* operations) {
#if PL_ISA >= 3
  parallel_for(thread_count(), [&](int64_t) {
    configure_peak_tiles();
    for (int64_t i = 0; i < iterations; i++) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
  });
  *operations = 2.0 * 4 * 16 * 16 * 32 * static_cast<double>(iterations) * thread_count();
  return 0;
#elif PL_ISA == 2
  parallel_for(thread_count(), [&](int64_t) {
    __m512i x = _mm512_set1_epi16(0x3c00), y = _mm512_set1_epi16(0x3f00);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm512_setzero_ps(), [&](__m512 a) { return _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y); });
  });
  *operations = 2.0 * 32 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#else
  return peak_f32(iterations, operations);
#endif
}

inline int peak_i8(int64_t iterations, double* operations) {
#if PL_ISA >= 3
  parallel_for(thread_count(), [&](int64_t) {
    configure_peak_tiles();
    for (int64_t i = 0; i < iterations; i++) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
  });
  *operations = 2.0 * 4 * 16 * 16 * 64 * static_cast<double>(iterations) * thread_count();
  return 0;
#elif PL_ISA == 2
  parallel_for(thread_count(), [&](int64_t) {
    __m512i x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(1);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm512_setzero_si512(), [&](__m512i a) { return _mm512_dpbusd_epi32(a, x, y); });
  });
  *operations = 2.0 * 64 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#elif PL_ISA == 1
  parallel_for(thread_count(), [&](int64_t) {
    __m256i x = _mm256_set1_epi16(1), y = _mm256_set1_epi16(1);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm256_setzero_si256(), [&](__m256i a) {
      __m256i product = _mm256_madd_epi16(x, y);
      PL_OPAQUE(product);
      return _mm256_add_epi32(a, product);
    });
  });
  *operations = 2.0 * 16 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#elif PL_NEON >= 2
  parallel_for(thread_count(), [&](int64_t) {
    int8x16_t x = vdupq_n_s8(1), y = vdupq_n_s8(1);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, vdupq_n_s32(0), [&](int32x4_t a) { return vdotq_s32(a, x, y); });
  });
  *operations = 2.0 * 16 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#elif PL_NEON
  parallel_for(thread_count(), [&](int64_t) {
    int16x8_t x = vdupq_n_s16(1), y = vdupq_n_s16(1);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, vdupq_n_s32(0), [&](int32x4_t a) { return vmlal_high_s16(a, x, y); });
  });
  *operations = 2.0 * 4 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#else
  parallel_for(thread_count(), [&](int64_t) {
    int32_t x = 3, y = 5;
    int32_t acc[PEAK_CHAINS] = {};
    for (int64_t i = 0; i < iterations; i++) {
      for (int j = 0; j < PEAK_CHAINS; j++) {
        asm volatile("" : "+r"(x), "+r"(y));
        acc[j] = static_cast<int32_t>(static_cast<uint32_t>(acc[j]) + static_cast<uint32_t>(x * y));
        asm volatile("" : "+r"(acc[j]));
      }
    }
  });
  *operations = 2.0 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#endif
}

// Products of weights of 4 bits by codes: where bytes multiply bytes into 16-bit sums (UnitNibbles, at avx2) without their
// widening, which depends on the codes; elsewhere the unit is that of int8.
inline int peak_i4(int64_t iterations, double* operations) {
#if PL_ISA == 1
  parallel_for(thread_count(), [&](int64_t) {
    __m256i x = _mm256_set1_epi8(1), y = _mm256_set1_epi8(1);
    PL_OPAQUE(x);
    PL_OPAQUE(y);
    peak_loop(iterations, _mm256_setzero_si256(), [&](__m256i a) {
      __m256i product = _mm256_maddubs_epi16(x, y);
      PL_OPAQUE(product);
      return _mm256_add_epi16(a, product);
    });
  });
  *operations = 2.0 * 32 * PEAK_CHAINS * static_cast<double>(iterations) * thread_count();
  return 0;
#else
  return peak_i8(iterations, operations);
#endif
}

// Reads `length` floats once with every thread; `sink` receives their sum, so that no read can be dropped.
inline int read_memory(const float* x, int64_t length, float* sink) {
  constexpr int lanes = 16, chains = 8;
  const int parts = thread_count();
  float total[256] = {};
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = length * part / parts, end = length * (part + 1) / parts;
    float acc[chains][lanes] = {};
    int64_t i = begin;
    for (; i + lanes * chains <= end; i += lanes * chains)
      for (int c = 0; c < chains; c++)
        for (int l = 0; l < lanes; l++) acc[c][l] += x[i + c * lanes + l];
    for (; i < end; i++) acc[0][0] += x[i];
    float sum = 0;
    for (int c = 0; c < chains; c++)
      for (int l = 0; l < lanes; l++) sum += acc[c][l];
    total[part] = sum;
  });
  *sink = 0;
  for (int part = 0; part < parts; part++) *sink += total[part];
  return 0;
}

}  // namespace PL_LEVEL
}  // namespace planish
