// Elementwise maps, broadcasts, sums, the gated MLP product, losses over rows, and the AdamW step.
// Definitions: src/backend/contract/training.ts. All are bound by memory: one pass over the data, rows or chunks over threads.
//
// Sums over more than a row run in fixed chunks added in order, so that they do not depend on the thread count.
#pragma once

#include "quantize.h"

namespace planish::PL_LEVEL {

// Elements per chunk of a flat array: fixed, because partial sums follow it.
constexpr int64_t CHUNK = 16384;

/** f(begin, end) over chunks of [0, length), split over threads at chunk boundaries. */
template <class F>
PL_INLINE void over_chunks(int64_t length, const F& f) {
  const int64_t chunks = (length + CHUNK - 1) / CHUNK;
  parallel_ranges(chunks, 1,
                  [&](int64_t begin, int64_t end) { f(begin * CHUNK, end * CHUNK < length ? end * CHUNK : length); });
}

/** Order of UnaryOp in src/backend/cpu/kernels/elementwise.ts. */
constexpr float SQRT_2_OVER_PI = 0.79788456080286536f;
constexpr float GELU_CUBIC = 0.044715f;

/** erf by the C library, lane by lane: used by gelu only, which no hot path needs. */
static inline vf erfv(vf x) {
  float a[VL];
  std::memcpy(a, &x, sizeof x);
  for (int i = 0; i < VL; ++i) a[i] = std::erf(a[i]);
  return load(a);
}

PL_INLINE vf silu_slope(vf x) {
  const vf s = sigmoidv(x);
  return s * (1.0f + x * (1.0f - s));
}

inline int unary(int32_t op, const float* x, int64_t length, float* out) {
  if (op < 0 || op >= UNARY_OP_COUNT) return fail(PL_BAD_ARGUMENT, "unary: unknown operation %d", op);
  over_chunks(length, [&](int64_t begin, int64_t end) {
    const auto map = [&](auto f) { map_lanes(x + begin, out + begin, end - begin, f); };
    switch (op) {
      case UNARY_OP_SIGMOID: return map([](vf v) { return sigmoidv(v); });
      case UNARY_OP_SILU: return map([](vf v) { return v * sigmoidv(v); });
      case UNARY_OP_RELU: return map([](vf v) { return v > vf{} ? v : vf{}; });
      case UNARY_OP_GELU: return map([](vf v) { return 0.5f * v * (1.0f + erfv(v * 0.70710678118654752f)); });
      case UNARY_OP_GELU_TANH:
        return map([](vf v) { return 0.5f * v * (1.0f + tanhv(SQRT_2_OVER_PI * (v + GELU_CUBIC * v * v * v))); });
      case UNARY_OP_RECIPROCAL: return map([](vf v) { return 1.0f / v; });
      case UNARY_OP_RELU2: return map([](vf v) { return v > vf{} ? v * v : vf{}; });
      default: return map([](vf v) { return -v; });
    }
  });
  return 0;
}

inline int unary_backward(int32_t op, const float* x, int64_t length, const float* grad, float* grad_x) {
  if (op < 0 || op >= UNARY_OP_COUNT) return fail(PL_BAD_ARGUMENT, "unaryBackward: unknown operation %d", op);
  over_chunks(length, [&](int64_t begin, int64_t end) {
    const auto map = [&](auto slope) {
      map_lanes2(x + begin, grad + begin, grad_x + begin, end - begin, [&](vf v, vf g) { return slope(v) * g; });
    };
    switch (op) {
      case UNARY_OP_SIGMOID:
        return map([](vf v) {
          const vf s = sigmoidv(v);
          return s * (1.0f - s);
        });
      case UNARY_OP_SILU: return map([](vf v) { return silu_slope(v); });
      case UNARY_OP_RELU: return map([](vf v) { return v > vf{} ? splat(1.0f) : vf{}; });
      case UNARY_OP_GELU:
        return map([](vf v) {
          return 0.5f * (1.0f + erfv(v * 0.70710678118654752f)) + v * expv(-0.5f * v * v) * 0.39894228040143268f;
        });
      case UNARY_OP_GELU_TANH:
        return map([](vf v) {
          const vf t = tanhv(SQRT_2_OVER_PI * (v + GELU_CUBIC * v * v * v));
          return 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * SQRT_2_OVER_PI * (1.0f + 3.0f * GELU_CUBIC * v * v);
        });
      case UNARY_OP_RECIPROCAL: return map([](vf v) { return -1.0f / (v * v); });
      case UNARY_OP_RELU2: return map([](vf v) { return v > vf{} ? 2.0f * v : vf{}; });
      default: return map([](vf) { return splat(-1.0f); });
    }
  });
  return 0;
}

/** Orders of BinaryOp, of broadcast and of keep in src/backend/cpu/kernels/elementwise.ts. */
template <class F>
PL_INLINE void binary_rows(int64_t rows, int64_t cols, const float* a, const float* b, int32_t broadcast, float* out,
                           F f) {
  if (broadcast == BROADCAST_FULL || broadcast == BROADCAST_SCALAR) {
    over_chunks(rows * cols, [&](int64_t begin, int64_t end) {
      if (broadcast == BROADCAST_FULL) {
        map_lanes2(a + begin, b + begin, out + begin, end - begin, f);
      } else {
        const vf other = splat(b[0]);
        map_lanes(a + begin, out + begin, end - begin, [&](vf v) { return f(v, other); });
      }
    });
    return;
  }
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (broadcast == BROADCAST_ROW) {
        map_lanes2(a + r * cols, b, out + r * cols, cols, f);
      } else {
        const vf other = splat(b[r]);
        map_lanes(a + r * cols, out + r * cols, cols, [&](vf v) { return f(v, other); });
      }
    }
  });
}

