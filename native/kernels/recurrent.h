// Short causal convolutions, and recurrences of matrices: the gated delta rule and the selective scan of Mamba-2, token by
// token, so that a row depends on the rows before it and not on where a sequence was cut. Definitions:
// src/backend/contract/recurrent.ts. States are f32.
#pragma once

#include "norm.h"

namespace planish::PL_LEVEL {

// Channels of a convolution that one task takes.
constexpr int64_t CONV_CHANNELS = 256;

/**
 * `rows` rows of one sequence, `count` channels from `first` on. before: the taps − 1 rows of inputs in front, null for zeros;
 * after: where those in front of the next row go, null for nowhere; may be `before`.
 */
static inline void conv_rows(const float* x, int64_t rows, int64_t channels, int64_t first, int64_t count, int64_t taps,
                             const float* weight, const float* bias, const float* before, float* after, float* turned,
                             float* out) {
  const int64_t past = taps - 1;
  for (int64_t j = 0; j < taps; ++j)
    for (int64_t c = 0; c < count; ++c) turned[j * CONV_CHANNELS + c] = weight[(first + c) * taps + j];
  const auto input = [&](int64_t t) -> const float* {
    if (t >= 0) return x + t * channels + first;
    return before ? before + (past + t) * channels + first : nullptr;
  };
  for (int64_t t = 0; t < rows; ++t) {
    float* const to = out + t * channels + first;
    for (int64_t c = 0; c < count; c += VL) {
      const int64_t left = count - c;
      vf sum = bias ? load_up_to(bias + first + c, left) : vf{};
      for (int64_t j = 0; j < taps; ++j)
        if (const float* const from = input(t + j - past))
          sum = fma(load_up_to(turned + j * CONV_CHANNELS + c, left), load_up_to(from + c, left), sum);
      if (left >= VL) store(to + c, sum);
      else store_part(to + c, sum, left);
    }
  }
  if (!after) return;
  // What is read lies behind what is written.
  for (int64_t i = 0; i < past; ++i) {
    const float* const from = input(rows + i - past);
    float* const to = after + i * channels + first;
    if (from) std::memmove(to, from, static_cast<size_t>(count) * 4);
    else std::memset(to, 0, static_cast<size_t>(count) * 4);
  }
}

/** f(sequence, first channel, channels, room for turned weights) over all blocks of channels of all sequences. */
template <class F>
static inline int over_conv(int64_t sequences, int64_t channels, int64_t taps, const F& f) {
  if (taps < 1) return fail(PL_BAD_ARGUMENT, "convolution: %lld taps; give at least 1", (long long)taps);
  const int64_t blocks = (channels + CONV_CHANNELS - 1) / CONV_CHANNELS;
  std::atomic<bool> starved{false};
  parallel_for(sequences * blocks, [&](int64_t task) {
    float* const turned = scratch_of<float>(4, taps * CONV_CHANNELS + VL);
    if (!turned) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    const int64_t first = task % blocks * CONV_CHANNELS;
    f(task / blocks, first, channels - first < CONV_CHANNELS ? channels - first : CONV_CHANNELS, turned);
  });
  return starved.load() ? fail(PL_OUT_OF_MEMORY, "convolution: no memory for %lld taps", (long long)taps) : 0;
}

inline int causal_conv(int64_t batch, int64_t time, int64_t channels, int64_t taps, const float* x, const float* weight,
                       const float* bias, float* state, float* out) {
  return over_conv(batch, channels, taps, [&](int64_t b, int64_t first, int64_t count, float* turned) {
    const int64_t at = b * time * channels;
    float* const own = state ? state + b * (taps - 1) * channels : nullptr;
    conv_rows(x + at, time, channels, first, count, taps, weight, bias, own, own, turned, out + at);
  });
}

/** The same for chunks of sequences whose states lie `stride` floats apart; one that starts at 0 begins with zeros. */
inline int carry_conv(int64_t chunks, const int32_t* table, const int32_t* slots, int64_t channels, int64_t taps,
                      const float* x, const float* weight, const float* bias, float* state, int64_t stride,
                      float* out) {
  return over_conv(chunks, channels, taps, [&](int64_t i, int64_t first, int64_t count, float* turned) {
    const int32_t* const chunk = table + 4 * i;
    const int64_t at = chunk[0] * channels;
    float* const own = state + slots[i] * stride;
    conv_rows(x + at, chunk[1], channels, first, count, taps, weight, bias, chunk[2] > 0 ? own : nullptr, own, turned,
              out + at);
  });
}

inline int causal_conv_backward(int64_t batch, int64_t time, int64_t channels, int64_t taps, const float* weight,
                                const float* grad, float* grad_x) {
  return over_conv(batch, channels, taps, [&](int64_t b, int64_t first, int64_t count, float* turned) {
    for (int64_t j = 0; j < taps; ++j)
      for (int64_t c = 0; c < count; ++c) turned[j * CONV_CHANNELS + c] = weight[(first + c) * taps + j];
    for (int64_t t = 0; t < time; ++t) {
      float* const to = grad_x + (b * time + t) * channels + first;
      for (int64_t c = 0; c < count; c += VL) {
        const int64_t left = count - c;
        vf sum = vf{};
        for (int64_t j = 0; j < taps; ++j) {
          const int64_t later = t + taps - 1 - j;
          if (later >= time) continue;
          const float* const from = grad + (b * time + later) * channels + first;
          sum = fma(load_up_to(turned + j * CONV_CHANNELS + c, left), load_up_to(from + c, left), sum);
        }
        if (left >= VL) store(to + c, sum);
        else store_part(to + c, sum, left);
      }
    }
  });
}

/** What a recurrence is made of; `epsilon` below zero: queries and keys stay as they are. */
struct Recurrence {
  int64_t heads, key_heads, key_dim, value_dim, width, q_at, k_at, v_at;
  float scale, epsilon, least, most;
  const float *x, *step, *beta, *rate, *bias, *skip;

