// RMS and layer normalization of rows, rotary embedding, and row lookup.
// Sources: Zhang & Sennrich 2019; Ba, Kiros & Hinton 2016; Su et al. 2021. Definitions: src/backend/contract/training.ts.
#pragma once

#include "quantize.h"

namespace planish::PL_LEVEL {

struct Moments {
  float mean, inverse;
};

PL_INLINE Moments row_moments(int32_t kind, const float* x, int64_t cols, float epsilon) {
  double mean = 0;
  if (kind == NORM_KIND_LAYER)
    mean =
        sum_row(cols, [&](int64_t i, int64_t count) { return load_up_to(x + i, count); }) / static_cast<double>(cols);
  const float m = static_cast<float>(mean);
  const double square = sum_row(cols, [&](int64_t i, int64_t count) {
    vf centred = (count >= VL ? load(x + i) : load_part(x + i, count, m)) - m;
    return centred * centred;
  });
  return {m, static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(cols) + static_cast<double>(epsilon)))};
}

static inline void norm_row(int32_t kind, const float* x, int64_t cols, const float* gain, const float* bias,
                            float epsilon, float* out) {
  const Moments m = row_moments(kind, x, cols, epsilon);
  for (int64_t i = 0; i < cols; i += VL) {
    const int64_t count = cols - i;
    vf v = (load_up_to(x + i, count) - m.mean) * m.inverse * load_up_to(gain + i, count);
    if (bias) v += load_up_to(bias + i, count);
    if (count >= VL) store(out + i, v);
    else store_part(out + i, v, count);
  }
}

inline int norm(int32_t kind, const float* x, int64_t rows, int64_t groups, int64_t cols, const float* gain,
                const float* bias, float epsilon, float* out) {
  parallel_ranges(rows * groups, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) norm_row(kind, x + r * cols, cols, gain, bias, epsilon, out + r * cols);
  });
  return 0;
}

/** The same where each group has a gain of its own, or `gains` is 1. */
inline int grouped_norm(int32_t kind, const float* x, int64_t rows, int64_t groups, int64_t cols, const float* gain,
                        int64_t gains, float epsilon, float* out) {
  if (gains != 1 && gains != groups)
    return fail(PL_BAD_ARGUMENT, "groupedNorm: %lld gains for %lld groups", (long long)gains, (long long)groups);
  parallel_ranges(rows, row_grain(groups * cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * groups; i < end * groups; ++i)
      norm_row(kind, x + i * cols, cols, gain + i % gains * cols, nullptr, epsilon, out + i * cols);
  });
  return 0;
}

// Rows whose f32 sums are gathered before they join the double totals of grad_gain and grad_bias.
constexpr int64_t FLUSH_ROWS = 32;

inline int norm_backward(int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain, float epsilon,
                         const float* grad, float* grad_x, float* grad_gain, float* grad_bias) {
  const int64_t wide = padded(cols);
  int64_t parts = rows / row_grain(cols);
  if (parts > thread_count()) parts = thread_count();
  if (parts < 1) parts = 1;
  double* const totals = scratch_of<double>(0, parts * 2 * wide);
  float* const blocks = scratch_of<float>(1, parts * 2 * wide);
  if (!totals || !blocks) return fail(PL_OUT_OF_MEMORY, "norm_backward: no memory for %lld columns", (long long)cols);
  std::memset(totals, 0, static_cast<size_t>(parts * 2 * wide) * 8);
  std::memset(blocks, 0, static_cast<size_t>(parts * 2 * wide) * 4);
  const bool sums = grad_gain || grad_bias;
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* const gain_sum = blocks + part * 2 * wide;
    float* const bias_sum = gain_sum + wide;
    double* const gain_total = totals + part * 2 * wide;
    const auto flush = [&] {
      for (int64_t i = 0; i < 2 * wide; ++i) {
        gain_total[i] += static_cast<double>(gain_sum[i]);
        gain_sum[i] = 0.0f;
      }
    };
    for (int64_t r = begin; r < end; ++r) {
      const float* const xr = x + r * cols;
      const float* const gr = grad + r * cols;
      const Moments m = row_moments(kind, xr, cols, epsilon);
      vf sum_d = vf{}, sum_dn = vf{};
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        const vf g = load_up_to(gr + i, count);
        const vf n = (load_up_to(xr + i, count) - m.mean) * m.inverse;
        const vf d = g * load_up_to(gain + i, count);
        const vf gn = g * n;
        sum_d += d;
        sum_dn += d * n;
        if (sums) {
          store(gain_sum + i, load(gain_sum + i) + gn);
          store(bias_sum + i, load(bias_sum + i) + g);
        }
      }
      if (sums && (r - begin) % FLUSH_ROWS == FLUSH_ROWS - 1) flush();
      if (!grad_x) continue;
      const float mean_dn = sum_lanes(sum_dn) / static_cast<float>(cols);
      const float mean_d = kind == NORM_KIND_LAYER ? sum_lanes(sum_d) / static_cast<float>(cols) : 0.0f;
      float* const o = grad_x + r * cols;
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        const vf n = (load_up_to(xr + i, count) - m.mean) * m.inverse;
        const vf d = load_up_to(gr + i, count) * load_up_to(gain + i, count);
        const vf v = m.inverse * (d - n * mean_dn - mean_d);
        if (count >= VL) store(o + i, v);
        else store_part(o + i, v, count);
      }
    }
    if (sums) flush();
  });
  for (int64_t i = 0; i < cols; ++i) {
    double gain_total = 0, bias_total = 0;
    for (int64_t part = 0; part < parts; ++part) {
      gain_total += totals[part * 2 * wide + i];
      bias_total += totals[part * 2 * wide + wide + i];
    }
    if (grad_gain) grad_gain[i] = static_cast<float>(gain_total);
    if (grad_bias) grad_bias[i] = static_cast<float>(bias_total);
  }
  return 0;
}

