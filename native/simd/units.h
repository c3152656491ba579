// The level's multiply-add units.
#pragma once

namespace planish::PL_LEVEL {

// What units of integers share, made of a unit's own `step` and `ones` (a lane of codes that are 1). A unit that does one of
// these otherwise has it itself.
template <class Unit>
struct IntegerUnit {
  static constexpr bool TILES = false;
  static constexpr int B_SHIFT = 0;
  using Cell = int32_t;
  using Accumulator = VI;
  static Accumulator zero() { return zero_i(); }
  // LANES groups of codes that follow one another; `flip` is XORed into each where the unit asks for it (B_SHIFT).
  static VI codes(const int8_t* p, uint8_t) { return load_i(p); }
  // Accumulators that become floats, and these as 32-bit lanes.
  using Sum = VI;
  static Sum of(VI x) { return x; }
  static Sum more(Sum acc, VI a, VI b) { return Unit::step(acc, a, b); }
  static VI wide(Sum acc) { return acc; }
  // The sum of a lane's codes, added to acc.
  static VI sum(VI acc, VI a) { return Unit::step(acc, a, Unit::ones()); }
  static void store(Cell* p, Accumulator acc) { store_i(p, acc); }

 private:
  IntegerUnit() = default;
  friend Unit;
};

}  // namespace planish::PL_LEVEL

#if PL_ISA >= 3
#include "units_amx.h"
#elif PL_ISA == 2
#include "units_avx512.h"
#elif PL_ISA == 1
#include "units_avx2.h"
#elif PL_NEON
#include "units_neon.h"
#elif PL_WASM
#include "units_wasm.h"
#else
#include "units_portable.h"
#endif
