// Quantization grids over rows: symmetric codes with one scale per row, the asymmetric grid of the KV cache, and row
// clipping, each with its gradient. Definitions: src/backend/contract/training.ts.
//
// Codes are round-half-even(x / scale): a true division, so that they match the definition in f32 bit for bit.
// Scalar gradients (clips) are kept per row and summed in row order, whatever the thread count.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "rows.h"
#include "tile.h"

namespace planish::PL_LEVEL {

// Rows per task are chosen so that a task moves at least this many elements.
constexpr int64_t TASK_ELEMENTS = 16384;
PL_INLINE int64_t row_grain(int64_t cols) {
  const int64_t rows = TASK_ELEMENTS / (cols > 0 ? cols : 1);
  return rows > 0 ? rows : 1;
}

/** The symmetric scale of a row before its floor, and which side sets it. */
struct SymmetricRange {
  float hi, lo;    // max(0, max x), min(0, min x), before clipping
  float top, low;  // the same after clipping; low as a magnitude
  float raw;       // max(top, low) / qmax
};

PL_INLINE SymmetricRange symmetric_range(const float* x, int64_t cols, float factor_max, float factor_min, float qmax) {
  const Extremes e = row_extremes(x, cols);
  SymmetricRange s;
  s.hi = e.hi > 0.0f ? e.hi : 0.0f;
  s.lo = e.lo < 0.0f ? e.lo : 0.0f;
  s.top = s.hi * factor_max;
  s.low = -(s.lo * factor_min);
  s.raw = (s.top > s.low ? s.top : s.low) / qmax;
  return s;
}

PL_INLINE float floored_scale(float raw, float scale_floor) {
  if (raw < scale_floor) return scale_floor;
  return raw == 0.0f ? 1.0f : raw;
}

/** Writes min(VL, count) integers of [−128, 127] as bytes. */
PL_INLINE void store_codes_up_to(int8_t* out, vf q, int64_t count) {
  store_codes(out, q, count >= VL ? VL : static_cast<size_t>(count));
}

/**
 * Codes of a row's beginning, clamp(round half even(x / scale), −qmax−1, qmax), with a true division's result but seldom a
 * division; returns how many there are. Only avx2 has it.
 *
 * x·RN(1/scale) errs by 2·2⁻²⁴ of x/scale, RN(x/scale) by 2⁻²⁴, to first order; so where neither is clamped they are less
 * than 4·2⁻²⁴·(qmax + 1) apart and round to the same integer, unless the product lies that close to a tie. Then four
 * vectors are divided. Scales so small or large that their reciprocal might not be a normal number always are.
 */
PL_INLINE int64_t codes_by_reciprocal(const float* x, int64_t cols, float scale, float qmax, int8_t* codes) {
  int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (!(scale > 0x1p-100f && scale < 0x1p100f)) return 0;
  const vf sv = splat(scale), inverse = splat(1.0f / scale), most = splat(qmax), least = splat(-qmax - 1.0f);
  const vf near_tie = splat(0.5f - (qmax + 1.0f) * 0x1p-22f);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (; i + 4 * VL <= cols; i += 4 * VL) {
    vf rounded[4], farthest = vf{};
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const vf ratio = vmin(vmax(load(x + i + v * VL) * inverse, least), most);
      rounded[v] = round_even(ratio);
      farthest = vmax(farthest, vabs(ratio - rounded[v]));
    }
    if (__builtin_expect(_mm256_movemask_ps((__m256)(farthest >= near_tie)), 0))
      for (int v = 0; v < 4; ++v) rounded[v] = round_even(vmin(vmax(load(x + i + v * VL) / sv, least), most));
    __m256i integers[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) integers[v] = _mm256_cvtps_epi32((__m256)rounded[v]);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(integers[0], integers[1]), _mm256_packs_epi32(integers[2], integers[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), _mm256_permutevar8x32_epi32(bytes, order));
  }
#else
  (void)x, (void)cols, (void)scale, (void)qmax, (void)codes;
#endif
  return i;
}

