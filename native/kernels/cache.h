// The KV cache: pages of 64 positions, 4, 8 or 16 bits, and how queries, keys and values get ready for it.
//
// A page holds, for each layer and KV head, keys and values apart. Keys lie transposed, [head_dim][64 tokens], so that a
// score is a product of a query with rows of tokens; values lie [64 tokens][head_dim], for the weighted sum over tokens.
// Codes of at most 4 bits are kept in 4 (byte j of a row: element j in the low nibble, element j + half in the high
// one), those of 6 and 8 in 8; 16 means IEEE half. Each token and head has an f32 scale and a byte for the zero point.
// The grid is that of `fake_quantize_asym`. Source: docs/methods.md, Grids.
#pragma once

#include <algorithm>

#include "../half.h"
#include "kronecker.h"
#include "norm.h"
#include "quantize.h"

namespace planish::PL_LEVEL {

/** Where things lie in one head's part of a page. */
struct CacheShape {
  int64_t head_dim, wide;      // wide: head_dim padded to 32
  int32_t stored;              // bits kept: 4, 8 or 16
  int64_t key_row, value_row;  // bytes of a row of codes
  int64_t values, key_scale, value_scale, key_zero, value_zero, bytes;

  CacheShape(int64_t dim, int32_t bits) : head_dim(dim) {
    wide = (dim + 31) / 32 * 32;
    stored = bits <= 4 ? 4 : bits <= 8 ? 8 : 16;
    key_row = PAGE_TOKENS * stored / 8;
    value_row = wide * stored / 8;
    values = dim * key_row;
    key_scale = values + PAGE_TOKENS * value_row;
    const int64_t grids = stored == 16 ? 0 : PAGE_TOKENS;
    value_scale = key_scale + grids * 4;
    key_zero = value_scale + grids * 4;
    value_zero = key_zero + grids;
    bytes = (value_zero + grids + 63) / 64 * 64;
  }
};

inline int cache_head_bytes(int64_t head_dim, int32_t bits, int64_t* bytes) {
  *bytes = CacheShape(head_dim, bits).bytes;
  return 0;
}

/** Consecutive rows of one sequence. */
struct CacheChunk {
  int32_t row, rows, start, pages;  // first row, their number, position of the first, offset into the page list
};

/** A stretch of a chunk that lies in one page. */
struct PageTask {
  int64_t row, rows, slot, page;
};

/** RMS norm of one head in place, as `norm` computes it. */
PL_INLINE void norm_head(float* x, int64_t dim, const float* gain, float epsilon) {
  const Moments m = row_moments(0, x, dim, epsilon);
  map_lanes2(x, gain, x, dim, [&](vf v, vf g) { return (v - m.mean) * m.inverse * g; });
}

PL_INLINE void rope_head(float* x, int64_t dim, const float* cosine, const float* sine) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += VL) {
    const int64_t count = half - i;
    const vf c = load_up_to(cosine + i, count), s = load_up_to(sine + i, count);
    const vf a = load_up_to(x + i, count), b = load_up_to(x + half + i, count);
    const vf first = a * c - b * s, second = b * c + a * s;
    if (count >= VL) {
      store(x + i, first);
      store(x + half + i, second);
    } else {
      store_part(x + i, first, count);
      store_part(x + half + i, second, count);
    }
  }
}

/** (x − shift) · factor of one head; shift may be null. */
PL_INLINE void balance_head(float* x, int64_t dim, const float* shift, const float* factor) {
  if (shift) map_lanes2(x, shift, x, dim, [](vf v, vf s) { return v - s; });
  map_lanes2(x, factor, x, dim, [](vf v, vf f) { return v * f; });
}

/** What the heads of a cache are balanced with, [kv_heads·dim] each or null. */
struct HeadBalance {
  const float* shift;
  const float* factor;
  int64_t kv_heads;
};

/** Norm, rotary embedding, balance and matrix of `rows` × `heads` heads of x in place; `space` holds as many floats. */
static inline void prepare_heads(float* x, int64_t rows, int64_t heads, int64_t dim, const float* gain, float epsilon,
                                 const float* cosine, const float* sine, const HeadBalance& balance,
                                 const float* matrix, float* space) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h) {
      float* const head = x + (r * heads + h) * dim;
      if (gain) norm_head(head, dim, gain, epsilon);
      if (cosine) rope_head(head, dim, cosine + r * (dim / 2), sine + r * (dim / 2));
      if (!balance.factor) continue;
      const int64_t owner = h * balance.kv_heads / heads * dim;
      balance_head(head, dim, balance.shift ? balance.shift + owner : nullptr, balance.factor + owner);
    }
  if (!matrix) return;
  small_product<float, false>(rows * heads, dim, dim, x, dim, matrix, padded(dim), space, dim, false);
  std::memcpy(x, space, static_cast<size_t>(rows * heads * dim) * 4);
}

