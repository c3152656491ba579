// What attention's two directions share: which keys a query sees, and tiles of heads packed for products in f32 or in
// pairs of bfloat16.
#pragma once

#include "tile.h"

namespace planish::PL_LEVEL {

constexpr int64_t KEY_BLOCK = 64;
// A tile that the mask cuts is computed in strips of this many queries, each up to its own last key. Even, so that
// strips begin between pairs of queries.
constexpr int64_t MASK_STRIP = 16;

/** The first key that a query at `position` sees through a window and in its chunk, of which either may be 0: none. */
PL_INLINE int64_t first_visible(int64_t position, int64_t window, int64_t chunk) {
  int64_t first = window > 0 && position >= window ? position - window + 1 : 0;
  if (chunk > 0 && position > 0 && position - position % chunk > first) first = position - position % chunk;
  return first;
}

/** Everything about an attention call but its tensors. */
struct AttentionShape {
  int64_t batch, heads, kv_heads, head_dim, query_length, key_length, window;
  /** Queries see the keys of their own chunk of positions only; 0: of all. */
  int64_t chunk;
  bool causal;
  float scale;
  /** Scores s become softcap·tanh(s/softcap); 0: they stay. */
  float softcap;
  /** Of each head what a score gains with every position of its key, relative to the query's; null: nothing. */
  const float* slopes;

  /** One past the last key that query t sees. */
  int64_t last_key(int64_t t) const {
    if (!causal) return key_length;
    const int64_t end = t + key_length - query_length + 1;
    return end < 0 ? 0 : end > key_length ? key_length : end;
  }
  int64_t first_key(int64_t t) const {
    const int64_t first = first_visible(position(t), window, chunk), end = last_key(t);
    return first > end ? end : first;
  }
  /** Where query t stands among the keys. */
  int64_t position(int64_t t) const { return t + key_length - query_length; }
  int64_t kv_head_of(int64_t head) const { return head * kv_heads / heads; }
  /** First query head of KV head g; g = kv_heads gives `heads`. */
  int64_t first_head(int64_t g) const { return (g * heads + kv_heads - 1) / kv_heads; }
};

/** Writes `value` to keys of a row of scores that query t must not see; the row starts at key `k0`. */
PL_INLINE void mask_row(float* row, int64_t t, int64_t k0, int64_t count, const AttentionShape& shape, float value) {
  const int64_t first = shape.first_key(t) - k0, last = shape.last_key(t) - k0;
  for (int64_t j = 0; j < first && j < count; ++j) row[j] = value;
  for (int64_t j = last < 0 ? 0 : last; j < count; ++j) row[j] = value;
}

/** Caps a row of scores, which are scaled already. */
PL_INLINE void cap_row(float* row, int64_t count, float softcap) {
  const float inverse = 1.0f / softcap;
  for (int64_t i = 0; i < count; i += VL) store(row + i, softcap * tanhv(load(row + i) * inverse));
}

/** Adds slope·(first + i) to score i. */
PL_INLINE void lean_row(float* row, int64_t count, float slope, int64_t first) {
  for (int64_t i = 0; i < count; ++i) row[i] += slope * static_cast<float>(first + i);
}

/** Steps along the depth of a product over n elements of type T. */
template <class T>
static constexpr int64_t steps(int64_t n) {
  return sizeof(T) == sizeof(Pair) && !std::is_same<T, float>::value ? (n + 1) / 2 : n;
}

/** Packing of a head's rows (`count` of them, `stride` apart) into tiles of T. */
template <class T>
struct Packer;

template <>
struct Packer<float> {
  /** Row by row, times `factor`: the A side of a product over head_dim. Rows are `ld` apart and padded with zeros. */
  static void rows(const float* x, int64_t count, int64_t dim, int64_t stride, float* out, int64_t ld, float factor) {
    for (int64_t r = 0; r < count; ++r) {
      const float* const row = x + r * stride;
      float* const o = out + r * ld;
      for (int64_t d = 0; d < dim; d += VL) store(o + d, load_partly(row + d, dim - d) * factor);
    }
  }
  /** The B side of a product over rows: [row][ld]. */
  static void depth_rows(const float* x, int64_t count, int64_t dim, int64_t stride, float* out, int64_t ld) {
    rows(x, count, dim, stride, out, ld, 1.0f);
  }
  /** The B side of a product over head_dim: [dim][KEY_BLOCK]; `space` is not used. */
  static void transposed(const float* x, int64_t count, int64_t dim, int64_t stride, float* out, float*) {
    copy_transposed<float>(x, count, dim, stride, out, KEY_BLOCK);
  }
  PL_INLINE vf load_partly(const float* p, int64_t count) { return count >= VL ? load(p) : load_part(p, count); }
};

#if defined(PL_PAIRS)
/** 2·VL floats as VL pairs: element i of the result holds (low[i], high[i]). */
PL_INLINE __m512i pair_lanes(vf low, vf high) {
  // The conversion leaves low in the lower half; the permutation interleaves the halves.
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}

template <>
struct Packer<Pair> {
  /** As above, neighbours along the row paired. `ld` counts pairs. */
  static void rows(const float* x, int64_t count, int64_t dim, int64_t stride, Pair* out, int64_t ld, float factor) {
    for (int64_t r = 0; r < count; ++r) {
      const float* const row = x + r * stride;
      Pair* const o = out + r * ld;
      for (int64_t d = 0; d < dim; d += 2 * VL) {
        const vf low = Packer<float>::load_partly(row + d, dim - d) * factor;
        const vf high = dim - d > VL ? Packer<float>::load_partly(row + d + VL, dim - d - VL) * factor : vf{};
        const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        const int64_t left = (dim - d + 1) / 2;
        if (left >= VL) _mm512_storeu_si512(o + d / 2, pairs);
        else _mm512_mask_storeu_epi32(o + d / 2, (__mmask16)((1u << left) - 1u), pairs);
      }
    }
  }
  /** As above, rows 2i and 2i+1 paired: [⌈count/2⌉][ld]. */
  static void depth_rows(const float* x, int64_t count, int64_t dim, int64_t stride, Pair* out, int64_t ld) {
    for (int64_t r = 0; r < count; r += 2) {
      const float* const row = x + r * stride;
      for (int64_t d = 0; d < dim; d += VL) {
        const vf low = Packer<float>::load_partly(row + d, dim - d);
        const vf high = r + 1 < count ? Packer<float>::load_partly(row + stride + d, dim - d) : vf{};
        _mm512_storeu_si512(out + r / 2 * ld + d, pair_lanes(low, high));
      }
    }
  }
  /** As above: [⌈dim/2⌉][KEY_BLOCK]; `space` holds KEY_BLOCK·⌈dim/2⌉ pairs. */
  static void transposed(const float* x, int64_t count, int64_t dim, int64_t stride, Pair* out, Pair* space) {
    const int64_t depth = steps<Pair>(dim);
    rows(x, count, dim, stride, space, depth, 1.0f);
    copy_transposed<Pair>(space, count, depth, depth, out, KEY_BLOCK);
  }
};
#endif

}  // namespace planish::PL_LEVEL