  int64_t size() const { return key_dim * value_dim; }
  int64_t key_head(int64_t h) const { return h * key_heads / heads; }
};

static inline int check_recurrence(const Recurrence& p) {
  const int64_t keys = p.key_heads * p.key_dim, values = p.heads * p.value_dim;
  if (p.key_heads < 1 || p.heads % p.key_heads != 0)
    return fail(PL_BAD_ARGUMENT, "recurrence: %lld heads cannot share %lld of keys", (long long)p.heads,
                (long long)p.key_heads);
  if (p.q_at < 0 || p.k_at < 0 || p.v_at < 0 || p.q_at + keys > p.width || p.k_at + keys > p.width ||
      p.v_at + values > p.width)
    return fail(PL_BAD_ARGUMENT, "recurrence: rows of %lld channels do not hold its queries, keys and values",
                (long long)p.width);
  return 0;
}

/** A row of a head as the state meets it; scalars in double, as the definition has them. */
struct RecurrentRow {
  float gamma, write, step, slope;
  float q_factor, k_factor;
  const float* v;
};

static inline float inverse_length(const float* x, int64_t n, float epsilon) {
  const double sum = sum_row(n, [&](int64_t i, int64_t count) {
    const vf v = load_up_to(x + i, count);
    return v * v;
  });
  return static_cast<float>(1.0 / std::sqrt(sum + static_cast<double>(epsilon)));
}

/** q and k: rooms for the head's query and key, normed and scaled. */
static inline RecurrentRow recurrent_row(const Recurrence& p, int64_t row, int64_t h, float* q, float* k) {
  RecurrentRow r;
  const double raw = static_cast<double>(p.step[row * p.heads + h]) + static_cast<double>(p.bias[h]);
  const double open = raw > 30.0 ? raw : std::log1p(std::exp(raw));
  const double least = static_cast<double>(p.least), most = static_cast<double>(p.most);
  const double step = open < least ? least : open > most ? most : open;
  r.step = static_cast<float>(step);
  r.slope = step == open ? static_cast<float>(1.0 / (1.0 + std::exp(-raw))) : 0.0f;
  r.gamma = static_cast<float>(std::exp(-std::exp(static_cast<double>(p.rate[h])) * step));
  r.write = p.beta ? sigmoid1(p.beta[row * p.heads + h]) : r.step;
  const float* const x = p.x + row * p.width;
  const float *const from_q = x + p.q_at + p.key_head(h) * p.key_dim, *const from_k =
                                                                          x + p.k_at + p.key_head(h) * p.key_dim;
  const bool normed = p.epsilon >= 0.0f;
  r.q_factor = normed ? inverse_length(from_q, p.key_dim, p.epsilon) * p.scale : p.scale;
  r.k_factor = normed ? inverse_length(from_k, p.key_dim, p.epsilon) : 1.0f;
  map_lanes(from_q, q, p.key_dim, [&](vf v) { return v * r.q_factor; });
  map_lanes(from_k, k, p.key_dim, [&](vf v) { return v * r.k_factor; });
  r.v = x + p.v_at + h * p.value_dim;
  return r;
}

/**
 * N vectors of columns of a state through one row: decay, what is written, and what the query reads. u, decayed and out may
 * be null. `count`: columns that are there, of the last vector.
 */
template <int N, bool DELTA>
PL_INLINE void recurrent_columns(const Recurrence& p, const RecurrentRow& r, int64_t h, const float* q, const float* k,
                                 int64_t j, int64_t count, float* s, float* u, float* decayed, float* out) {
  const int64_t n = p.value_dim;
  const vf gamma = splat(r.gamma), write = splat(r.write);
  const auto get = [&](const float* from, int v) {
    return N == 1 ? load_up_to(from + j, count) : load(from + j + v * VL);
  };
  const auto put = [&](float* to, int v, vf value) {
    if (N == 1 && count < VL) store_part(to + j, value, count);
    else store(to + j + v * VL, value);
  };
  vf written[N], sum[N];
  for (int v = 0; v < N; ++v) sum[v] = vf{};
  if (DELTA)
    for (int64_t i = 0; i < p.key_dim; ++i) {
      const vf key = splat(k[i]);
      for (int v = 0; v < N; ++v) sum[v] = fma(gamma * get(s + i * n, v), key, sum[v]);
    }
  for (int v = 0; v < N; ++v) {
    written[v] = write * (DELTA ? get(r.v, v) - sum[v] : get(r.v, v));
    if (u) put(u, v, written[v]);
    sum[v] = vf{};
  }
  for (int64_t i = 0; i < p.key_dim; ++i) {
    const vf key = splat(k[i]), query = splat(q[i]);
    for (int v = 0; v < N; ++v) {
      const vf old = gamma * get(s + i * n, v);
      if (decayed) put(decayed + i * n, v, old);
      const vf next = fma(key, written[v], old);
      put(s + i * n, v, next);
      sum[v] = fma(next, query, sum[v]);
    }
  }
  if (!out) return;
  const vf skip = splat(p.skip ? p.skip[h] : 0.0f);
  for (int v = 0; v < N; ++v) put(out, v, p.skip ? fma(skip, get(r.v, v), sum[v]) : sum[v]);
}

template <bool DELTA>
static inline void recurrent_state(const Recurrence& p, const RecurrentRow& r, int64_t h, const float* q,
                                   const float* k, float* s, float* u, float* decayed, float* out) {
  const int64_t n = p.value_dim;
  int64_t j = 0;
  for (; j + 4 * VL <= n; j += 4 * VL) recurrent_columns<4, DELTA>(p, r, h, q, k, j, VL, s, u, decayed, out);
  for (; j < n; j += VL) recurrent_columns<1, DELTA>(p, r, h, q, k, j, n - j, s, u, decayed, out);
}

static inline void recurrent_step(const Recurrence& p, const RecurrentRow& r, int64_t h, const float* q, const float* k,
                                  float* s, float* u, float* decayed, float* out) {
  if (p.beta) recurrent_state<true>(p, r, h, q, k, s, u, decayed, out);
  else recurrent_state<false>(p, r, h, q, k, s, u, decayed, out);
}

/** f(sequence, head, room for a query and a key, room for a state). */
template <class F>
static inline int over_heads(const Recurrence& p, int64_t sequences, const F& f) {
  if (const int code = check_recurrence(p)) return code;
  std::atomic<bool> starved{false};
  const int64_t wide = padded(p.key_dim);
  parallel_for_dynamic(sequences * p.heads, [&](int64_t task) {
    float* const room = scratch_of<float>(4, 2 * wide + p.size() + VL);
    if (!room) starved.store(true, std::memory_order_relaxed);
    else f(task / p.heads, task % p.heads, room, room + wide, room + 2 * wide);
  });
  return starved.load() ? fail(PL_OUT_OF_MEMORY, "recurrence: no memory for a state") : 0;
}

inline int recurrence(int64_t batch, int64_t time, int64_t heads, int64_t key_heads, int64_t key_dim, int64_t value_dim,
                      int64_t width, int64_t q_at, int64_t k_at, int64_t v_at, float scale, float epsilon, float least,
                      float most, const float* x, const float* step, const float* beta, const float* rate,
                      const float* bias, const float* skip, float* state, float* out) {
  const Recurrence p{heads,   key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale,
                     epsilon, least,     most,    x,         step,  beta, rate, bias, skip};
  return over_heads(p, batch, [&](int64_t b, int64_t h, float* q, float* k, float* own) {
    float* s = own;
    if (state) s = state + (b * heads + h) * p.size();
    else std::memset(s, 0, static_cast<size_t>(p.size()) * 4);
    for (int64_t row = b * time; row < (b + 1) * time; ++row) {
      const RecurrentRow r = recurrent_row(p, row, h, q, k);
      recurrent_step(p, r, h, q, k, s, nullptr, nullptr, out + (row * heads + h) * value_dim);
    }
  });
}

/** The same for chunks of sequences whose states lie `stride` floats apart; one that starts at 0 begins with zeros. */
inline int carry_recurrence(int64_t chunks, const int32_t* table, const int32_t* slots, int64_t heads,
                            int64_t key_heads, int64_t key_dim, int64_t value_dim, int64_t width, int64_t q_at,
                            int64_t k_at, int64_t v_at, float scale, float epsilon, float least, float most,
                            const float* x, const float* step, const float* beta, const float* rate, const float* bias,
                            const float* skip, float* state, int64_t stride, float* out) {
  const Recurrence p{heads,   key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale,
                     epsilon, least,     most,    x,         step,  beta, rate, bias, skip};
  return over_heads(p, chunks, [&](int64_t i, int64_t h, float* q, float* k, float*) {
    const int32_t* const chunk = table + 4 * i;
    float* const s = state + slots[i] * stride + h * p.size();
    if (chunk[2] == 0) std::memset(s, 0, static_cast<size_t>(p.size()) * 4);
    for (int64_t row = chunk[0]; row < chunk[0] + chunk[1]; ++row) {
      const RecurrentRow r = recurrent_row(p, row, h, q, k);
      recurrent_step(p, r, h, q, k, s, nullptr, nullptr, out + (row * heads + h) * value_dim);
    }
  });
}

PL_INLINE float dot(const float* a, const float* b, int64_t n) {
  vf sum = vf{};
  for (int64_t i = 0; i < n; i += VL) sum = fma(load_up_to(a + i, n - i), load_up_to(b + i, n - i), sum);
  return sum_lanes(sum);
}
/** to += factor·from. */
PL_INLINE void add_scaled(float* to, const float* from, float factor, int64_t n) {
  const vf f = splat(factor);
  map_lanes2(to, from, to, n, [&](vf a, vf b) { return fma(f, b, a); });
}

/** Adds the gradient of factor·x, or of x·scale/√(Σx² + ε) where `normed`, from that of its value. */
static inline void add_through_norm(float* to, const float* grad, const float* value, int64_t n, float factor,
                                    float scale, bool normed) {
  const float along = normed ? dot(grad, value, n) / (scale * scale) : 0.0f;
  for (int64_t i = 0; i < n; ++i) to[i] += factor * (grad[i] - value[i] * along);
}

// Rows whose states the backward pass holds at once; it begins anew from a state kept for every so many rows.
constexpr int64_t RECURRENT_SEGMENT = 32;

/** One head of one sequence, back from its last row; `room`: see recurrence_backward. Columns of gradients are added to. */
static inline void head_backward(const Recurrence& p, int64_t b, int64_t time, int64_t h, const float* grad,
                                 float* grad_x, float* grad_step, float* grad_beta, float* room) {
  const int64_t n = p.value_dim, m = p.key_dim, size = p.size();
  const int64_t wide_m = padded(m), wide_n = padded(n), segment = RECURRENT_SEGMENT;
  const auto take = [&](int64_t count) {
    float* const at = room;
    room += count;
    return at;
  };
  float *const kept = take((time + segment - 1) / segment * size), *const decayed = take(segment * size);
  float *const state = take(size), *const d = take(size), *const us = take(segment * wide_n);
  float *const qs = take(segment * wide_m), *const ks = take(segment * wide_m);
  float *const dq = take(wide_m), *const dk = take(wide_m), *const e = take(wide_n), *const read = take(wide_n);
  const size_t bytes = static_cast<size_t>(size) * 4;
  std::memset(state, 0, bytes);
  std::memset(d, 0, bytes);
  for (int64_t t = 0; t < time; ++t) {
    if (t % segment == 0) std::memcpy(kept + t / segment * size, state, bytes);
    const RecurrentRow r = recurrent_row(p, b * time + t, h, qs, ks);
    recurrent_step(p, r, h, qs, ks, state, nullptr, nullptr, nullptr);
  }
  RecurrentRow rows[RECURRENT_SEGMENT];
  for (int64_t part = (time - 1) / segment; part >= 0; --part) {
    const int64_t begin = part * segment, count = time - begin < segment ? time - begin : segment;
    std::memcpy(state, kept + part * size, bytes);
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = recurrent_row(p, b * time + begin + i, h, qs + i * wide_m, ks + i * wide_m);
      recurrent_step(p, rows[i], h, qs + i * wide_m, ks + i * wide_m, state, us + i * wide_n, decayed + i * size,
                     nullptr);
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      const RecurrentRow& r = rows[i];
      const int64_t row = b * time + begin + i;
      const float *const g = grad + (row * p.heads + h) * n, *const s = decayed + i * size;
      const float *const u = us + i * wide_n, *const q = qs + i * wide_m, *const k = ks + i * wide_m;
      const float through = dot(u, g, n);
      std::memset(e, 0, static_cast<size_t>(n) * 4);
      std::memset(read, 0, static_cast<size_t>(n) * 4);
      for (int64_t a = 0; a < m; ++a) {
        float* const da = d + a * n;
        add_scaled(da, g, q[a], n);
        dq[a] = dot(s + a * n, g, n) + k[a] * through;
        dk[a] = dot(da, u, n);
        add_scaled(e, da, k[a], n);
        if (p.beta) add_scaled(read, s + a * n, k[a], n);
      }
      float* const gx = grad_x + row * p.width;
      float* const gv = gx + p.v_at + h * n;
      add_scaled(gv, e, r.write, n);
      if (p.skip) add_scaled(gv, g, p.skip[h], n);
      float of_step = 0.0f;
      if (!p.beta) {
        of_step = dot(e, r.v, n);
      } else {
        const float of_beta = dot(e, r.v, n) - dot(e, read, n);
        if (grad_beta) grad_beta[row * p.heads + h] = of_beta * r.write * (1.0f - r.write);
        for (int64_t a = 0; a < m; ++a) {
          dk[a] -= r.write * dot(s + a * n, e, n);
          add_scaled(d + a * n, e, -r.write * k[a], n);
        }
      }
      float of_log = 0.0f;
      for (int64_t a = 0; a < m; ++a) {
        of_log += dot(d + a * n, s + a * n, n);
        map_lanes(d + a * n, d + a * n, n, [&](vf v) { return v * r.gamma; });
      }
      grad_step[row * p.heads + h] = (of_step - std::exp(p.rate[h]) * of_log) * r.slope;
      const bool normed = p.epsilon >= 0.0f;
      const int64_t column = p.key_head(h) * m;
      add_through_norm(gx + p.q_at + column, dq, q, m, r.q_factor, p.scale, normed);
      add_through_norm(gx + p.k_at + column, dk, k, m, r.k_factor, 1.0f, normed);
    }
  }
}

