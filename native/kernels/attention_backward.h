// Gradient of attention from the saved log_sum_exp. Source: Dao et al. 2022 (FlashAttention), algorithm 4.
//
// One task per (batch, KV head, share of the key blocks). A task owns its keys' gradients and walks the group's heads
// and the queries that see each key block, so every sum has one order. When there are fewer KV heads than the threads
// need, the key blocks are dealt to several shares, whose query gradients are added up afterwards, in order.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "attention_tiles.h"

namespace planish::PL_LEVEL {

constexpr int64_t BACKWARD_QUERY_BLOCK = 64;
// Copies of grad_q that shares may ask for.
constexpr int64_t MOST_SHARES = 8;

/**
 * Tiles of one backward task, in one block of scratch. Products read weights and score gradients in two ways: by rows of
 * queries (for dQ) and with the queries along the depth (for dK, dV). In f32 one tile serves both.
 */
template <class T>
struct BackwardTiles {
  static constexpr bool paired = !std::is_same<T, float>::value;
  T *keys, *keys_t, *values_t, *space;  // key block: for dQ; for the scores; for dP
  float *grad_k, *grad_v;
  T *queries, *grads, *queries_depth, *grads_depth;         // query block: A side; B side
  float *weights, *grad_scores;                             // products of one strip in f32
  T *weights_depth, *grad_scores_depth, *grad_scores_rows;  // the same, ready for products

  static int64_t words(int64_t head_dim, int64_t dim) {
    return 3 * KEY_BLOCK * dim + 3 * head_dim * KEY_BLOCK + 4 * BACKWARD_QUERY_BLOCK * dim +
           5 * BACKWARD_QUERY_BLOCK * KEY_BLOCK;
  }
  BackwardTiles(float* p, int64_t head_dim, int64_t dim) {
    const auto take = [&p](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(p);
      p += count;
    };
    const int64_t query_tile = BACKWARD_QUERY_BLOCK * dim, score_tile = BACKWARD_QUERY_BLOCK * KEY_BLOCK;
    take(keys, KEY_BLOCK * dim);
    take(grad_k, KEY_BLOCK * dim);
    take(grad_v, KEY_BLOCK * dim);
    take(keys_t, head_dim * KEY_BLOCK);
    take(values_t, head_dim * KEY_BLOCK);
    take(space, head_dim * KEY_BLOCK);
    take(queries, query_tile);
    take(grads, query_tile);
    take(weights, score_tile);
    take(grad_scores, score_tile);
    if (paired) {
      take(queries_depth, query_tile);
      take(grads_depth, query_tile);
      take(weights_depth, score_tile);
      take(grad_scores_depth, score_tile);
      take(grad_scores_rows, score_tile);
    } else {
      queries_depth = queries;
      grads_depth = grads;
      weights_depth = reinterpret_cast<T*>(weights);
      grad_scores_depth = grad_scores_rows = reinterpret_cast<T*>(grad_scores);
    }
  }
};

/**
 * From scores and dP of one query: weights p = exp(scale·s − lse) and score gradients p·(dP − delta)·scale, in place. A soft
 * cap acts on scale·s, and multiplies the gradient by its slope.
 */
PL_INLINE void gradient_row(float* w, float* ds, int64_t wide, float scale, float softcap, float lse, float delta) {
  if (softcap > 0.0f) {
    for (int64_t i = 0; i < wide; i += VL) {
      const vf t = tanhv(load(w + i) * (scale / softcap));
      const vf p = exp_negative(softcap * t - lse);
      store(w + i, p);
      store(ds + i, p * (load(ds + i) - delta) * (1.0f - t * t) * scale);
    }
    return;
  }
  for (int64_t i = 0; i < wide; i += VL) {
    const vf p = exp_negative(fma(load(w + i), splat(scale), splat(-lse)));
    store(w + i, p);
    store(ds + i, p * (load(ds + i) - delta) * scale);
  }
}

#if defined(PL_PAIRS)
/** Rows r and r+1 of weights and score gradients in the forms that products of pairs read. */
PL_INLINE void pair_rows(const BackwardTiles<Pair>& tiles, int64_t r, bool both, int64_t wide) {
  const float* const w = tiles.weights + r * KEY_BLOCK;
  const float* const ds = tiles.grad_scores + r * KEY_BLOCK;
  Pair* const weights_depth = tiles.weights_depth + r / 2 * KEY_BLOCK;
  Pair* const grad_scores_depth = tiles.grad_scores_depth + r / 2 * KEY_BLOCK;
  for (int64_t i = 0; i < wide; i += VL) {
    const vf second = both ? load(w + KEY_BLOCK + i) : vf{};
    _mm512_storeu_si512(weights_depth + i, pair_lanes(load(w + i), second));
    const vf low = load(ds + i), high = both ? load(ds + KEY_BLOCK + i) : vf{};
    _mm512_storeu_si512(grad_scores_depth + i, pair_lanes(low, high));
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    Pair* const rows = tiles.grad_scores_rows + r * KEY_BLOCK + i / 2;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(halves));
    if (both) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + KEY_BLOCK), _mm512_extracti64x4_epi64(halves, 1));
  }
}
#endif

