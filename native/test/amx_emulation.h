// The tile instructions in plain C++, so that the amx level is exercised on machines without AMX (PL_EMULATE_AMX,
// `scripts/build-native.mjs --emulate-amx` and `--sanitize`). Semantics: Intel SDM, TILELOADD, TDPBSSD, TDPBF16PS.
// Using a tile that was not configured, or shapes that do not fit, aborts, as the instructions would fault.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace planish {
namespace emulation {

struct Tiles {
  bool configured = false;
  int rows[8] = {}, bytes[8] = {};
  alignas(64) uint8_t data[8][16][64] = {};
};

inline Tiles& tiles() {
  static thread_local Tiles state;
  return state;
}

inline void demand(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "emulated tile fault: %s\n", what);
  abort();
}

inline void load_config(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  Tiles& t = tiles();
  demand(bytes[0] == 1, "palette");
  for (int i = 0; i < 8; i++) {
    t.bytes[i] = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8;
    t.rows[i] = bytes[48 + i];
    demand(t.rows[i] <= 16 && t.bytes[i] <= 64, "tile shape");
  }
  memset(t.data, 0, sizeof t.data);
  t.configured = true;
}

inline void release() { tiles().configured = false; }

inline void zero(int tile) {
  demand(tiles().configured, "tilezero without a configuration");
  memset(tiles().data[tile], 0, sizeof tiles().data[tile]);
}

inline void load(int tile, const void* base, int64_t stride) {
  Tiles& t = tiles();
  demand(t.configured, "tileloadd without a configuration");
  for (int r = 0; r < t.rows[tile]; r++)
    memcpy(t.data[tile][r], static_cast<const char*>(base) + r * stride, static_cast<size_t>(t.bytes[tile]));
}

inline void store(int tile, void* base, int64_t stride) {
  Tiles& t = tiles();
  demand(t.configured, "tilestored without a configuration");
  for (int r = 0; r < t.rows[tile]; r++)
    memcpy(static_cast<char*>(base) + r * stride, t.data[tile][r], static_cast<size_t>(t.bytes[tile]));
}

// Calls f(result, row of A, row of B, column) for every multiply-add of 32-bit groups.
template <class Cell, class F>
inline void multiply(int c, int a, int b, const F& f) {
  Tiles& t = tiles();
  demand(t.configured, "tile product without a configuration");
  demand(t.rows[c] == t.rows[a] && t.bytes[a] == t.rows[b] * 4 && t.bytes[c] == t.bytes[b], "shapes of a tile product");
  for (int i = 0; i < t.rows[c]; i++)
    for (int g = 0; g < t.rows[b]; g++)
      for (int j = 0; j < t.bytes[c] / 4; j++) {
        Cell cell;
        memcpy(&cell, t.data[c][i] + 4 * j, 4);
        cell = f(cell, t.data[a][i] + 4 * g, t.data[b][g] + 4 * j);
        memcpy(t.data[c][i] + 4 * j, &cell, 4);
      }
}

inline float widen(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline void multiply_bf16(int c, int a, int b) {
  multiply<float>(c, a, b, [](float cell, const uint8_t* x, const uint8_t* y) {
    return cell + (widen(x) * widen(y) + widen(x + 2) * widen(y + 2));
  });
}

inline void multiply_bytes(int c, int a, int b) {
  multiply<uint32_t>(c, a, b, [](uint32_t cell, const uint8_t* x, const uint8_t* y) {
    for (int e = 0; e < 4; e++) cell += static_cast<uint32_t>(static_cast<int8_t>(x[e]) * static_cast<int8_t>(y[e]));
    return cell;
  });
}

}  // namespace emulation
}  // namespace planish

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) ::planish::emulation::load_config(config)
#define _tile_release() ::planish::emulation::release()
#define _tile_zero(tile) ::planish::emulation::zero(tile)
#define _tile_loadd(tile, base, stride) ::planish::emulation::load(tile, base, stride)
#define _tile_stored(tile, base, stride) ::planish::emulation::store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) ::planish::emulation::multiply_bf16(c, a, b)
#define _tile_dpbssd(c, a, b) ::planish::emulation::multiply_bytes(c, a, b)
