// The inner loops over packed weights (packed_weights.h): 4- and 8-bit codes become the multiply-add unit's lanes in
// registers, so memory gives each weight once, in the bits in which it is stored.
//
// A sum runs over k in one order, whatever the number of rows and panels at once: a row's result does not depend on
// what shares the product.
namespace planish {
namespace PL_LEVEL {

// Per kind: the unit, the correction, the bits of a weight in memory, and `columns`: VECTORS vectors of lanes for one group.

struct Int4Weights {
  using Unit = UnitNibbles;
  static constexpr int SHIFT = SHIFT_INT4;
  static constexpr int BITS = 4;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
#if PL_ISA >= 2
    const VI low = _mm512_set1_epi8(15), both = load_i(p);
    out[0] = _mm512_and_si512(both, low);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#elif PL_ISA == 1
    const VI low = _mm256_set1_epi8(15), both = load_i(p);
    out[0] = _mm256_and_si256(both, low);
    out[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#else
    out[0] = VI{p[0] & 15, p[1] & 15, p[2] & 15, p[3] & 15};
    out[1] = VI{p[0] >> 4, p[1] >> 4, p[2] >> 4, p[3] >> 4};
#endif
  }
};

#if PL_ISA == 1
// A panel of Int4Weights after unpack_nibbles: the mask and the shift taken once for all rows.
struct UnpackedNibbles {
  using Unit = UnitNibbles;
  static constexpr int SHIFT = SHIFT_INT4;
  static constexpr int BITS = 8;
  static constexpr int64_t GROUP_BYTES = NR * Unit::GROUP;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    out[0] = load_i(p);
    out[1] = load_i(p + 4 * LANES);
  }
};

inline void unpack_nibbles(int64_t groups, int64_t group_bytes, const uint8_t* b, uint8_t* out) {
  for (int64_t g = 0; g < groups; g++, b += group_bytes, out += UnpackedNibbles::GROUP_BYTES) {
    VI column[VECTORS];
    Int4Weights::columns(b, column);
    for (int v = 0; v < VECTORS; v++) store_i(out + 4 * LANES * v, column[v]);
  }
}

// Row panels from which unpacking pays: it costs what two or three of them save.
constexpr int64_t UNPACK_ROW_PANELS = 6;
#endif

struct Int8Weights {
  using Unit = UnitI8;
  static constexpr int SHIFT = SHIFT_INT8;
  static constexpr int BITS = 8;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
#if PL_ISA >= 2
    out[0] = load_i(p);
    out[1] = load_i(p + 64);
#elif PL_ISA == 1
    out[0] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    out[1] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
#else
    const int8_t* codes = reinterpret_cast<const int8_t*>(p);
    for (int v = 0; v < VECTORS; v++, codes += LANES) out[v] = VI{codes[0], codes[1], codes[2], codes[3]};
#endif
  }
};

// Codes times f32 activations: weight-only schemes keep the activations' precision.
struct Int4F32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 4;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
#if PL_ISA >= 2
    const VF table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const VI both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    // The permutation reads the low four bits of each index.
    out[0] = as_i(_mm512_permutexvar_ps(both, table));
    out[1] = as_i(_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table));
#elif PL_ISA == 1
    const VI both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), eight = _mm256_set1_epi32(8);
    out[0] = as_i(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(both, _mm256_set1_epi32(15)), eight)));
    out[1] = as_i(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(both, 4), eight)));
#else
    VF low = zero_f(), high = zero_f();
    for (int l = 0; l < LANES; l++) {
      low[l] = static_cast<float>((p[l] & 15) - SHIFT_INT4);
      high[l] = static_cast<float>((p[l] >> 4) - SHIFT_INT4);
    }
    out[0] = as_i(low);
    out[1] = as_i(high);
#endif
  }
};

struct Int8F32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 8;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(p);
    for (int v = 0; v < VECTORS; v++) out[v] = as_i(load_f(codes + LANES * v));
  }
};

inline VF widen_bf16(const uint8_t* p) {
#if PL_ISA >= 2
  return as_f(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif PL_ISA == 1
  return as_f(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#else
  uint16_t bits[LANES];
  memcpy(bits, p, sizeof bits);
  VI x;
  for (int l = 0; l < LANES; l++) x[l] = static_cast<int32_t>(static_cast<uint32_t>(bits[l]) << 16);
  return as_f(x);
#endif
}

struct Bf16Bf16Weights {
  using Unit = UnitBf16;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 16;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) {
#if PL_ISA >= 2
      out[v] = load_i(p + 64 * v);
#else
      out[v] = as_i(widen_bf16(p + 2 * LANES * v));
#endif
    }
  }
};

struct Bf16F32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 16;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) out[v] = as_i(widen_bf16(p + 2 * LANES * v));
  }
};

struct HalfF32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 16;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) {
#if PL_ISA >= 2
      out[v] = as_i(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * v))));
#elif PL_ISA == 1
      out[v] = as_i(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * v))));
#else
      uint16_t bits[LANES];
      memcpy(bits, p + 2 * LANES * v, sizeof bits);
      VF x;
      for (int l = 0; l < LANES; l++) x[l] = float_of_half(bits[l]);
      out[v] = as_i(x);
#endif
    }
  }
};

