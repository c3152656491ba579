// Registers sanitizer cases: `static DriverCase fill("fill", [] { …; return code; });` in any native/test/*.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../planish.h"

struct DriverCase {
  const char* name;
  int (*run)();
  const DriverCase* next;
  DriverCase(const char* case_name, int (*function)());
};

inline const DriverCase*& driver_cases() {
  static const DriverCase* first = nullptr;
  return first;
}

inline DriverCase::DriverCase(const char* case_name, int (*function)())
    : name(case_name), run(function), next(driver_cases()) {
  driver_cases() = this;
}

// Exactly sized heap blocks, so that one element too far is caught, with a repeatable pattern inside.
template <class T>
inline std::vector<T> pattern(int64_t length) {
  std::vector<T> values(static_cast<size_t>(length));
  uint32_t state = 12345;
  for (T& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<int>(state >> 25) - 64);
  }
  return values;
}
