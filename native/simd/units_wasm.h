// Multiply-add units of WebAssembly: what a product does with a lane of A and lanes of B (gemm's micro-kernels:
// matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Engines on x86-64 have 15 registers to give; rows of a register tile, and rows up to which several panels of packed
// weights share a loop, and how many: one row alone would wait for its own sums.
constexpr int MR_VECTOR = 4;
constexpr int MANY_PANELS_ROWS = 1, MANY_PANELS = 2;

using UnitBf16 = UnitRounded;

// Bytes widened to int16 pairs, whose products fill 32 bits.
struct UnitI8 {
  static constexpr int GROUP = 2;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static VI codes(const int8_t* p, uint8_t) { return (VI)wasm_i16x8_load8x8(p); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return acc + (VI)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b); }
  using Sum = VI;
  static Sum of(VI x) { return x; }
  static Sum more(Sum acc, VI a, VI b) { return step(acc, a, b); }
  // A lane of codes that are 1; the sum of a lane's codes, added to acc; sums as 32-bit lanes.
  static VI ones() { return (VI)wasm_i16x8_const_splat(1); }
  static VI sum(VI acc, VI a) { return step(acc, a, ones()); }
  static VI wide(Sum acc) { return acc; }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};

#if PL_WASM >= 2
// Signed codes by weights of 4 bits: the second operand's high bits must be clear, then every engine's result is the same.
// On the way a pair of products is summed in 16 bits: at most 15·(128 + 128) = 3840.
struct UnitNibbles {
  static constexpr int GROUP = 4;
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  static VI codes(const int8_t* p, uint8_t) { return load_i(p); }
  static Accumulator step(Accumulator acc, VI a, VI b) {
    return (VI)wasm_i32x4_relaxed_dot_i8x16_i7x16_add((v128_t)a, (v128_t)b, (v128_t)acc);
  }
  using Sum = VI;
  static Sum of(VI x) { return x; }
  static Sum more(Sum acc, VI a, VI b) { return step(acc, a, b); }
  static VI ones() { return (VI)wasm_i8x16_const_splat(1); }
  static VI sum(VI acc, VI a) { return step(acc, a, ones()); }
  static VI wide(Sum acc) { return acc; }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }
};
#else
using UnitNibbles = UnitI8;
#endif

}  // namespace planish::PL_LEVEL