// Rows up to which several panels share a loop: one row alone would wait for its own sums.
#if PL_ISA >= 2
constexpr int MANY_PANELS_ROWS = 4, MANY_PANELS = 2;
#elif PL_ISA == 1
constexpr int MANY_PANELS_ROWS = 2, MANY_PANELS = 2;
#else
constexpr int MANY_PANELS_ROWS = 0, MANY_PANELS = 1;
#endif

// So few rows wait for memory. What the processor fetches ahead by itself starts anew at the end of each page and of
// each panel (4.5 KB at k = 576), so they ask for the weights this far ahead.
constexpr int64_t AHEAD_BYTES = 1024;

// `groups` of ROWS rows of A, packed [group][a_stride] lanes, by PANELS panels `panel_bytes` apart; tile
// [PANELS][ROWS][NR]. `left`: groups to the panels' end, beyond which come the next PANELS panels. `add`, of 16-bit sums
// only: to what the tile holds.
template <class Weights, int ROWS, int PANELS>
inline void packed_block(int64_t groups, int64_t left, int64_t group_bytes, const uint32_t* __restrict a,
                         int64_t a_stride, const uint8_t* __restrict b, int64_t panel_bytes, bool add,
                         typename Weights::Unit::Cell* __restrict tile) {
  using Unit = typename Weights::Unit;
  constexpr int64_t GROUP_BYTES = NR * Unit::GROUP * Weights::BITS / 8;
  constexpr bool FETCHES = ROWS <= MANY_PANELS_ROWS;
  (void)add;
  // Behind the last of a panel's bytes lies the panel that is walked beside it.
  const int64_t turn = left - AHEAD_BYTES / GROUP_BYTES;
  int64_t ahead = AHEAD_BYTES + (turn < 0 ? (PANELS - 1) * panel_bytes : 0);
  typename Unit::Accumulator acc[PANELS][ROWS][VECTORS];
#pragma GCC unroll 4
  for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) acc[p][i][v] = Unit::zero();
  for (int64_t g = 0; g < groups; g++) {
    if constexpr (FETCHES) {
      if (g == turn) ahead += (PANELS - 1) * panel_bytes;
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 4
        for (int64_t line = 0; line < GROUP_BYTES; line += 64) __builtin_prefetch(b + p * panel_bytes + ahead + line);
    }
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; p++) {
      VI column[VECTORS];
      Weights::columns(b + p * panel_bytes, column);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const VI row = broadcast_i(a + i);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) acc[p][i][v] = Unit::step(acc[p][i][v], row, column[v]);
      }
    }
    a += a_stride;
    b += group_bytes;
  }
#pragma GCC unroll 4
  for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        auto* const cells = tile + (p * ROWS + i) * NR + v * LANES;
        if constexpr (SHORT_SUMS<Unit>) {
          if (add) {
            Unit::add(cells, acc[p][i][v]);
            continue;
          }
        }
        Unit::store(cells, acc[p][i][v]);
      }
}

// `ends`: for 16-bit sums, groups after which they are added to the tile, the last being `groups`.
template <class Weights, int ROWS, int PANELS>
void packed_kernel(int64_t groups, int64_t group_bytes, const uint32_t* a, int64_t a_stride, const uint8_t* b,
                   int64_t panel_bytes, const int32_t* ends, typename Weights::Unit::Cell* tile) {
  if constexpr (SHORT_SUMS<typename Weights::Unit>) {
    int64_t done = 0;
    do {
      const int64_t end = *ends++;
      packed_block<Weights, ROWS, PANELS>(end - done, groups - done, group_bytes, a + done * a_stride, a_stride,
                                          b + done * group_bytes, panel_bytes, done > 0, tile);
      done = end;
    } while (done < groups);
  } else {
    (void)ends;
    packed_block<Weights, ROWS, PANELS>(groups, groups, group_bytes, a, a_stride, b, panel_bytes, false, tile);
  }
}

template <class Weights>
using PackedKernel = void (*)(int64_t, int64_t, const uint32_t*, int64_t, const uint8_t*, int64_t, const int32_t*,
                              typename Weights::Unit::Cell*);

template <class Weights, int ROWS>
PackedKernel<Weights> packed_kernel_of(int rows, int panels) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return packed_kernel_of<Weights, ROWS - 1>(rows, panels);
  }
  if constexpr (ROWS <= MANY_PANELS_ROWS) {
    if (panels > 1) return &packed_kernel<Weights, ROWS, MANY_PANELS>;
  }
  (void)panels;
  return &packed_kernel<Weights, ROWS, 1>;
}

#if PL_ISA >= 3
// A panel as the tile unit reads it: [group][NR] lanes, codes signed.
template <class Weights>
void unpack_for_tiles(int64_t groups, int64_t group_bytes, const uint8_t* b, uint32_t* out) {
  for (int64_t g = 0; g < groups; g++, b += group_bytes, out += NR) {
    VI column[VECTORS];
    Weights::columns(b, column);
    for (int v = 0; v < VECTORS; v++) {
      if (Weights::SHIFT != 0) column[v] = _mm512_sub_epi8(column[v], _mm512_set1_epi8(static_cast<char>(Weights::SHIFT)));
      store_i(out + v * LANES, column[v]);
    }
  }
}
#endif

}  // namespace PL_LEVEL
}  // namespace planish