inline int quantize_rows(const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max,
                         const float* clip_min, float scale_floor, const float* offset, int8_t* codes, float* scale) {
  const float qmax = static_cast<float>((1 << (bits - 1)) - 1);
  const float factor_max = clip_max ? sigmoid1(*clip_max) : 1.0f;
  const float factor_min = clip_min ? sigmoid1(*clip_min) : 1.0f;
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(qmax), bottom = splat(-qmax - 1.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      int8_t* cr = codes + r * cols;
      const float s = floored_scale(symmetric_range(xr, cols, factor_max, factor_min, qmax).raw, scale_floor);
      scale[r] = s;
      const vf sv = splat(s);
      const float* off = offset ? offset + r * cols : nullptr;
      for (int64_t i = off ? 0 : codes_by_reciprocal(xr, cols, s, qmax, cr); i < cols; i += VL) {
        const int64_t count = cols - i;
        vf v = load_up_to(xr + i, count) / sv;
        if (off) v += load_up_to(off + i, count);
        // Clamping to the integer ends of the grid before rounding gives the same code as after.
        store_codes_up_to(cr + i, round_even(vmin(vmax(v, bottom), top)), count);
      }
    }
  });
  return 0;
}

inline int quantize_rows_backward(const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max,
                                  const float* clip_min, float scale_floor, const float* offset, const int8_t* codes,
                                  const float* scale, const float* grad, float* grad_x, float* grad_clip_max,
                                  float* grad_clip_min, float* grad_offset) {
  const float qmax = static_cast<float>((1 << (bits - 1)) - 1);
  const float factor_max = clip_max ? sigmoid1(*clip_max) : 1.0f;
  const float factor_min = clip_min ? sigmoid1(*clip_min) : 1.0f;
  // Per row: the gradient with respect to (top, low), for the clips.
  double* sides = scratch_of<double>(0, 2 * rows);
  if (!sides) return fail(PL_OUT_OF_MEMORY, "quantize_rows_backward: no memory for %lld rows", (long long)rows);
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(qmax), bottom = splat(-qmax - 1.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const float* gr = grad + r * cols;
      const int8_t* cr = codes + r * cols;
      float* gx = grad_x ? grad_x + r * cols : nullptr;
      float* go = grad_offset ? grad_offset + r * cols : nullptr;
      const float* off = offset ? offset + r * cols : nullptr;
      const vf sv = splat(scale[r]);
      const double grad_scale = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf ratio = load_up_to(xr + i, count) / sv;
        vf shifted = ratio;
        if (off) shifted += load_up_to(off + i, count);
        const vf rounded = round_even_clamped(shifted);
        const auto inside = (rounded <= top) & (rounded >= bottom);
        const vf g = load_up_to(gr + i, count);
        const vf through = inside ? g : vf{};
        if (gx) {
          if (count >= VL) store(gx + i, through);
          else store_part(gx + i, through, count);
        }
        if (go) {
          if (count >= VL) store(go + i, through * sv);
          else store_part(go + i, through * sv, count);
        }
        typedef int8_t vb __attribute__((vector_size(VL)));
        vb raw = {};
        std::memcpy(&raw, cr + i, count >= VL ? VL : static_cast<size_t>(count));
        const vf code = __builtin_convertvector(__builtin_convertvector(raw, vi), vf);
        return g * code - through * ratio;
      });
      const SymmetricRange s = symmetric_range(xr, cols, factor_max, factor_min, qmax);
      double d_top = 0, d_low = 0;
      if (s.raw > 0.0f && s.raw >= scale_floor) {
        const double d = grad_scale / qmax;
        // max(top, low): the larger side takes the gradient, equal sides share it.
        if (s.top > s.low) d_top = d;
        else if (s.low > s.top) d_low = d;
        else d_top = d_low = d / 2;
      }
      sides[2 * r] = d_top * s.hi;
      sides[2 * r + 1] = -d_low * s.lo;
      if (gx) {
        if (s.hi > 0.0f) spread_over_ties(xr, cols, s.hi, static_cast<float>(d_top * factor_max), gx);
        if (s.lo < 0.0f) spread_over_ties(xr, cols, s.lo, static_cast<float>(-d_low * factor_min), gx);
      }
    }
  });
  double sum_top = 0, sum_low = 0;
  for (int64_t r = 0; r < rows; ++r) {
    sum_top += sides[2 * r];
    sum_low += sides[2 * r + 1];
  }
  if (grad_clip_max) *grad_clip_max = static_cast<float>(sum_top * factor_max * (1.0 - factor_max));
  if (grad_clip_min) *grad_clip_min = static_cast<float>(sum_low * factor_min * (1.0 - factor_min));
  return 0;
}