/** Codes of a row on the asymmetric grid: fake_quantize_asym before it multiplies back. */
PL_INLINE AsymmetricRange cache_codes(const float* x, int64_t dim, float factor_max, float factor_min, float levels,
                                      uint8_t* codes) {
  const AsymmetricRange a = asymmetric_range(x, dim, factor_max, factor_min, levels);
  const vf top = splat(levels);
  for (int64_t i = 0; i < dim; i += VL) {
    const vf v = load_up_to(x + i, dim - i);
    const vf q = vmin(vmax(round_even_clamped(v / a.scale) + a.zero, vf{}), top);
    const vi integers = __builtin_convertvector(q, vi);
    for (int l = 0; l < VL && i + l < dim; ++l) codes[i + l] = static_cast<uint8_t>(integers[l]);
  }
  return a;
}

PL_INLINE void put_nibble(uint8_t* row, int64_t index, int64_t half, uint8_t code) {
  uint8_t* const at = row + index % half;
  *at = static_cast<uint8_t>(index < half ? (*at & 0xf0) | code : (*at & 0x0f) | (code << 4));
}

static inline void write_token(uint8_t* head, const CacheShape& shape, int64_t slot, const float* key,
                               const float* value, float levels, const float* key_factors, const float* value_factors,
                               uint8_t* codes) {
  const int64_t dim = shape.head_dim;
  uint8_t* const values = head + shape.values + slot * shape.value_row;
  if (shape.stored == 16) {
    for (int64_t d = 0; d < dim; ++d) {
      const uint16_t k = half_of(key[d]), v = half_of(value[d]);
      std::memcpy(head + d * shape.key_row + slot * 2, &k, 2);
      std::memcpy(values + d * 2, &v, 2);
    }
    return;
  }
  const AsymmetricRange k = cache_codes(key, dim, key_factors[0], key_factors[1], levels, codes);
  if (shape.stored == 4) {
    for (int64_t d = 0; d < dim; ++d) put_nibble(head + d * shape.key_row, slot, PAGE_TOKENS / 2, codes[d]);
  } else {
    for (int64_t d = 0; d < dim; ++d) head[d * shape.key_row + slot] = codes[d];
  }
  const AsymmetricRange v = cache_codes(value, dim, value_factors[0], value_factors[1], levels, codes);
  if (shape.stored == 4) {
    const int64_t half = shape.wide / 2;
    for (int64_t d = dim; d < shape.wide; ++d) codes[d] = 0;
    for (int64_t d = 0; d < half; ++d) values[d] = static_cast<uint8_t>(codes[d] | (codes[d + half] << 4));
  } else {
    std::memcpy(values, codes, static_cast<size_t>(dim));
  }
  std::memcpy(head + shape.key_scale + slot * 4, &k.scale, 4);
  std::memcpy(head + shape.value_scale + slot * 4, &v.scale, 4);
  head[shape.key_zero + slot] = static_cast<uint8_t>(k.zero);
  head[shape.value_zero + slot] = static_cast<uint8_t>(v.zero);
}

/**
 * Queries, keys and values of a step, [rows, heads·head_dim] and [rows, kv_heads·head_dim]: head norms (gains may be null),
 * rotary embedding (tables [rows, head_dim/2] or null), keys less k_shift times k_diag and queries over k_diag
 * ([kv_heads·head_dim] or null), P_k⁻ᵀ on queries and P_k on keys (or null), query grid (16: none).
 * Queries stay in q; keys and values go to their pages. `chunks`: CacheChunk; `clips`: four logits, keys' max and min,
 * values' max and min (+∞: none). q_scale [rows] multiplies queries, or is null. `cache` is this layer's part of page 0, `page_bytes` from one page to the next.
 */