template <class T>
static int attention_gradient(const AttentionShape& shape, const float* q, int64_t q_batch, int64_t q_time,
                              int64_t q_head, const float* k, const float* v, int64_t kv_batch, int64_t kv_time,
                              int64_t kv_head, const float* out, const float* grad, int64_t out_batch, int64_t out_time,
                              int64_t out_head, const float* log_sum_exp, float* grad_q, float* grad_k, float* grad_v) {
  const int64_t batch = shape.batch, heads = shape.heads, kv_heads = shape.kv_heads, head_dim = shape.head_dim;
  const int64_t query_length = shape.query_length, key_length = shape.key_length;
  const int64_t dim = padded(head_dim), depth = steps<T>(head_dim);
  const int64_t key_blocks = (key_length + KEY_BLOCK - 1) / KEY_BLOCK;
  const int64_t items = batch * kv_heads;
  int64_t shares = 1;
  if (thread_count() > 1) {
    shares = (4 * thread_count() + items - 1) / (items > 0 ? items : 1);
    if (shares > MOST_SHARES) shares = MOST_SHARES;
    if (shares > key_blocks) shares = key_blocks;
    if (shares < 1) shares = 1;
  }
  // Query gradients are gathered in dense rows [share][batch][head][query][dim].
  const int64_t query_floats = batch * heads * query_length * dim;
  float* const partial = scratch_of<float>(0, shares * query_floats);
  float* const deltas = scratch_of<float>(1, batch * heads * query_length);
  if (!partial || !deltas)
    return fail(PL_OUT_OF_MEMORY, "attention_backward: no memory for %lld query gradients",
                (long long)(shares * query_floats));
  parallel_ranges(batch * heads * query_length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % query_length, h = i / query_length % heads, b = i / query_length / heads;
      const int64_t at = b * out_batch + t * out_time + h * out_head;
      vf sum = vf{};
      for (int64_t d = 0; d < head_dim; d += VL)
        sum = fma(Packer<float>::load_partly(grad + at + d, head_dim - d),
                  Packer<float>::load_partly(out + at + d, head_dim - d), sum);
      deltas[i] = sum_lanes(sum);
    }
  });
  std::atomic<bool> starved{false};
  parallel_for_dynamic(items * shares, [&](int64_t task) {
    const int64_t share = task % shares, g = task / shares % kv_heads, b = task / shares / kv_heads;
    float* const work = scratch_of<float>(2, BackwardTiles<T>::words(head_dim, dim));
    if (!work) return starved.store(true, std::memory_order_relaxed);
    const BackwardTiles<T> tiles(work, head_dim, dim);
    const int64_t head_begin = shape.first_head(g), head_end = shape.first_head(g + 1);
    float* const query_grads = partial + share * query_floats + b * heads * query_length * dim;
    std::memset(query_grads + head_begin * query_length * dim, 0,
                static_cast<size_t>((head_end - head_begin) * query_length * dim) * 4);
    for (int64_t j = share; j < key_blocks; j += shares) {
      const int64_t k0 = j * KEY_BLOCK;
      const int64_t count = key_length - k0 < KEY_BLOCK ? key_length - k0 : KEY_BLOCK;
      const int64_t at = b * kv_batch + k0 * kv_time + g * kv_head;
      Packer<T>::depth_rows(k + at, count, head_dim, kv_time, tiles.keys, dim);
      Packer<T>::transposed(k + at, count, head_dim, kv_time, tiles.keys_t, tiles.space);
      Packer<T>::transposed(v + at, count, head_dim, kv_time, tiles.values_t, tiles.space);
      std::memset(tiles.grad_k, 0, static_cast<size_t>(KEY_BLOCK * dim) * 4);
      std::memset(tiles.grad_v, 0, static_cast<size_t>(KEY_BLOCK * dim) * 4);
      for (int64_t h = head_begin; h < head_end; ++h) {
        for (int64_t q0 = 0; q0 < query_length; q0 += BACKWARD_QUERY_BLOCK) {
          const int64_t rows = query_length - q0 < BACKWARD_QUERY_BLOCK ? query_length - q0 : BACKWARD_QUERY_BLOCK;
          if (shape.last_key(q0 + rows - 1) <= k0 || shape.first_key(q0) >= k0 + count) continue;
          const float* const q_rows = q + b * q_batch + q0 * q_time + h * q_head;
          const float* const g_rows = grad + b * out_batch + q0 * out_time + h * out_head;
          Packer<T>::rows(q_rows, rows, head_dim, q_time, tiles.queries, dim, 1.0f);
          Packer<T>::rows(g_rows, rows, head_dim, out_time, tiles.grads, dim, 1.0f);
          if (BackwardTiles<T>::paired) {
            Packer<T>::depth_rows(q_rows, rows, head_dim, q_time, tiles.queries_depth, dim);
            Packer<T>::depth_rows(g_rows, rows, head_dim, out_time, tiles.grads_depth, dim);
          }
          const int64_t row0 = (b * heads + h) * query_length + q0;
          const bool cut =
              count < KEY_BLOCK || shape.last_key(q0) < k0 + KEY_BLOCK || shape.first_key(q0 + rows - 1) > k0;
          const int64_t strip = cut ? MASK_STRIP : rows;
          for (int64_t r0 = 0; r0 < rows; r0 += strip) {
            const int64_t m = rows - r0 < strip ? rows - r0 : strip;
            const int64_t seen = shape.last_key(q0 + r0 + m - 1) - k0;
            const int64_t width = seen < count ? seen : count;
            if (width <= 0) continue;
            const int64_t wide = padded(width);
            small_product<T, false>(m, wide, depth, tiles.queries + r0 * dim, dim, tiles.keys_t, KEY_BLOCK,
                                    tiles.weights + r0 * KEY_BLOCK, KEY_BLOCK, false);
            small_product<T, false>(m, wide, depth, tiles.grads + r0 * dim, dim, tiles.values_t, KEY_BLOCK,
                                    tiles.grad_scores + r0 * KEY_BLOCK, KEY_BLOCK, false);
            for (int64_t r = r0; r < r0 + m; ++r) {
              float* const w = tiles.weights + r * KEY_BLOCK;
              float* const ds = tiles.grad_scores + r * KEY_BLOCK;
              // What a score gains is no part of its gradient.
              if (shape.slopes) lean_row(w, wide, shape.slopes[h] / shape.scale, k0 - shape.position(q0 + r));
              gradient_row(w, ds, wide, shape.scale, shape.softcap, log_sum_exp[row0 + r], deltas[row0 + r]);
              if (cut) {
                mask_row(w, q0 + r, k0, wide, shape, 0.0f);
                mask_row(ds, q0 + r, k0, wide, shape, 0.0f);
              }
#if defined(PL_PAIRS)
              if constexpr (BackwardTiles<T>::paired) {
                if (r % 2 == 1) pair_rows(tiles, r - 1, true, wide);
                else if (r == r0 + m - 1) pair_rows(tiles, r, false, wide);
              }
#endif
            }
            const int64_t at0 = steps<T>(r0);
            small_product<T, true>(width, dim, steps<T>(m), tiles.weights_depth + at0 * KEY_BLOCK, KEY_BLOCK,
                                   tiles.grads_depth + at0 * dim, dim, tiles.grad_v, dim, true);
            small_product<T, true>(width, dim, steps<T>(m), tiles.grad_scores_depth + at0 * KEY_BLOCK, KEY_BLOCK,
                                   tiles.queries_depth + at0 * dim, dim, tiles.grad_k, dim, true);
            small_product<T, false>(m, dim, steps<T>(width), tiles.grad_scores_rows + r0 * KEY_BLOCK, KEY_BLOCK,
                                    tiles.keys, dim, query_grads + (h * query_length + q0 + r0) * dim, dim, true);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        std::memcpy(grad_k + at + r * kv_time, tiles.grad_k + r * dim, static_cast<size_t>(head_dim) * 4);
        std::memcpy(grad_v + at + r * kv_time, tiles.grad_v + r * dim, static_cast<size_t>(head_dim) * 4);
      }
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "attention_backward: no memory for a tile");
  parallel_ranges(batch * heads * query_length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % query_length, h = i / query_length % heads, b = i / query_length / heads;
      float* const o = grad_q + b * q_batch + t * q_time + h * q_head;
      const float* const p = partial + i * dim;
      for (int64_t d = 0; d < head_dim; d += VL) {
        vf sum = load(p + d);
        for (int64_t s = 1; s < shares; ++s) sum += load(p + s * query_floats + d);
        if (d + VL <= head_dim) store(o + d, sum);
        else store_part(o + d, sum, head_dim - d);
      }
    }
  });
  return 0;
}

/** `half`: products of bfloat16 pairs, where the level has them. */
inline int attention_backward(int64_t batch, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_length,
                              int64_t key_length, int32_t causal, int64_t window, int64_t chunk, float scale,
                              float softcap, const float* slopes, const float* q, int64_t q_batch, int64_t q_time,
                              int64_t q_head, const float* k, const float* v, int64_t kv_batch, int64_t kv_time,
                              int64_t kv_head, const float* out, const float* grad, int64_t out_batch, int64_t out_time,
                              int64_t out_head, const float* log_sum_exp, float* grad_q, float* grad_k, float* grad_v,
                              int32_t half) {
  const AttentionShape shape{batch,  heads, kv_heads,    head_dim, query_length, key_length,
                             window, chunk, causal != 0, scale,    softcap,      slopes};
  if (slopes && softcap > 0.0f)
    return fail(PL_BAD_ARGUMENT, "attention_backward: scores have a soft cap or slopes, not both");
#if defined(PL_PAIRS)
  if (half)
    return attention_gradient<Pair>(shape, q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, grad,
                                    out_batch, out_time, out_head, log_sum_exp, grad_q, grad_k, grad_v);
#endif
  (void)half;
  return attention_gradient<float>(shape, q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, grad,
                                   out_batch, out_time, out_head, log_sum_exp, grad_q, grad_k, grad_v);
}

}  // namespace planish::PL_LEVEL
