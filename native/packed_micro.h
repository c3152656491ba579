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
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) { nibble_columns(p, out); }
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
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) { byte_columns(p, out); }
};

// Codes times f32 activations: weight-only schemes keep the activations' precision.
struct Int4F32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 4;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    VF values[VECTORS];
    nibble_floats(p, values);
    for (int v = 0; v < VECTORS; v++) out[v] = as_i(values[v]);
  }
};

struct Int8F32Weights {
  using Unit = UnitF32;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 8;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(p);
    for (int v = 0; v < VECTORS; v++) out[v] = as_i(load(codes + LANES * v));
  }
};

struct Bf16Bf16Weights {
  using Unit = UnitBf16;
  static constexpr int SHIFT = 0;
  static constexpr int BITS = 16;
  static inline void columns(const uint8_t* p, VI (&out)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) out[v] = bf16_column(p, v);
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
    for (int v = 0; v < VECTORS; v++) out[v] = as_i(halves_at(p + 2 * LANES * v));
  }
};

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
#if PL_NEON
      if constexpr (ROWS > 1) {
        step_rows<Unit, ROWS, VECTORS>(a, column, acc[p]);
        continue;
      }
#endif
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
      if (Weights::SHIFT != 0)
        column[v] = _mm512_sub_epi8(column[v], _mm512_set1_epi8(static_cast<char>(Weights::SHIFT)));
      store_i(out + v * LANES, column[v]);
    }
  }
}
#endif

}  // namespace PL_LEVEL
}  // namespace planish