inline int dequantize_rows(const int8_t* codes, const float* scale, int64_t rows, int64_t cols, float* out) {
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int8_t* __restrict cr = codes + r * cols;
      float* __restrict o = out + r * cols;
      const float s = scale[r];
      for (int64_t i = 0; i < cols; ++i) o[i] = s * static_cast<float>(cr[i]);
    }
  });
  return 0;
}

/** Scale and zero of one row of the asymmetric grid. */
struct AsymmetricRange {
  float max, min;  // max(0, max x), min(0, min x)
  float scale, zero;
  bool empty;  // an all-zero row: the range is the constant [−1, 1]
};

PL_INLINE AsymmetricRange asymmetric_range(const float* x, int64_t cols, float factor_max, float factor_min,
                                           float levels) {
  const Extremes e = row_extremes(x, cols);
  AsymmetricRange a;
  a.max = e.hi > 0.0f ? e.hi : 0.0f;
  a.min = e.lo < 0.0f ? e.lo : 0.0f;
  a.empty = a.max == 0.0f && a.min == 0.0f;
  const float hi = a.empty ? 1.0f : a.max * factor_max;
  const float lo = a.empty ? -1.0f : a.min * factor_min;
  a.scale = (hi - lo) / levels;
  a.zero = round_even1(-lo / a.scale);
  return a;
}

inline int fake_quantize_asym(const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max,
                              const float* clip_min, float* out) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float factor_max = clip_max ? sigmoid1(*clip_max) : 1.0f;
  const float factor_min = clip_min ? sigmoid1(*clip_min) : 1.0f;
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(levels);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const AsymmetricRange a = asymmetric_range(xr, cols, factor_max, factor_min, levels);
      map_lanes(xr, out + r * cols, cols, [&](vf v) {
        const vf q = vmin(vmax(round_even_clamped(v / a.scale) + a.zero, vf{}), top);
        return a.scale * (q - a.zero);
      });
    }
  });
  return 0;
}

inline int fake_quantize_asym_backward(const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max,
                                       const float* clip_min, const float* grad, float* grad_x, float* grad_clip_max,
                                       float* grad_clip_min) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float factor_max = clip_max ? sigmoid1(*clip_max) : 1.0f;
  const float factor_min = clip_min ? sigmoid1(*clip_min) : 1.0f;
  double* sides = scratch_of<double>(0, 2 * rows);
  if (!sides) return fail(PL_OUT_OF_MEMORY, "fake_quantize_asym_backward: no memory for %lld rows", (long long)rows);
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(levels);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const float* gr = grad + r * cols;
      float* gx = grad_x + r * cols;
      const AsymmetricRange a = asymmetric_range(xr, cols, factor_max, factor_min, levels);
      const double grad_scale = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf ratio = load_up_to(xr + i, count) / a.scale;
        const vf shifted = round_even_clamped(ratio) + a.zero;
        const auto inside = (shifted <= top) & (shifted >= vf{});
        const vf g = load_up_to(gr + i, count);
        const vf through = inside ? g : vf{};
        if (count >= VL) store(gx + i, through);
        else store_part(gx + i, through, count);
        const vf q = vmin(vmax(shifted, vf{}), top);
        return g * (q - a.zero) - through * ratio;
      });
      const double d = a.empty ? 0.0 : grad_scale / levels;
      sides[2 * r] = d * a.max;
      sides[2 * r + 1] = -d * a.min;
      if (a.max > 0.0f) spread_over_ties(xr, cols, a.max, static_cast<float>(d * factor_max), gx);
      if (a.min < 0.0f) spread_over_ties(xr, cols, a.min, static_cast<float>(-d * factor_min), gx);
    }
  });
  double sum_max = 0, sum_min = 0;
  for (int64_t r = 0; r < rows; ++r) {
    sum_max += sides[2 * r];
    sum_min += sides[2 * r + 1];
  }
  if (grad_clip_max) *grad_clip_max = static_cast<float>(sum_max * factor_max * (1.0 - factor_max));
  if (grad_clip_min) *grad_clip_min = static_cast<float>(sum_min * factor_min * (1.0 - factor_min));
  return 0;
}