inline int binary(int32_t op, int64_t rows, int64_t cols, const float* a, const float* b, int32_t broadcast,
                  float* out) {
  if (broadcast < BROADCAST_FULL || broadcast > BROADCAST_SCALAR)
    return fail(PL_BAD_ARGUMENT, "binary: unknown broadcast %d", broadcast);
  switch (op) {
    case BINARY_OP_ADD: binary_rows(rows, cols, a, b, broadcast, out, [](vf x, vf y) { return x + y; }); return 0;
    case BINARY_OP_SUB: binary_rows(rows, cols, a, b, broadcast, out, [](vf x, vf y) { return x - y; }); return 0;
    case BINARY_OP_MUL: binary_rows(rows, cols, a, b, broadcast, out, [](vf x, vf y) { return x * y; }); return 0;
    default: return fail(PL_BAD_ARGUMENT, "binary: unknown operation %d", op);
  }
}

/** keep: 1 a row of column sums, 2 a column of row sums, 3 one number (BroadcastCode). */
inline int reduce(int64_t rows, int64_t cols, const float* x, const float* y, int32_t keep, double alpha, float* out) {
  if (keep == BROADCAST_COLUMN) {
    parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* const xr = x + r * cols;
        const float* const yr = y ? y + r * cols : nullptr;
        const double sum = sum_row(cols, [&](int64_t i, int64_t count) {
          const vf v = load_up_to(xr + i, count);
          return yr ? v * load_up_to(yr + i, count) : v;
        });
        out[r] = static_cast<float>(alpha * sum);
      }
    });
    return 0;
  }
  if (keep == BROADCAST_SCALAR) {
    const int64_t length = rows * cols, chunks = (length + CHUNK - 1) / CHUNK;
    double* const partial = scratch_of<double>(0, chunks + 1);
    if (!partial) return fail(PL_OUT_OF_MEMORY, "reduce: no memory for %lld partial sums", (long long)chunks);
    parallel_ranges(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const float* const xc = x + c * CHUNK;
        const float* const yc = y ? y + c * CHUNK : nullptr;
        const int64_t count = length - c * CHUNK < CHUNK ? length - c * CHUNK : CHUNK;
        partial[c] = sum_row(count, [&](int64_t i, int64_t n) {
          const vf v = load_up_to(xc + i, n);
          return yc ? v * load_up_to(yc + i, n) : v;
        });
      }
    });
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partial[c];
    out[0] = static_cast<float>(alpha * total);
    return 0;
  }
  if (keep != BROADCAST_ROW) return fail(PL_BAD_ARGUMENT, "reduce: unknown index to keep %d", keep);
  // f32 sums over kFlushRows rows join double totals, per range of rows; ranges are added in order.
  constexpr int64_t flush_rows = 32;
  const int64_t wide = padded(cols);
  int64_t parts = rows / row_grain(cols);
  if (parts > thread_count()) parts = thread_count();
  if (parts < 1) parts = 1;
  double* const totals = scratch_of<double>(0, parts * wide);
  float* const blocks = scratch_of<float>(1, parts * wide);
  if (!totals || !blocks) return fail(PL_OUT_OF_MEMORY, "reduce: no memory for %lld columns", (long long)cols);
  std::memset(totals, 0, static_cast<size_t>(parts * wide) * 8);
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    double* const total = totals + part * wide;
    float* const sum = blocks + part * wide;
    for (int64_t r0 = begin; r0 < end; r0 += flush_rows) {
      std::memset(sum, 0, static_cast<size_t>(wide) * 4);
      const int64_t r1 = r0 + flush_rows < end ? r0 + flush_rows : end;
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t i = 0; i < cols; i += VL) {
          vf v = load_up_to(x + r * cols + i, cols - i);
          if (y) v *= load_up_to(y + r * cols + i, cols - i);
          store(sum + i, load(sum + i) + v);
        }
      }
      for (int64_t i = 0; i < cols; ++i) total[i] += static_cast<double>(sum[i]);
    }
  });
  for (int64_t i = 0; i < cols; ++i) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += totals[part * wide + i];
    out[i] = static_cast<float>(alpha * total);
  }
  return 0;
}

