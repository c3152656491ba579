// IEEE half precision in plain C++: for levels without conversion instructions, and for single values.
#pragma once
#include <cstdint>
#include <cstring>

namespace planish {

// Nearest even; beyond the largest half (65504) the value is clamped to it, so that a cache never holds infinity.
inline uint16_t half_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477fe000u) return static_cast<uint16_t>(sign | 0x7bffu);
  if (magnitude < 0x38800000u) {
    // Subnormal: the addition aligns the mantissa to 2⁻²⁴ and rounds to nearest even.
    float value;
    memcpy(&value, &magnitude, sizeof value);
    value += 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &value, sizeof rounded);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2⁻²⁴
    memcpy(&bits, &value, sizeof bits);
  } else if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude << 13);
  } else {
    bits = (magnitude << 13) + 0x38000000u;
  }
  bits |= sign;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace planish
