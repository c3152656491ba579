// The tile unit: whole blocks of a product at once. Rows that fill no tile go by AVX-512's vectors.
#pragma once

#include "units_avx512.h"

namespace planish::PL_LEVEL {

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
  constexpr int NR = 2 * LANES, ROW_BYTES = 64, B_BYTES = NR * 4;
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
    a += 32 * 16;
    b += NR * 16;
  }
  _tile_stored(0, tile, B_BYTES);
  if (right) _tile_stored(1, tile + 16, B_BYTES);
  if (low) _tile_stored(2, tile + 16 * NR, B_BYTES);
  if (low && right) _tile_stored(3, tile + 16 * NR + 16, B_BYTES);
}

}  // namespace planish::PL_LEVEL
