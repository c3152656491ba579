// Multiply-add units and the register-tiled micro-kernels of the matrix products.
//
// A micro-kernel multiplies a packed panel of A (MR rows) by a packed panel of B (NR columns) over `groups` steps and
// leaves the tile, row-major with NR columns, in memory for the epilogue. Packed layouts (matmul_pack.h):
//   A  [group][MR] lanes; on amx [group / 16][MR][16] lanes, the tile unit's order
//   B  [group][NR] lanes
// A lane holds GROUP consecutive k of one row or column.
namespace planish {
namespace PL_LEVEL {

#if PL_ISA >= 2
constexpr int MR_VECTOR = 12;  // 12 × 2 accumulators of 32 registers
#elif PL_ISA == 1
constexpr int MR_VECTOR = 6;  // 6 × 2 of 16
#else
constexpr int MR_VECTOR = 4;
#endif
constexpr int VECTORS = 2;
constexpr int NR = VECTORS * LANES;

// f32 by f32.
struct UnitF32 {
  static constexpr int GROUP = 1;
  static constexpr bool TILES = false;
  static constexpr bool ROUND = false;
  using Cell = float;
  using Accumulator = VF;
  static Accumulator zero() { return zero_f(); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return fma_f(as_f(a), as_f(b), acc); }
  static void store(Cell* p, Accumulator acc) { store_f(p, acc); }
};

// bf16 where no unit multiplies it: rounded while packing, multiplied as f32, which is exact for bf16 inputs.
struct UnitRounded : UnitF32 {
  static constexpr bool ROUND = true;
};

#if PL_ISA >= 2

struct UnitBf16 {
  static constexpr int GROUP = 2;
  static constexpr bool TILES = PL_ISA >= 3;
  static constexpr bool ROUND = true;
  using Cell = float;
  using Accumulator = VF;
  static Accumulator zero() { return zero_f(); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  static void store(Cell* p, Accumulator acc) { store_f(p, acc); }
};

// vpdpbusd multiplies unsigned by signed bytes: B is packed as b + 128, and the epilogue subtracts 128·Σ_k a from each
// row. Its sums wrap instead of saturating, so the corrected result is exact whenever it fits an int32.
struct UnitI8 {
  static constexpr int GROUP = 4;
  static constexpr bool TILES = PL_ISA >= 3;
  static constexpr int B_SHIFT = TILES ? 0 : 128;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return _mm512_dpbusd_epi32(acc, b, a); }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};

#else

using UnitBf16 = UnitRounded;

#if PL_ISA == 1
// Bytes widened to int16 pairs: vpmaddwd cannot overflow on them, unlike vpmaddubsw, which saturates.
struct UnitI8 {
  static constexpr int GROUP = 2;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static Accumulator step(Accumulator acc, VI a, VI b) {
    // _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)), one product after the other: left to itself g++ 12 may multiply all
    // first and spill the sums.
    VI product;
    asm("vpmaddwd %[a], %[b], %[product]\n\tvpaddd %[product], %[acc], %[acc]"
        : [acc] "+x"(acc), [product] "=&x"(product)
        : [a] "x"(a), [b] "x"(b));
    return acc;
  }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};

// Unsigned weights of 4 bits by signed codes, twice the products of UnitI8 per instruction. A pair of products is at most
// 15·(128 + 128) = 3840, which vpmaddubsw does not saturate, and pairs are summed in 16 bits for as long as these surely
// hold them (short_blocks); then `store` and `add` widen them to 32.
struct UnitNibbles {
  static constexpr int GROUP = 4;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static Accumulator step(Accumulator acc, VI a, VI b) {
    // _mm256_add_epi16(acc, _mm256_maddubs_epi16(b, a)); in assembly for the same reason.
    VI product;
    asm("vpmaddubsw %[a], %[b], %[product]\n\tvpaddw %[product], %[acc], %[acc]"
        : [acc] "+x"(acc), [product] "=&x"(product)
        : [a] "x"(a), [b] "x"(b));
    return acc;
  }
  static void store(Cell* p, Accumulator acc) { store_i(p, _mm256_madd_epi16(acc, _mm256_set1_epi16(1))); }
  static void add(Cell* p, Accumulator acc) {
    store_i(p, _mm256_add_epi32(load_i(p), _mm256_madd_epi16(acc, _mm256_set1_epi16(1))));
  }
};
#else
struct UnitI8 {
  static constexpr int GROUP = 1;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return acc + a * b; }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};
#endif

#endif

#if PL_ISA != 1
using UnitNibbles = UnitI8;
#endif
// Units whose accumulators hold 16-bit sums.
template <class Unit>
constexpr bool SHORT_SUMS = PL_ISA == 1 && std::is_same<Unit, UnitNibbles>::value;

template <class Unit>
constexpr int MR = Unit::TILES ? 32 : MR_VECTOR;
// Packed panels are padded with zeros to a multiple of this many groups.
template <class Unit>
constexpr int GROUP_STEP = Unit::TILES ? 16 : 1;

template <class Unit, int ROWS, int WIDTH>
void micro_kernel(int64_t groups, const uint32_t* __restrict__ a, const uint32_t* __restrict__ b,
                  typename Unit::Cell* __restrict__ tile) {
  typename Unit::Accumulator acc[ROWS][WIDTH];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
    for (int v = 0; v < WIDTH; v++) acc[i][v] = Unit::zero();
  for (int64_t g = 0; g < groups; g++) {
    VI column[WIDTH];
#pragma GCC unroll 2
    for (int v = 0; v < WIDTH; v++) column[v] = load_i(b + v * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const VI row = broadcast_i(a + i);
#pragma GCC unroll 2
      for (int v = 0; v < WIDTH; v++) acc[i][v] = Unit::step(acc[i][v], row, column[v]);
    }
    a += MR_VECTOR;
    b += NR;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
    for (int v = 0; v < WIDTH; v++) Unit::store(tile + i * NR + v * LANES, acc[i][v]);
}

template <class Unit>
using MicroKernel = void (*)(int64_t, const uint32_t*, const uint32_t*, typename Unit::Cell*);

template <class Unit, int ROWS>
struct MicroTable {
  static MicroKernel<Unit> find(int rows, bool narrow) {
    if (rows == ROWS) return narrow ? &micro_kernel<Unit, ROWS, 1> : &micro_kernel<Unit, ROWS, VECTORS>;
    return MicroTable<Unit, ROWS - 1>::find(rows, narrow);
  }
};
template <class Unit>
struct MicroTable<Unit, 0> {
  static MicroKernel<Unit> find(int, bool) { return nullptr; }
};

#if PL_ISA >= 3

// Tiles 0–3: the 2×2 result; 4, 5: A; 6, 7: B. All 16 rows × 64 bytes; panels are padded, so no tile is smaller.
inline void configure_tiles() {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; t++) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  _tile_loadconfig(config);
}

template <class Unit>
inline void tile_kernel(int64_t groups, const uint32_t* a, const uint32_t* b, typename Unit::Cell* tile, int rows,
                        int columns) {
  constexpr int ROW_BYTES = 64, B_BYTES = NR * 4;
  const bool low = rows > 16, right = columns > 16;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t g = 0; g < groups; g += 16) {
    _tile_loadd(4, a, ROW_BYTES);
    _tile_loadd(6, b, B_BYTES);
    if (Unit::GROUP == 2) {
      _tile_dpbf16ps(0, 4, 6);
    } else {
      _tile_dpbssd(0, 4, 6);
    }
    if (right) {
      _tile_loadd(7, b + 16, B_BYTES);
      if (Unit::GROUP == 2) {
        _tile_dpbf16ps(1, 4, 7);
      } else {
        _tile_dpbssd(1, 4, 7);
      }
    }
    if (low) {
      _tile_loadd(5, a + 16 * 16, ROW_BYTES);
      if (Unit::GROUP == 2) {
        _tile_dpbf16ps(2, 5, 6);
        if (right) _tile_dpbf16ps(3, 5, 7);
      } else {
        _tile_dpbssd(2, 5, 6);
        if (right) _tile_dpbssd(3, 5, 7);
      }
    }
    a += MR<Unit> * 16;
    b += NR * 16;
  }
  _tile_stored(0, tile, B_BYTES);
  if (right) _tile_stored(1, tile + 16, B_BYTES);
  if (low) _tile_stored(2, tile + 16 * NR, B_BYTES);
  if (low && right) _tile_stored(3, tile + 16 * NR + 16, B_BYTES);
}

#endif

// Tiles are per-thread state that is costly to switch: held from the beginning of a block of output to its end.
template <class Unit>
struct UnitScope {
  UnitScope() {
#if PL_ISA >= 3
    if (Unit::TILES) configure_tiles();
#endif
  }
  ~UnitScope() {
#if PL_ISA >= 3
    if (Unit::TILES) _tile_release();
#endif
  }
};

template <class Unit>
inline void multiply_panels(int64_t groups, const uint32_t* a, const uint32_t* b, typename Unit::Cell* tile, int rows,
                            int columns) {
#if PL_ISA >= 3
  if constexpr (Unit::TILES) {
    tile_kernel<Unit>(groups, a, b, tile, rows, columns);
    return;
  }
#endif
  MicroTable<Unit, MR_VECTOR>::find(rows, columns <= LANES)(groups, a, b, tile);
}

}  // namespace PL_LEVEL
}  // namespace planish
