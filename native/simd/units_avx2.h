// Multiply-add units of AVX2: what a product does with a lane of A and lanes of B (gemm's micro-kernels: matmul_micro.h).
#pragma once

namespace planish::PL_LEVEL {

// Rows of a register tile; rows up to which several panels of packed weights share a loop, and how many: one row alone
// would wait for its own sums.
constexpr int MR_VECTOR = 6;  // 6 × 2 of 16
constexpr int MANY_PANELS_ROWS = 2, MANY_PANELS = 2;

using UnitBf16 = UnitRounded;

// Bytes widened to int16 pairs: vpmaddwd cannot overflow on them, unlike vpmaddubsw, which saturates.
struct UnitI8 : IntegerUnit<UnitI8> {
  static constexpr int GROUP = 2;
  static VI codes(const int8_t* p, uint8_t) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Accumulator step(Accumulator acc, VI a, VI b) {
    // _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)), one product after the other: left to itself g++ 12 may multiply all
    // first and spill the sums.
    VI product;
    asm("vpmaddwd %[a], %[b], %[product]\n\tvpaddd %[product], %[acc], %[acc]"
        : [acc] "+x"(acc), [product] "=&x"(product)
        : [a] "x"(a), [b] "x"(b));
    return acc;
  }
  static VI ones() { return _mm256_set1_epi16(1); }
  static VI sum(VI acc, VI a) { return add_i(acc, _mm256_madd_epi16(a, ones())); }
};

// Unsigned weights of 4 bits by signed codes, twice the products of UnitI8 per instruction. A pair of products is at most
// 15·(128 + 128) = 3840, which vpmaddubsw does not saturate, and pairs are summed in 16 bits for as long as these surely
// hold them (short_blocks); then `store` and `add` widen them to 32.
struct UnitNibbles : IntegerUnit<UnitNibbles> {
  static constexpr int GROUP = 4;
  static Accumulator step(Accumulator acc, VI a, VI b) {
    // _mm256_add_epi16(acc, _mm256_maddubs_epi16(b, a)); in assembly for the same reason.
    VI product;
    asm("vpmaddubsw %[a], %[b], %[product]\n\tvpaddw %[product], %[acc], %[acc]"
        : [acc] "+x"(acc), [product] "=&x"(product)
        : [a] "x"(a), [b] "x"(b));
    return acc;
  }
  static VI ones() { return _mm256_set1_epi8(1); }
  static VI wide(Sum acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
  static VI sum(VI acc, VI a) { return add_i(acc, wide(_mm256_maddubs_epi16(ones(), a))); }
  static void store(Cell* p, Accumulator acc) { store_i(p, wide(acc)); }
  static void add(Cell* p, Accumulator acc) { store_i(p, add_i(load_i(p), wide(acc))); }
};

}  // namespace planish::PL_LEVEL
