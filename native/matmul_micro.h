// Multiply-add units and the register-tiled micro-kernels of the matrix products.
//
// A micro-kernel multiplies a packed panel of A (MR rows) by a packed panel of B (NR columns) over `groups` steps and
// leaves the tile, row-major with NR columns, in memory for the epilogue. Packed layouts (matmul_pack.h):
//   A  [group][MR] lanes; on amx [group / 16][MR][16] lanes, the tile unit's order
//   B  [group][NR] lanes
// A lane holds GROUP consecutive k of one row or column.
namespace planish {
namespace PL_LEVEL {

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
  static Accumulator step(Accumulator acc, VI a, VI b) { return fma(as_f(a), as_f(b), acc); }
#if PL_NEON
  template <int lane>
  static Accumulator step_lane(Accumulator acc, VI rows, VI b) {
    return (VF)vfmaq_laneq_f32((float32x4_t)acc, (float32x4_t)b, (float32x4_t)rows, lane);
  }
#endif
  static void store(Cell* p, Accumulator acc) { planish::PL_LEVEL::store(p, acc); }
};

// bf16 where no unit multiplies it: rounded while packing, multiplied as f32, which is exact for bf16 inputs.
struct UnitRounded : UnitF32 {
  static constexpr bool ROUND = true;
};

}  // namespace PL_LEVEL
}  // namespace planish

// In terms of the units above.
#include "simd/units.h"

namespace planish {
namespace PL_LEVEL {

// Units whose accumulators hold 16-bit sums.
template <class Unit>
constexpr bool SHORT_SUMS = PL_ISA == 1 && std::is_same<Unit, UnitNibbles>::value;

template <class Unit>
constexpr int MR = Unit::TILES ? 32 : MR_VECTOR;
// Packed panels are padded with zeros to a multiple of this many groups.
template <class Unit>
constexpr int GROUP_STEP = Unit::TILES ? 16 : 1;

#if PL_NEON
// One group of ROWS rows by WIDTH vectors of B: NEON multiplies by a lane of a register, so four rows take one load.
template <class Unit, int ROWS, int WIDTH>
PL_INLINE void step_rows(const uint32_t* a, const VI (&column)[WIDTH], typename Unit::Accumulator (&acc)[ROWS][WIDTH]) {
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i += 4) {
    const VI rows = load_i(a + i);
#pragma GCC unroll 2
    for (int v = 0; v < WIDTH; v++) {
      acc[i][v] = Unit::template step_lane<0>(acc[i][v], rows, column[v]);
      if (i + 1 < ROWS) acc[i + 1][v] = Unit::template step_lane<1>(acc[i + 1][v], rows, column[v]);
      if (i + 2 < ROWS) acc[i + 2][v] = Unit::template step_lane<2>(acc[i + 2][v], rows, column[v]);
      if (i + 3 < ROWS) acc[i + 3][v] = Unit::template step_lane<3>(acc[i + 3][v], rows, column[v]);
    }
  }
}
#endif

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
#if PL_NEON
    step_rows<Unit, ROWS, WIDTH>(a, column, acc);
#else
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const VI row = broadcast_i(a + i);
#pragma GCC unroll 2
      for (int v = 0; v < WIDTH; v++) acc[i][v] = Unit::step(acc[i][v], row, column[v]);
    }
#endif
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
