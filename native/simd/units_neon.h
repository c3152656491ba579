// Multiply-add units of NEON, PL_NEON: 1 any 64-bit Arm, 2 with the dot product: what a product does with a lane of A and
// lanes of B (gemm's micro-kernels: matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Rows of a register tile; rows up to which several panels of packed weights share a loop, and how many: one row alone
// would wait for its own sums.
constexpr int MR_VECTOR = 8;  // 8 × 2 accumulators of 32 registers: four pipes × a latency of four
constexpr int MANY_PANELS_ROWS = 2, MANY_PANELS = 4;

using UnitBf16 = UnitRounded;

#if PL_NEON >= 2
// A lane holds four codes; weights of 4 bits are bytes of [0, 15] to it.
struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 4;
  static Accumulator step(Accumulator acc, VI a, VI b) {
    return (VI)vdotq_s32((int32x4_t)acc, (int8x16_t)b, (int8x16_t)a);
  }
  template <int lane>
  static Accumulator step_lane(Accumulator acc, VI rows, VI b) {
    return (VI)vdotq_laneq_s32((int32x4_t)acc, (int8x16_t)b, (int8x16_t)rows, lane);
  }
  static VI ones() { return (VI)vdupq_n_s8(1); }
};

using UnitNibbles = UnitI8;
#else
// Bytes widened to pairs of 16 bits: products and their sums in 32.
struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 2;
  static VI codes(const int8_t* p, uint8_t) { return (VI)vmovl_s8(vld1_s8(p)); }
  static Accumulator step(Accumulator acc, VI a, VI b) {
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return acc + (VI)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
  }
  template <int lane>
  static Accumulator step_lane(Accumulator acc, VI rows, VI b) {
    return step(acc, (VI)vdupq_laneq_s32((int32x4_t)rows, lane), b);
  }
  static VI ones() { return (VI)vdupq_n_s16(1); }
};

// Codes by weights of 4 bits as bytes of [0, 15]: a pair of products is at most 15·(128 + 128) = 3840, so two fit 16 bits.
struct UnitNibbles : IntegerUnit<UnitNibbles> {
  static constexpr int GROUP = 4;
  static Accumulator step(Accumulator acc, VI a, VI b) {
    const int8x16_t x = (int8x16_t)a, y = (int8x16_t)b;
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y));
    return (VI)vpadalq_s16((int32x4_t)acc, pairs);
  }
  template <int lane>
  static Accumulator step_lane(Accumulator acc, VI rows, VI b) {
    return step(acc, (VI)vdupq_laneq_s32((int32x4_t)rows, lane), b);
  }
  static VI ones() { return (VI)vdupq_n_s8(1); }
};
#endif

}  // namespace planish::PL_LEVEL
