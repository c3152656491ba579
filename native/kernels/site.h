// One pass per row from what a block holds to what its linears read: norm or MLP activation, the Kronecker transform,
// a scale per token after clipping, rounding, codes. Source: docs/methods.md, Sites and Grids.
//
// The arithmetic is that of `norm`, `unary`, `silu_mul`, `kronecker` and `quantize_rows`, statement by statement, so that
// codes equal the simulated model's bit for bit. A block of rows stays in L2 from its input to its codes.
#pragma once

#include "elementwise.h"
#include "kronecker.h"
#include "norm.h"
#include "quantize.h"

namespace planish::PL_LEVEL {

/** `count` rows of the site's input, before its transform. */
static inline void site_input(int32_t input, int32_t op, const float* x, const float* x2, int64_t count, int64_t width,
                              const float* gain, const float* bias, float epsilon, float alpha, float limit,
                              float* out) {
  const int64_t length = count * width;
  switch (input) {
    case SITE_INPUT_RMS:
    case SITE_INPUT_LAYER:
      norm(input == SITE_INPUT_LAYER ? NORM_KIND_LAYER : 0, x, count, 1, width, gain, bias, epsilon, out);
      return;
    case SITE_INPUT_ACTIVATION: unary(op, x, length, out); return;
    case SITE_INPUT_GATED:
      if (op == UNARY_OP_SILU) {
        silu_mul(x, x2, length, out);
      } else {
        unary(op, x, length, out);
        map_lanes2(out, x2, out, length, [](vf a, vf b) { return a * b; });
      }
      return;
    case SITE_INPUT_CLAMPED: {
      const vf slope = splat(alpha), top = splat(limit), bottom = splat(-limit);
      map_lanes2(x, x2, out, length, [&](vf a, vf b) {
        const vf gate = vmin(a, top);
        return (vmin(vmax(b, bottom), top) + 1.0f) * (gate * sigmoidv(slope * gate));
      });
      return;
    }
    default: std::memcpy(out, x, static_cast<size_t>(length) * 4);
  }
}

/** Codes of one row with its extremes known, as quantize_rows writes them; returns the scale. */
PL_INLINE float quantize_row(const float* x, int64_t cols, Extremes e, float factor_max, float factor_min, float qmax,
                             int8_t* codes) {
  const float hi = e.hi > 0.0f ? e.hi : 0.0f, lo = e.lo < 0.0f ? e.lo : 0.0f;
  const float top = hi * factor_max, low = -(lo * factor_min);
  const float s = floored_scale((top > low ? top : low) / qmax, 0.0f);
  const vf sv = splat(s), most = splat(qmax), least = splat(-qmax - 1.0f);
  for (int64_t i = codes_by_reciprocal(x, cols, s, qmax, codes); i < cols; i += VL) {
    const int64_t count = cols - i;
    store_codes_up_to(codes + i, round_even(vmin(vmax(load_up_to(x + i, count) / sv, least), most)), count);
  }
  return s;
}

/**
 * Codes of a group with an offset, on the grid of fake_quantize_offset: of each half of the group's range a clip keeps its
 * share. Codes are held to the middle of their range, so that they are signed; returns the scale, and what a code of 0 is.
 */
PL_INLINE float quantize_offset(const float* x, int64_t cols, Extremes e, float factor_max, float factor_min,
                                float levels, int8_t* codes, float* offset) {
  const float half = (e.hi - e.lo) * 0.5f;
  const float hi = e.hi - half * (1.0f - factor_max), lo = e.lo + half * (1.0f - factor_min);
  const float range = (hi - lo) / levels, s = range > 0.0f ? range : 1.0f;
  const float middle = (levels + 1.0f) * 0.5f;
  const vf sv = splat(s), low = splat(lo), shift = splat(middle), top = splat(levels);
  for (int64_t i = 0; i < cols; i += VL) {
    const int64_t count = cols - i;
    const vf q = vmin(vmax(round_even((load_up_to(x + i, count) - low) / sv), vf{}), top);
    store_codes_up_to(codes + i, q - shift, count);
  }
  *offset = lo + middle * s;
  return s;
}

/**
 * x (and x2): [rows, n_left·n_right]. left, right: null for none. bits below 16: `sets` sets of codes [sets][capacity, width]
 * and scales [sets][capacity, width / span] with capacity ≥ rows, one for each pair of clipping logits in `clips` [sets][2]
 * (+∞ clips nothing); a scale stands for `span` neighbouring channels. offset, where not null: as `scale`, and codes have an
 * offset. 16 bits: the transformed rows go to `out`.
 */
inline int site(int32_t input, int32_t op, const float* x, const float* x2, int64_t rows, int64_t n_left,
                int64_t n_right, const float* gain, const float* bias, float epsilon, const float* left,
                const float* right, int32_t bits, int64_t span, int64_t sets, int64_t capacity, const float* clips,
                int8_t* codes, float* scale, float* offset, float* out, float alpha, float limit) {
  if (input < SITE_INPUT_PLAIN || input >= SITE_INPUT_COUNT)
    return fail(PL_BAD_ARGUMENT, "site: unknown input %d", input);
  if ((input == SITE_INPUT_ACTIVATION || input == SITE_INPUT_GATED) && (op < 0 || op >= UNARY_OP_COUNT))
    return fail(PL_BAD_ARGUMENT, "site: unknown operation %d", op);
  if (bits < 2 || (bits > 8 && bits != 16))
    return fail(PL_BAD_ARGUMENT, "site: activations of %d bits; give 2 … 8, or 16", bits);
  const int64_t width = n_left * n_right, ld = padded(n_right);
  if (bits < 16 && (span < 1 || width % span != 0))
    return fail(PL_BAD_ARGUMENT, "site: a scale for %lld channels of %lld", (long long)span, (long long)width);
  float* const right_space = right ? scratch_of<float>(4, n_right * ld) : nullptr;
  if (right && !right_space)
    return fail(PL_OUT_OF_MEMORY, "site: no memory for a %lld-wide factor", (long long)n_right);
  const float* const right_rows = right ? padded_factor(right, n_right, false, right_space) : nullptr;
  const bool transforms = left || right;
  const float qmax = static_cast<float>((1 << (bits - 1)) - 1);
  const float levels = static_cast<float>((1 << bits) - 1);
  const int64_t spans = bits < 16 ? width / span : 0;
  constexpr int64_t MOST_SETS = 8;
  if (bits < 16 && sets > MOST_SETS)
    return fail(PL_BAD_ARGUMENT, "site: %lld sets of codes; at most %d", (long long)sets, int{MOST_SETS});
  float factors[2 * MOST_SETS] = {};
  if (bits < 16)
    for (int64_t i = 0; i < 2 * sets; ++i) factors[i] = sigmoid1(clips[i]);
  const int64_t block = kronecker_block(width);
  std::atomic<bool> starved{false};
  parallel_ranges(rows, block, [&](int64_t begin, int64_t end) {
    float* const entering = scratch_of<float>(5, block * (2 * width + (transforms ? n_left * ld : 0)) + VL);
    if (!entering) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const leaving = entering + block * width;
    float* const work = leaving + block * width;
    if (transforms && ld != n_right) std::memset(work, 0, static_cast<size_t>(block * n_left * ld) * 4);
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* values = x + r0 * width;
      if (input != SITE_INPUT_PLAIN) {
        site_input(input, op, values, x2 ? x2 + r0 * width : nullptr, count, width, gain, bias, epsilon, alpha, limit,
                   entering);
        values = entering;
      }
      if (bits == 16) {
        transform_rows(values, count, n_left, n_right, left, right_rows, work, out + r0 * width);
        continue;
      }
      if (transforms) {
        transform_rows(values, count, n_left, n_right, left, right_rows, work, leaving);
        values = leaving;
      }
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t g = 0; g < spans; ++g) {
          const float* const group = values + r * width + g * span;
          const Extremes e = row_extremes(group, span);
          for (int64_t set = 0; set < sets; ++set) {
            const float factor_max = factors[2 * set], factor_min = factors[2 * set + 1];
            const int64_t at = (set * capacity + r0 + r) * spans + g;
            int8_t* const to = codes + at * span;
            scale[at] = offset ? quantize_offset(group, span, e, factor_max, factor_min, levels, to, offset + at)
                               : quantize_row(group, span, e, factor_max, factor_min, qmax, to);
          }
        }
      }
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "site: no memory for a block of rows");
  return 0;
}

}  // namespace planish::PL_LEVEL