inline int scale(const float* x, int64_t length, float alpha, int32_t accumulate, float* out) {
  over_chunks(length, [&](int64_t begin, int64_t end) {
    if (accumulate)
      map_lanes2(x + begin, out + begin, out + begin, end - begin, [&](vf v, vf o) { return v * alpha + o; });
    else map_lanes(x + begin, out + begin, end - begin, [&](vf v) { return v * alpha; });
  });
  return 0;
}

inline int silu_mul(const float* gate, const float* up, int64_t length, float* out) {
  over_chunks(length, [&](int64_t begin, int64_t end) {
    map_lanes2(gate + begin, up + begin, out + begin, end - begin, [](vf g, vf u) { return g * sigmoidv(g) * u; });
  });
  return 0;
}

inline int silu_mul_backward(const float* gate, const float* up, int64_t length, const float* grad, float* grad_gate,
                             float* grad_up) {
  over_chunks(length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += VL) {
      const int64_t count = end - i;
      const vf g = load_up_to(gate + i, count), u = load_up_to(up + i, count), d = load_up_to(grad + i, count);
      const vf s = sigmoidv(g);
      const vf d_gate = s * (1.0f + g * (1.0f - s)) * u * d, d_up = g * s * d;
      if (count >= VL) {
        store(grad_gate + i, d_gate);
        store(grad_up + i, d_up);
      } else {
        store_part(grad_gate + i, d_gate, count);
        store_part(grad_up + i, d_up, count);
      }
    }
  });
  return 0;
}

inline int mse(const float* a, const float* b, int64_t length, float* loss) {
  const int64_t chunks = (length + CHUNK - 1) / CHUNK;
  double* const partial = scratch_of<double>(0, chunks + 1);
  if (!partial) return fail(PL_OUT_OF_MEMORY, "mse: no memory for %lld partial sums", (long long)chunks);
  parallel_ranges(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t at = c * CHUNK, count = length - at < CHUNK ? length - at : CHUNK;
      partial[c] = sum_row(count, [&](int64_t i, int64_t n) {
        const vf d = load_up_to(a + at + i, n) - load_up_to(b + at + i, n);
        return d * d;
      });
    }
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) total += partial[c];
  *loss = static_cast<float>(total / static_cast<double>(length));
  return 0;
}

/** log Σ exp of a row. */
static inline double log_sum_exp_row(const float* x, int64_t cols) {
  const float top = row_extremes(x, cols).hi;
  const double sum = sum_row(cols, [&](int64_t i, int64_t count) {
    return expv((count >= VL ? load(x + i) : load_part(x + i, count, -INFINITY)) - top);
  });
  return static_cast<double>(top) + std::log(sum);
}

/** Targets must lie in [−1, cols). */
inline int nll(const float* logits, int64_t rows, int64_t cols, const int32_t* targets, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    if (targets[r] < -1 || targets[r] >= cols)
      return fail(PL_BAD_ARGUMENT,
                  "nll: target %d of row %lld is not a token id; give 0 … %lld, or -1 to leave the row out", targets[r],
                  (long long)r, (long long)(cols - 1));
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const row = logits + r * cols;
      out[r] =
          targets[r] < 0 ? 0.0f : static_cast<float>(log_sum_exp_row(row, cols) - static_cast<double>(row[targets[r]]));
    }
  });
  return 0;
}

