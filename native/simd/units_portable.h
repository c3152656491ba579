// Multiply-add units of any processor: what a product does with a lane of A and lanes of B (gemm's micro-kernels: matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Rows of a register tile; rows up to which several panels of packed weights share a loop, and how many: one row alone
// would wait for its own sums.
constexpr int MR_VECTOR = 4;
constexpr int MANY_PANELS_ROWS = 0, MANY_PANELS = 1;

using UnitBf16 = UnitRounded;

struct UnitI8 {
  static constexpr int GROUP = 1;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  // LANES groups of codes that follow one another; `flip` is XORed into each where the unit asks for it (B_SHIFT).
  static VI codes(const int8_t* p, uint8_t) { return VI{p[0], p[1], p[2], p[3]}; }
  using Sum = VI;
  static Sum of(VI x) { return x; }
  static Sum more(Sum acc, VI a, VI b) { return step(acc, a, b); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return acc + a * b; }
  // A lane of codes that are 1; the sum of a lane's codes, added to acc; sums as 32-bit lanes.
  static VI ones() { return splat_i(1); }
  static VI sum(VI acc, VI a) { return acc + a; }
  static VI wide(Sum acc) { return acc; }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};

using UnitNibbles = UnitI8;

}  // namespace planish::PL_LEVEL
