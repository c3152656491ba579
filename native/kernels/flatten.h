// Static symmetric grid with one scale for the whole tensor, its large channels split over several columns.
// Definition: flattenRows in src/backend/kernels.ts; source: spec/flattenquant.md, Flattening.
//
// One pass per row rounds every channel once and keeps the integers as floats; first copies lie in the channels' own
// order, so they are written straight through, and only the few further copies are gathered. A channel's copies share
// one rounding: their codes add up to the rounded channel, clipped.
#pragma once

#include "quantize.h"

namespace planish::PL_LEVEL {

inline int flatten_rows(const float* x, int64_t rows, int64_t cols, int32_t bits, float step, const float* factor,
                        int64_t extras, const int32_t* channel, const int32_t* part, int64_t stride,
                        const int32_t* copies, int8_t* codes, float* scale, int32_t* clipped) {
  for (int64_t e = 0; e < extras; ++e)
    if (channel[e] < 0 || channel[e] >= cols || part[e] < 0)
      return fail(PL_BAD_ARGUMENT, "flatten_rows: extra column %lld is copy %d of channel %d; there are %lld channels",
                  (long long)e, part[e], channel[e], (long long)cols);
  const float qmax = static_cast<float>((1 << (bits - 1)) - 1);
  std::atomic<bool> starved{false};
  parallel_ranges(rows, rowGrain(cols + extras), [&](int64_t begin, int64_t end) {
    float* const rounded = scratchOf<float>(0, cols + VL);
    if (!rounded) {
      starved = true;
      return;
    }
    const vf top = splat(qmax), bottom = splat(-qmax);
    const vf sv = splat(step);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      int8_t* cr = codes + r * stride;
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        vf v = loadUpTo(xr + i, count);
        if (factor) v = v * loadUpTo(factor + i, count);
        // Clamped at 2²¹ steps, which is beyond the reach of sixteen thousand copies.
        const vf q = roundEvenClamped(v / sv);
        store(rounded + i, q);
        storeCodes(cr + i, vmin(vmax(q, bottom), top), count);
      }
      for (int64_t e = 0; e < extras; ++e) {
        const float v = rounded[channel[e]];
        // Copy p holds what lies between p·Q and (p + 1)·Q steps, on either side.
        float size = (v < 0.0f ? -v : v) - static_cast<float>(part[e]) * qmax;
        size = size < 0.0f ? 0.0f : size > qmax ? qmax : size;
        cr[cols + e] = static_cast<int8_t>(v < 0.0f ? -size : size);
      }
      for (int64_t i = cols + extras; i < stride; ++i) cr[i] = 0;
      if (scale) scale[r] = step;
      if (clipped) {
        int32_t beyond = 0;
        for (int64_t i = 0; i < cols; ++i) {
          const float reach = static_cast<float>(copies[i]) * qmax;
          beyond += rounded[i] > reach || rounded[i] < -reach;
        }
        clipped[r] = beyond;
      }
    }
  });
  return starved ? fail(PL_OUT_OF_MEMORY, "flatten_rows: no memory for a row of %lld channels", (long long)cols) : 0;
}

}  // namespace planish::PL_LEVEL
