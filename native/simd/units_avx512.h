// Multiply-add units of AVX-512: what a product does with a lane of A and lanes of B (gemm's micro-kernels: matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Rows of a register tile; rows up to which several panels of packed weights share a loop, and how many: one row alone
// would wait for its own sums.
constexpr int MR_VECTOR = 12;  // 12 × 2 accumulators of 32 registers
constexpr int MANY_PANELS_ROWS = 4, MANY_PANELS = 2;

struct UnitBf16 {
  static constexpr int GROUP = 2;
  static constexpr bool TILES = PL_ISA >= 3;
  static constexpr bool ROUND = true;
  using Cell = float;
  using Accumulator = VF;
  static Accumulator zero() { return zero_f(); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  static void store(Cell* p, Accumulator acc) { planish::PL_LEVEL::store(p, acc); }
};

// vpdpbusd multiplies unsigned by signed bytes: B is packed as b + 128, and the epilogue subtracts 128·Σ_k a from each
// row. Its sums wrap instead of saturating, so the corrected result is exact whenever it fits an int32.
struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 4;
  static constexpr bool TILES = PL_ISA >= 3;
  static constexpr int B_SHIFT = TILES ? 0 : 128;
  static VI codes(const int8_t* p, uint8_t flip) {
    return _mm512_xor_si512(load_i(p), _mm512_set1_epi8(static_cast<char>(flip)));
  }
  static Accumulator step(Accumulator acc, VI a, VI b) { return _mm512_dpbusd_epi32(acc, b, a); }
  // Accumulators that become floats, of the instruction's own type: of another, g++ 12 keeps them twice, and spills them.
  using Sum = VectorOf<int32_t, LANES>::type;
  static Sum of(VI x) { return (Sum)x; }
  static Sum more(Sum acc, VI a, VI b) { return (Sum)_mm512_dpbusd_epi32((VI)acc, b, a); }
  static VI ones() { return _mm512_set1_epi8(1); }
  static VI wide(Sum acc) { return (VI)acc; }
};

using UnitNibbles = UnitI8;

}  // namespace planish::PL_LEVEL
