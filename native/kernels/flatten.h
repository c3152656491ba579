// Static symmetric grid with one scale for the whole tensor, its large channels split over several columns.
// Definition: flattenRows in src/backend/contract/training-kernels.ts; source: docs/methods.md, flattenquant, Flattening.
//
// One pass per row rounds every channel once and keeps the integers as floats; first copies lie in the channels' own
// order, so they are written straight through, and only the few further copies are gathered, a vector of them at a time.
// A channel's copies share one rounding: their codes add up to the rounded channel, clipped.
#pragma once

#include "quantize.h"

namespace planish::PL_LEVEL {

/** As store_codes_up_to, with whole vectors apart: a copy of a constant size is one instruction, of any other a call. */
PL_INLINE void put_codes(int8_t* out, vf q, int64_t count) {
  if (count >= VL) store_codes_up_to(out, q, VL);
  else store_codes_up_to(out, q, count);
}

inline int flatten_rows(const float* x, int64_t rows, int64_t cols, int32_t bits, float step, const float* factor,
                        int64_t extras, const int32_t* channel, const int32_t* part, int64_t stride,
                        const int32_t* copies, int8_t* codes, float* scale, int32_t* clipped) {
  for (int64_t e = 0; e < extras; ++e)
    if (channel[e] < 0 || channel[e] >= cols || part[e] < 0)
      return fail(PL_BAD_ARGUMENT, "flatten_rows: extra column %lld is copy %d of channel %d; there are %lld channels",
                  (long long)e, part[e], channel[e], (long long)cols);
  const float qmax = static_cast<float>((1 << (bits - 1)) - 1);
  // The further columns in whole vectors; what fills the last one up is never written out.
  const int64_t padded = (extras + VL - 1) / VL * VL;
  std::atomic<bool> starved{false};
  parallel_ranges(rows, row_grain(cols + extras), [&](int64_t begin, int64_t end) {
    float* const rounded = scratch_of<float>(0, cols + VL);
    float* const below = scratch_of<float>(1, padded + 1);
    int32_t* const from = scratch_of<int32_t>(2, padded + 1);
    if (!rounded || !below || !from) {
      starved = true;
      return;
    }
    for (int64_t e = 0; e < padded; ++e) {
      from[e] = e < extras ? channel[e] : 0;
      below[e] = e < extras ? static_cast<float>(part[e]) * qmax : 0.0f;
    }
    const vf top = splat(qmax), bottom = splat(-qmax);
    const vf sv = splat(step);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      int8_t* cr = codes + r * stride;
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        vf v = load_up_to(xr + i, count);
        if (factor) v = v * load_up_to(factor + i, count);
        // Clamped at 2²¹ steps, which is beyond the reach of sixteen thousand copies.
        const vf q = round_even_clamped(v / sv);
        store(rounded + i, q);
        put_codes(cr + i, vmin(vmax(q, bottom), top), count);
      }
      for (int64_t e = 0; e < padded; e += VL) {
        // Copy p holds what lies between p·Q and (p + 1)·Q steps, on either side.
        const vf v = gather(rounded, from + e);
        const vf size = vmin(vmax((v < 0.0f ? -v : v) - load(below + e), vf{}), top);
        put_codes(cr + cols + e, v < 0.0f ? -size : size, extras - e);
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
