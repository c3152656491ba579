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
struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 2;
  static VI codes(const int8_t* p, uint8_t) { return (VI)wasm_i16x8_load8x8(p); }
  static Accumulator step(Accumulator acc, VI a, VI b) { return acc + (VI)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b); }
  static VI ones() { return (VI)wasm_i16x8_const_splat(1); }
};

#if PL_WASM >= 2
// Signed codes by weights of 4 bits: the second operand's high bits must be clear, then every engine's result is the same.
// On the way a pair of products is summed in 16 bits: at most 15·(128 + 128) = 3840.
struct UnitNibbles : IntegerUnit<UnitNibbles> {
  static constexpr int GROUP = 4;
  static Accumulator step(Accumulator acc, VI a, VI b) {
    return (VI)wasm_i32x4_relaxed_dot_i8x16_i7x16_add((v128_t)a, (v128_t)b, (v128_t)acc);
  }
  static VI ones() { return (VI)wasm_i8x16_const_splat(1); }
};
#else
using UnitNibbles = UnitI8;
#endif

}  // namespace planish::PL_LEVEL