/** Rows up to this length keep their exponentials between the passes of softmax_kl. */
constexpr int64_t KEPT_ROW = 1 << 16;

inline int softmax_kl(const float* teacher, const float* student, int64_t rows, int64_t cols, float* kl,
                      float* grad_student, float grad_scale) {
  std::atomic<bool> starved{false};
  parallel_ranges(rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    const bool keep = cols <= KEPT_ROW;
    const int64_t wide = padded(cols);
    float* const kept = scratch_of<float>(0, keep ? 2 * wide : 1);
    if (!kept) return starved.store(true, std::memory_order_relaxed);
    for (int64_t r = begin; r < end; ++r) {
      const float* const t = teacher + r * cols;
      const float* const s = student + r * cols;
      float* const g = grad_student ? grad_student + r * cols : nullptr;
      const float top_t = row_extremes(t, cols).hi, top_s = row_extremes(s, cols).hi;
      const auto logits = [](const float* x, int64_t count) {
        return count >= VL ? load(x) : load_part(x, count, -INFINITY);
      };
      const double sum_t = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf e = expv(logits(t + i, count) - top_t);
        if (keep) store(kept + i, e);
        return e;
      });
      const double sum_s = sum_row(cols, [&](int64_t i, int64_t count) {
        const vf e = expv(logits(s + i, count) - top_s);
        if (keep) store(kept + wide + i, e);
        return e;
      });
      const float inverse_t = static_cast<float>(1.0 / sum_t), inverse_s = static_cast<float>(1.0 / sum_s);
      // log p − log q, whose large parts cancel before they are rounded.
      const float shift =
          static_cast<float>(static_cast<double>(top_t) - static_cast<double>(top_s) + std::log(sum_t / sum_s));
      kl[r] = static_cast<float>(sum_row(cols, [&](int64_t i, int64_t count) {
        const vf tv = logits(t + i, count), sv = logits(s + i, count);
        const vf p = (keep ? load(kept + i) : expv(tv - top_t)) * inverse_t;
        if (g) {
          const vf q = (keep ? load(kept + wide + i) : expv(sv - top_s)) * inverse_s;
          const vf d = (q - p) * grad_scale;
          if (count >= VL) store(g + i, d);
          else store_part(g + i, d, count);
        }
        // Where p is 0 the term is 0, even if the difference is not finite.
        return p > vf{} ? p * ((tv - sv) - shift) : vf{};
      }));
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "softmax_kl: no memory for a row of %lld logits", (long long)cols);
  return 0;
}

inline int adam_w(float* param, const float* grad, float* moment1, float* moment2, int64_t length, int64_t step,
                  double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
                  double grad_scale, double bound) {
  const float inverse1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, static_cast<double>(step))));
  const float inverse2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, static_cast<double>(step))));
  const float b1 = static_cast<float>(beta1), c1 = static_cast<float>(1.0 - beta1);
  const float b2 = static_cast<float>(beta2), c2 = static_cast<float>(1.0 - beta2);
  const float rate = static_cast<float>(learning_rate), keep = static_cast<float>(1.0 - learning_rate * weight_decay);
  const float eps = static_cast<float>(epsilon), factor = static_cast<float>(grad_scale),
              limit = static_cast<float>(bound);
  over_chunks(length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += VL) {
      const int64_t count = end - i;
      const vf g = load_up_to(grad + i, count) * factor;
      const vf m = b1 * load_up_to(moment1 + i, count) + c1 * g;
      const vf v = b2 * load_up_to(moment2 + i, count) + c2 * (g * g);
      const vf root = square_root(v * inverse2);
      vf next = load_up_to(param + i, count) * keep - rate * (m * inverse1 / (root + eps));
      // A bound below zero means none.
      if (limit >= 0.0f) next = vmin(vmax(next, splat(-limit)), splat(limit));
      if (count >= VL) {
        store(moment1 + i, m);
        store(moment2 + i, v);
        store(param + i, next);
      } else {
        store_part(moment1 + i, m, count);
        store_part(moment2 + i, v, count);
        store_part(param + i, next, count);
      }
    }
  });
  return 0;
}

}  // namespace planish::PL_LEVEL
