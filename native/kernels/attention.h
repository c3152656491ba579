// Scaled dot-product attention, tile by tile: no T×T matrix is kept. The gradient is in attention_backward.h.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1; definition: src/backend/contract/training.ts.
//
// One task per (batch, head, block of queries), walking the visible key blocks with a running maximum.
#pragma once

#include "../abi/codes.h"
#include "../planish.h"
#include "../pool.h"
#include "attention_tiles.h"

namespace planish::PL_LEVEL {

/**
 * Weights exp(score − level) of one row in place, for products in T; returns their sum by lanes. `Masked` rows may hold
 * −∞, whose weight is exactly 0.
 */
template <class T, bool Masked>
PL_INLINE vf softmax_row(float* row, int64_t wide, float level) {
  // One exponential for both: a row's weights must not depend on whether its tile is cut for another row's sake.
  const auto weigh = [level](vf score) {
    const vf weight = exp_negative(score - level);
    return Masked ? (score == -INFINITY ? vf{} : weight) : weight;
  };
  vf sum = vf{};
  if constexpr (std::is_same<T, float>::value) {
    for (int64_t i = 0; i < wide; i += VL) {
      const vf weight = weigh(load(row + i));
      store(row + i, weight);
      sum += weight;
    }
  } else {
#if defined(PL_PAIRS)
    // The pairs take the first half of the row, behind where it is being read.
    for (int64_t i = 0; i < wide; i += 2 * VL) {
      const vf low = weigh(load(row + i));
      const vf high = i + VL < wide ? weigh(load(row + i + VL)) : vf{};
      _mm512_storeu_si512(row + i / 2, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
      sum += low + high;
    }
#endif
  }
  return sum;
}

template <class T>
static int attention_forward(const AttentionShape& shape, const float* q, int64_t q_batch, int64_t q_time,
                             int64_t q_head, const float* k, const float* v, int64_t kv_batch, int64_t kv_time,
                             int64_t kv_head, float* out, int64_t out_batch, int64_t out_time, int64_t out_head,
                             float* log_sum_exp) {
  const int64_t batch = shape.batch, heads = shape.heads, kv_heads = shape.kv_heads, head_dim = shape.head_dim;
  const int64_t query_length = shape.query_length, key_length = shape.key_length;
  const int64_t dim = padded(head_dim), depth = steps<T>(head_dim), key_depth = steps<T>(KEY_BLOCK);
  const int64_t key_blocks = (key_length + KEY_BLOCK - 1) / KEY_BLOCK;
  const int64_t query_blocks = (query_length + QUERY_BLOCK - 1) / QUERY_BLOCK;
  // Keys transposed block by block, values ready for the product over keys, once for all heads of a group.
  const int64_t key_tile = depth * KEY_BLOCK, value_tile = key_depth * dim;
  const int64_t tiles = batch * kv_heads * key_blocks;
  T* const packed_keys = scratch_of<T>(0, tiles * key_tile);
  T* const packed_values = scratch_of<T>(1, tiles * value_tile);
  if (tiles > 0 && (!packed_keys || !packed_values))
    return fail(PL_OUT_OF_MEMORY, "attention: no memory to pack %lld keys", (long long)(batch * kv_heads * key_length));
  std::atomic<bool> starved{false};
  parallel_for(tiles, [&](int64_t task) {
    T* const space = scratch_of<T>(2, key_tile);
    if (!space) return starved.store(true, std::memory_order_relaxed);
    const int64_t block = task % key_blocks, g = task / key_blocks % kv_heads, b = task / key_blocks / kv_heads;
    const int64_t k0 = block * KEY_BLOCK;
    const int64_t count = key_length - k0 < KEY_BLOCK ? key_length - k0 : KEY_BLOCK;
    const int64_t at = b * kv_batch + k0 * kv_time + g * kv_head;
    Packer<T>::transposed(k + at, count, head_dim, kv_time, packed_keys + task * key_tile, space);
    Packer<T>::depth_rows(v + at, count, head_dim, kv_time, packed_values + task * value_tile, dim);
  });
  parallel_for_dynamic(batch * heads * query_blocks, [&](int64_t task) {
    // Later query blocks see more keys; they go first so that the threads finish together.
    const int64_t block = query_blocks - 1 - task / (batch * heads);
    const int64_t h = task % heads, b = task / heads % batch;
    const int64_t q0 = block * QUERY_BLOCK;
    const int64_t rows = query_length - q0 < QUERY_BLOCK ? query_length - q0 : QUERY_BLOCK;
    float* const work = scratch_of<float>(2, QUERY_BLOCK * (2 * dim + KEY_BLOCK + VL));
    if (!work) return starved.store(true, std::memory_order_relaxed);
    T* const queries = reinterpret_cast<T*>(work);
    float* const mixed = work + QUERY_BLOCK * dim;
    float* const scores = mixed + QUERY_BLOCK * dim;
    float* const totals = scores + QUERY_BLOCK * KEY_BLOCK;  // by lanes
    float top[QUERY_BLOCK];
    Packer<T>::rows(q + b * q_batch + q0 * q_time + h * q_head, rows, head_dim, q_time, queries, dim, shape.scale);
    std::memset(mixed, 0, static_cast<size_t>(rows * dim) * 4);
    std::memset(totals, 0, static_cast<size_t>(rows * VL) * 4);
    for (int64_t r = 0; r < rows; ++r) top[r] = -INFINITY;
    const int64_t first_visible = shape.first_key(q0), end_visible = shape.last_key(q0 + rows - 1);
    const int64_t tile_base = (b * kv_heads + shape.kv_head_of(h)) * key_blocks;
    for (int64_t j = first_visible / KEY_BLOCK; j * KEY_BLOCK < end_visible; ++j) {
      const int64_t k0 = j * KEY_BLOCK;
      const int64_t present = key_length - k0 < KEY_BLOCK ? key_length - k0 : KEY_BLOCK;
      const T* const keys = packed_keys + (tile_base + j) * key_tile;
      const T* const values = packed_values + (tile_base + j) * value_tile;
      const bool cut =
          present < KEY_BLOCK || shape.last_key(q0) < k0 + KEY_BLOCK || shape.first_key(q0 + rows - 1) > k0;
      const int64_t strip = cut ? MASK_STRIP : rows;
      for (int64_t r0 = 0; r0 < rows; r0 += strip) {
        const int64_t m = rows - r0 < strip ? rows - r0 : strip;
        const int64_t seen = shape.last_key(q0 + r0 + m - 1) - k0;
        const int64_t width = seen < present ? seen : present;
        if (width <= 0) continue;
        const int64_t wide = padded(width);
        float* const tile = scores + r0 * KEY_BLOCK;
        small_product<T, false>(m, wide, depth, queries + r0 * dim, dim, keys, KEY_BLOCK, tile, KEY_BLOCK, false);
        for (int64_t r = 0; r < m; ++r) {
          float* const row = tile + r * KEY_BLOCK;
          float* const total = totals + (r0 + r) * VL;
          if (shape.softcap > 0.0f) cap_row(row, wide, shape.softcap);
          const int64_t t = q0 + r0 + r;
          if (shape.slopes) lean_row(row, wide, shape.slopes[h], k0 - shape.position(t));
          if (cut) mask_row(row, t, k0, wide, shape, -INFINITY);
          vf best = load(row);
          for (int64_t i = VL; i < wide; i += VL) best = vmax(best, load(row + i));
          const float highest = max_lanes(best), before = top[r0 + r];
          if (highest > before) {
            top[r0 + r] = highest;
            if (before != -INFINITY) {
              const float shrink = std::exp(before - highest);
              store(total, load(total) * shrink);
              float* const o = mixed + (r0 + r) * dim;
              for (int64_t d = 0; d < dim; d += VL) store(o + d, load(o + d) * shrink);
            }
          }
          // Where nothing is visible yet, the maximum is −∞ and the weights must come out as 0, not NaN.
          const float level = top[r0 + r] == -INFINITY ? 0.0f : top[r0 + r];
          store(total,
                load(total) + (cut ? softmax_row<T, true>(row, wide, level) : softmax_row<T, false>(row, wide, level)));
        }
        small_product<T, false>(m, dim, steps<T>(width), reinterpret_cast<const T*>(tile), KEY_BLOCK, values, dim,
                                mixed + r0 * dim, dim, true);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float total = sum_lanes(load(totals + r * VL));
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      const float* const row = mixed + r * dim;
      float* const o = out + b * out_batch + (q0 + r) * out_time + h * out_head;
      map_lanes(row, o, head_dim, [&](vf x) { return x * inverse; });
      if (log_sum_exp)
        log_sum_exp[(b * heads + h) * query_length + q0 + r] = total == 0.0f ? -INFINITY : top[r] + std::log(total);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "attention: no memory for a tile");
  return 0;
}

/** `half`: products of bfloat16 pairs, where the level has them. */
inline int attention(int64_t batch, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_length,
                     int64_t key_length, int32_t causal, int64_t window, int64_t chunk, float scale, float softcap,
                     const float* slopes, const float* q, int64_t q_batch, int64_t q_time, int64_t q_head,
                     const float* k, const float* v, int64_t kv_batch, int64_t kv_time, int64_t kv_head, float* out,
                     int64_t out_batch, int64_t out_time, int64_t out_head, float* log_sum_exp, int32_t half) {
  const AttentionShape shape{batch,  heads, kv_heads,    head_dim, query_length, key_length,
                             window, chunk, causal != 0, scale,    softcap,      slopes};
  if (slopes && softcap > 0.0f) return fail(PL_BAD_ARGUMENT, "attention: scores have a soft cap or slopes, not both");
#if defined(PL_PAIRS)
  if (half)
    return attention_forward<Pair>(shape, q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, out_batch,
                                   out_time, out_head, log_sum_exp);
#endif
  (void)half;
  return attention_forward<float>(shape, q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, out_batch,
                                  out_time, out_head, log_sum_exp);
}

}  // namespace planish::PL_LEVEL