/** A task takes the heads that share a head of keys, one after the other, since their gradients add up. */
inline int recurrence_backward(int64_t batch, int64_t time, int64_t heads, int64_t key_heads, int64_t key_dim,
                               int64_t value_dim, int64_t width, int64_t q_at, int64_t k_at, int64_t v_at, float scale,
                               float epsilon, float least, float most, const float* x, const float* step,
                               const float* beta, const float* rate, const float* bias, const float* skip,
                               const float* grad, float* grad_x, float* grad_step, float* grad_beta) {
  const Recurrence p{heads,   key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale,
                     epsilon, least,     most,    x,         step,  beta, rate, bias, skip};
  if (const int code = check_recurrence(p)) return code;
  std::memset(grad_x, 0, static_cast<size_t>(batch * time * width) * 4);
  const int64_t segment = RECURRENT_SEGMENT, states = (time + segment - 1) / segment + segment + 2;
  const int64_t room = states * p.size() + (2 * segment + 2) * padded(key_dim) + (segment + 2) * padded(value_dim) + VL;
  std::atomic<bool> starved{false};
  parallel_for_dynamic(batch * key_heads, [&](int64_t task) {
    float* const own = scratch_of<float>(4, room);
    if (!own) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    const int64_t shared = heads / key_heads, first = task % key_heads * shared;
    for (int64_t h = first; h < first + shared; ++h)
      head_backward(p, task / key_heads, time, h, grad, grad_x, grad_step, grad_beta, own);
  });
  return starved.load() ? fail(PL_OUT_OF_MEMORY, "recurrence_backward: no memory for %lld states", (long long)states)
                        : 0;
}

}  // namespace planish::PL_LEVEL