/** Scale and offset of one row of the grid with a real offset. */
struct OffsetRange {
  float max, min, half;
  float lo, scale;
  bool constant;  // all elements are equal: code 0 stands for them exactly
};

PL_INLINE OffsetRange offset_range(const float* x, int64_t cols, float slack_max, float slack_min, float levels) {
  const Extremes e = row_extremes(x, cols);
  OffsetRange a;
  a.max = e.hi;
  a.min = e.lo;
  a.half = (e.hi - e.lo) / 2.0f;
  a.lo = e.lo + a.half * slack_min;
  const float scale = ((e.hi - a.half * slack_max) - a.lo) / levels;
  a.constant = !(scale > 0.0f);
  a.scale = a.constant ? 1.0f : scale;
  return a;
}

/** 1 − σ of a clipping logit; 0 without one. */
PL_INLINE float clip_slack(const float* logit) {
  return logit ? static_cast<float>(1.0 / (1.0 + std::exp(static_cast<double>(*logit)))) : 0.0f;
}

inline int fake_quantize_offset(const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max,
                                const float* clip_min, const float* shift, float* out) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float slack_max = clip_slack(clip_max), slack_min = clip_slack(clip_min);
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(levels);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const float* sr = shift ? shift + r * cols : nullptr;
      float* o = out + r * cols;
      const OffsetRange a = offset_range(xr, cols, slack_max, slack_min, levels);
      const vf lo = splat(a.lo), scale = splat(a.scale);
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        vf v = (load_up_to(xr + i, count) - lo) / scale;
        if (sr) v += load_up_to(sr + i, count);
        const vf q = lo + scale * round_even(vmin(vmax(v, vf{}), top));
        if (count >= VL) store(o + i, q);
        else store_part(o + i, q, count);
      }
    }
  });
  return 0;
}

