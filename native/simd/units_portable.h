// Multiply-add units of any processor: what a product does with a lane of A and lanes of B (gemm's micro-kernels: matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Rows of a register tile; rows up to which several panels of packed weights share a loop, and how many: one row alone
// would wait for its own sums.
constexpr int MR_VECTOR = 4;
constexpr int MANY_PANELS_ROWS = 0, MANY_PANELS = 1;

using UnitBf16 = UnitRounded;

struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 1;
  static VI codes(const int8_t* p, uint8_t) { return VI{p[0], p[1], p[2], p[3]}; }
  static Accumulator step(Accumulator acc, VI a, VI b) { return acc + a * b; }
  static VI ones() { return splat_i(1); }
  static VI sum(VI acc, VI a) { return acc + a; }
};

using UnitNibbles = UnitI8;

}  // namespace planish::PL_LEVEL