inline int cache_write(int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kv_heads,
                       int64_t head_dim, float* q, float* k, float* v, const float* q_gain, const float* k_gain,
                       float epsilon, const float* cosine, const float* sine, const float* q_matrix,
                       const float* k_matrix, const float* k_diag, const float* k_shift, int32_t query_bits,
                       int32_t bits, const float* clips, uint8_t* cache, int64_t page_bytes, const float* q_scale) {
  const CacheChunk* const list = reinterpret_cast<const CacheChunk*>(table);
  const CacheShape shape(head_dim, bits);
  int64_t count = 0;
  for (int64_t c = 0; c < chunks; ++c)
    count += (list[c].start + list[c].rows - 1) / PAGE_TOKENS - list[c].start / PAGE_TOKENS + 1;
  PageTask* const tasks = scratch_of<PageTask>(4, count);
  int64_t* const groups = scratch_of<int64_t>(3, count + 1);
  float* const matrices = scratch_of<float>(6, 2 * head_dim * padded(head_dim) + kv_heads * head_dim);
  if (!tasks || !groups || !matrices)
    return fail(PL_OUT_OF_MEMORY, "cache_write: no memory for %lld pages", (long long)count);
  PageTask* next = tasks;
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t at = 0; at < list[c].rows;) {
      const int64_t position = list[c].start + at, slot = position % PAGE_TOKENS;
      const int64_t room = PAGE_TOKENS - slot, left = list[c].rows - at;
      const int64_t rows = left < room ? left : room;
      *next++ = PageTask{list[c].row + at, rows, slot, pages[list[c].pages + position / PAGE_TOKENS]};
      at += rows;
    }
  // A byte of keys holds two tokens, so stretches of one page belong to one thread.
  std::sort(tasks, tasks + count,
            [](const PageTask& a, const PageTask& b) { return a.page != b.page ? a.page < b.page : a.slot < b.slot; });
  int64_t page_count = 0;
  for (int64_t i = 0; i < count; ++i)
    if (i == 0 || tasks[i].page != tasks[i - 1].page) groups[page_count++] = i;
  groups[page_count] = count;
  const float* const query_matrix = q_matrix ? padded_factor(q_matrix, head_dim, false, matrices) : nullptr;
  const float* const key_matrix =
      k_matrix ? padded_factor(k_matrix, head_dim, false, matrices + head_dim * padded(head_dim)) : nullptr;
  const HeadBalance key_balance{k_shift, k_diag, kv_heads};
  HeadBalance query_balance{nullptr, nullptr, kv_heads};
  if (k_diag) {
    float* const inverse = matrices + 2 * head_dim * padded(head_dim);
    for (int64_t i = 0; i < kv_heads * head_dim; ++i) inverse[i] = 1.0f / k_diag[i];
    query_balance.factor = inverse;
  }
  const float levels = static_cast<float>((1 << (bits < 16 ? bits : 0)) - 1);
  const float factors[4] = {sigmoid1(clips[0]), sigmoid1(clips[1]), sigmoid1(clips[2]), sigmoid1(clips[3])};
  const float qmax = static_cast<float>((1 << (query_bits < 16 ? query_bits - 1 : 0)) - 1);
  std::atomic<bool> starved{false};
  const auto write = [&](const PageTask& task) {
    const int64_t half = head_dim / 2;
    float* const space = scratch_of<float>(5, task.rows * heads * head_dim + VL);
    uint8_t* const codes = scratch_of<uint8_t>(7, shape.wide + VL);
    if (!space || !codes) return starved.store(true, std::memory_order_relaxed);
    float* const queries = q + task.row * heads * head_dim;
    float* const keys = k + task.row * kv_heads * head_dim;
    const float* const values = v + task.row * kv_heads * head_dim;
    const float* const c = cosine ? cosine + task.row * half : nullptr;
    const float* const s = sine ? sine + task.row * half : nullptr;
    prepare_heads(queries, task.rows, heads, head_dim, q_gain, epsilon, c, s, query_balance, query_matrix, space);
    prepare_heads(keys, task.rows, kv_heads, head_dim, k_gain, epsilon, c, s, key_balance, key_matrix, space);
    if (q_scale)
      for (int64_t r = 0; r < task.rows; ++r) {
        float* const row = queries + r * heads * head_dim;
        const vf factor = splat(q_scale[task.row + r]);
        map_lanes(row, row, heads * head_dim, [&](vf x) { return x * factor; });
      }
    if (query_bits < 16) {
      const vf top = splat(qmax), bottom = splat(-qmax - 1.0f);
      for (int64_t h = 0; h < task.rows * heads; ++h) {
        float* const head = queries + h * head_dim;
        const vf scale = splat(floored_scale(symmetric_range(head, head_dim, 1.0f, 1.0f, qmax).raw, 0.0f));
        map_lanes(head, head, head_dim, [&](vf x) { return scale * round_even(vmin(vmax(x / scale, bottom), top)); });
      }
    }
    uint8_t* const page = cache + task.page * page_bytes;
    for (int64_t h = 0; h < kv_heads; ++h)
      for (int64_t r = 0; r < task.rows; ++r) {
        const int64_t at = (r * kv_heads + h) * head_dim;
        write_token(page + h * shape.bytes, shape, task.slot + r, keys + at, values + at, levels, factors, factors + 2,
                    codes);
      }
  };
  parallel_for_dynamic(page_count, [&](int64_t index) {
    for (int64_t i = groups[index]; i < groups[index + 1]; ++i) write(tasks[i]);
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "cache_write: no memory for the heads of a page");
  return 0;
}

}  // namespace planish::PL_LEVEL