inline int fake_quantize_offset_backward(const float* x, int64_t rows, int64_t cols, int32_t bits,
                                         const float* clip_max, const float* clip_min, const float* shift,
                                         const float* grad, float* grad_x, float* grad_clip_max, float* grad_clip_min,
                                         float* grad_shift) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float slack_max = clip_slack(clip_max), slack_min = clip_slack(clip_min);
  double* sides = scratch_of<double>(0, 2 * rows);
  if (!sides) return fail(PL_OUT_OF_MEMORY, "fake_quantize_offset_backward: no memory for %lld rows", (long long)rows);
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const vf top = splat(levels);
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const float* gr = grad + r * cols;
      const float* sr = shift ? shift + r * cols : nullptr;
      float* gx = grad_x + r * cols;
      float* gs = grad_shift ? grad_shift + r * cols : nullptr;
      const OffsetRange a = offset_range(xr, cols, slack_max, slack_min, levels);
      const vf lo = splat(a.lo), scale = splat(a.scale);
      double beyond = 0;
      const double grad_scale = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf ratio = (load_up_to(xr + i, count) - lo) / scale;
        vf shifted = ratio;
        if (sr) shifted += load_up_to(sr + i, count);
        const vf level = round_even_clamped(shifted);
        const auto inside = (level <= top) & (level >= vf{});
        const vf g = load_up_to(gr + i, count);
        const vf through = inside ? g : vf{};
        if (count >= VL) store(gx + i, through);
        else store_part(gx + i, through, count);
        if (gs) {
          if (count >= VL) store(gs + i, through * scale);
          else store_part(gs + i, through * scale, count);
        }
        beyond += static_cast<double>(sum_lanes(g - through));
        return g * vmin(vmax(level, vf{}), top) - through * ratio;
      });
      const double to_max = a.constant ? 0.0 : grad_scale / levels;
      const double to_min = a.constant ? 0.0 : beyond - grad_scale / levels;
      sides[2 * r] = to_max * a.half;
      sides[2 * r + 1] = -to_min * a.half;
      // What hi keeps of max it takes from min, and the other way round.
      spread_over_ties(xr, cols, a.max, static_cast<float>((to_max * (2.0 - slack_max) + to_min * slack_min) / 2), gx);
      spread_over_ties(xr, cols, a.min, static_cast<float>((to_max * slack_max + to_min * (2.0 - slack_min)) / 2), gx);
    }
  });
  double sum_max = 0, sum_min = 0;
  for (int64_t r = 0; r < rows; ++r) {
    sum_max += sides[2 * r];
    sum_min += sides[2 * r + 1];
  }
  if (grad_clip_max) *grad_clip_max = static_cast<float>(sum_max * slack_max * (1.0 - slack_max));
  if (grad_clip_min) *grad_clip_min = static_cast<float>(sum_min * slack_min * (1.0 - slack_min));
  return 0;
}

inline int clip_rows(const float* x, int64_t rows, int64_t cols, const float* clip_max, const float* clip_min,
                     float* out) {
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Extremes e = row_extremes(x + r * cols, cols);
      const vf hi = splat(e.hi * sigmoid1(clip_max[r])), lo = splat(e.lo * sigmoid1(clip_min[r]));
      map_lanes(x + r * cols, out + r * cols, cols, [&](vf v) { return vmin(vmax(v, lo), hi); });
    }
  });
  return 0;
}

inline int clip_rows_backward(const float* x, int64_t rows, int64_t cols, const float* clip_max, const float* clip_min,
                              const float* grad, float* grad_x, float* grad_clip_max, float* grad_clip_min) {
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * cols;
      const float* gr = grad + r * cols;
      float* gx = grad_x + r * cols;
      const Extremes e = row_extremes(xr, cols);
      const float factor_max = sigmoid1(clip_max[r]), factor_min = sigmoid1(clip_min[r]);
      const vf hi = splat(e.hi * factor_max), lo = splat(e.lo * factor_min);
      double grad_lo = 0;
      const double grad_hi = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf v = load_up_to(xr + i, count), g = load_up_to(gr + i, count);
        // Clamp is min(max(x, lo), hi): should the bounds cross, the upper one wins.
        const auto above = vmax(v, lo) > hi;
        const auto below = (v < lo) & ~above;
        const vf through = above | below ? vf{} : g;
        if (count >= VL) store(gx + i, through);
        else store_part(gx + i, through, count);
        return above ? g : vf{};
      });
      grad_lo = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf v = load_up_to(xr + i, count), g = load_up_to(gr + i, count);
        const auto above = vmax(v, lo) > hi;
        return (v < lo) & ~above ? g : vf{};
      });
      spread_over_ties(xr, cols, e.hi, static_cast<float>(grad_hi * factor_max), gx);
      spread_over_ties(xr, cols, e.lo, static_cast<float>(grad_lo * factor_min), gx);
      if (grad_clip_max) grad_clip_max[r] = static_cast<float>(grad_hi * e.hi * factor_max * (1.0 - factor_max));
      if (grad_clip_min) grad_clip_min[r] = static_cast<float>(grad_lo * e.lo * factor_min * (1.0 - factor_min));
    }
  });
  return 0;
}

}  // namespace planish::PL_LEVEL