inline int rope(const float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t period, const float* cosine,
                const float* sine, int32_t inverse, float* out) {
  const int64_t half = head_dim / 2;
  const float sign = inverse ? -1.0f : 1.0f;
  parallel_ranges(rows, row_grain(heads * head_dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const c = cosine + r % period * half;
      const float* const s = sine + r % period * half;
      for (int64_t h = 0; h < heads; ++h) {
        const float* const xr = x + (r * heads + h) * head_dim;
        float* const o = out + (r * heads + h) * head_dim;
        for (int64_t i = 0; i < half; i += VL) {
          const int64_t count = half - i;
          const vf cv = load_up_to(c + i, count), sv = load_up_to(s + i, count) * sign;
          // Both halves are read before either is written: out may be x.
          const vf a = load_up_to(xr + i, count), b = load_up_to(xr + half + i, count);
          const vf first = a * cv - b * sv, second = b * cv + a * sv;
          if (count >= VL) {
            store(o + i, first);
            store(o + half + i, second);
          } else {
            store_part(o + i, first, count);
            store_part(o + half + i, second, count);
          }
        }
      }
    }
  });
  return 0;
}

/** Every id must lie in [0, table_rows). */
inline int gather_rows(const float* table, int64_t table_rows, int64_t cols, const int32_t* ids, int64_t rows,
                       float* out) {
  for (int64_t r = 0; r < rows; ++r)
    if (ids[r] < 0 || ids[r] >= table_rows)
      return fail(PL_BAD_ARGUMENT, "gatherRows: id %d of row %lld is not in the table; give 0 … %lld", ids[r],
                  (long long)r, (long long)(table_rows - 1));
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(out + r * cols, table + ids[r] * cols, static_cast<size_t>(cols) * 4);
  });
  return 0;
}

/**
 * Heads made of parts: channel c of head h is channel order[c] of what lies side by side in the parts: a_dim channels of `a`,
 * then b_dim of `b` (which may be null), each of head h, or of their only head. Below zero: 0.
 */
inline int arrange(const float* a, int64_t a_heads, int64_t a_dim, const float* b, int64_t b_heads, int64_t b_dim,
                   int64_t rows, int64_t heads, int64_t head_dim, const int32_t* order, float* out) {
  parallel_ranges(rows, row_grain(heads * head_dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t h = 0; h < heads; ++h) {
        const float* const first = a + (r * a_heads + (a_heads > 1 ? h : 0)) * a_dim;
        const float* const second = b ? b + (r * b_heads + (b_heads > 1 ? h : 0)) * b_dim : nullptr;
        float* const to = out + (r * heads + h) * head_dim;
        for (int64_t c = 0; c < head_dim; ++c) {
          const int64_t from = order[c];
          to[c] = from < 0 ? 0.0f : from < a_dim ? first[from] : second[from - a_dim];
        }
      }
  });
  return 0;
}

/** `cols` columns of rows `x_stride` apart into rows `out_stride` apart; the two do not overlap. */
inline int columns(const float* x, int64_t rows, int64_t cols, int64_t x_stride, float* out, int64_t out_stride) {
  parallel_ranges(rows, 16384 / (cols + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(out + r * out_stride, x + r * x_stride, static_cast<size_t>(cols) * 4);
  });
  return 0;
}

}  // namespace planish::PL_LEVEL
