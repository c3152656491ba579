#include "driver.h"

static DriverCase peaks("peaks and memory read", [] {
  double operations = 0;
  float sink = 0;
  int code = pl_peak_f32(10, &operations) + pl_peak_bf16(10, &operations) + pl_peak_i8(10, &operations) +
             pl_peak_i4(10, &operations);
  for (int64_t length : {0, 1, 127, 128, 129, 1000}) {
    const auto x = pattern<float>(length);
    code += pl_read_memory(x.data(), length, &sink);
  }
  return code;
});
