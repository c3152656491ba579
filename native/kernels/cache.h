// The KV cache: pages of 64 positions, 4, 8 or 16 bits, and how queries, keys and values get ready for it.
//
// A page holds, for each layer and KV head, keys and values apart. Keys lie transposed, [headDim][64 tokens], so that a
// score is a product of a query with rows of tokens; values lie [64 tokens][headDim], for the weighted sum over tokens.
// Codes of at most 4 bits are kept in 4 (byte j of a row: element j in the low nibble, element j + half in the high
// one), those of 6 and 8 in 8; 16 means IEEE half. Each token and head has an f32 scale and a byte for the zero point.
// The grid is that of `fake_quantize_asym`. Source: spec/flatquant.md, Quantizers.
#pragma once

#include <algorithm>

#include "../half.h"
#include "kronecker.h"
#include "norm.h"
#include "quantize.h"

namespace planish::PL_LEVEL {


/** Where things lie in one head's part of a page. */
struct CacheShape {
  int64_t headDim, wide;  // wide: headDim padded to 32
  int32_t stored;         // bits kept: 4, 8 or 16
  int64_t keyRow, valueRow;  // bytes of a row of codes
  int64_t values, keyScale, valueScale, keyZero, valueZero, bytes;

  CacheShape(int64_t dim, int32_t bits) : headDim(dim) {
    wide = (dim + 31) / 32 * 32;
    stored = bits <= 4 ? 4 : bits <= 8 ? 8 : 16;
    keyRow = PAGE_TOKENS * stored / 8;
    valueRow = wide * stored / 8;
    values = dim * keyRow;
    keyScale = values + PAGE_TOKENS * valueRow;
    const int64_t grids = stored == 16 ? 0 : PAGE_TOKENS;
    valueScale = keyScale + grids * 4;
    keyZero = valueScale + grids * 4;
    valueZero = keyZero + grids;
    bytes = (valueZero + grids + 63) / 64 * 64;
  }
};

inline int cache_head_bytes(int64_t headDim, int32_t bits, int64_t* bytes) {
  *bytes = CacheShape(headDim, bits).bytes;
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
PL_INLINE void normHead(float* x, int64_t dim, const float* gain, float epsilon) {
  const Moments m = rowMoments(0, x, dim, epsilon);
  mapLanes2(x, gain, x, dim, [&](vf v, vf g) { return (v - m.mean) * m.inverse * g; });
}

PL_INLINE void ropeHead(float* x, int64_t dim, const float* cosine, const float* sine) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += VL) {
    const int64_t count = half - i;
    const vf c = loadUpTo(cosine + i, count), s = loadUpTo(sine + i, count);
    const vf a = loadUpTo(x + i, count), b = loadUpTo(x + half + i, count);
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

/** Norm, rotary embedding and matrix of `rows` × `heads` heads of x in place; `space` holds as many floats. */
static inline void prepareHeads(float* x, int64_t rows, int64_t heads, int64_t dim, const float* gain, float epsilon,
                                const float* cosine, const float* sine, const float* matrix, float* space) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h) {
      float* const head = x + (r * heads + h) * dim;
      if (gain) normHead(head, dim, gain, epsilon);
      if (cosine) ropeHead(head, dim, cosine + r * (dim / 2), sine + r * (dim / 2));
    }
  if (!matrix) return;
  smallProduct<float, false>(rows * heads, dim, dim, x, dim, matrix, padded(dim), space, dim, false);
  std::memcpy(x, space, static_cast<size_t>(rows * heads * dim) * 4);
}

/** Codes of a row on the asymmetric grid: fake_quantize_asym before it multiplies back. */
PL_INLINE AsymmetricRange cacheCodes(const float* x, int64_t dim, float factorMax, float factorMin, float levels,
                                            uint8_t* codes) {
  const AsymmetricRange a = asymmetricRange(x, dim, factorMax, factorMin, levels);
  const vf top = splat(levels);
  for (int64_t i = 0; i < dim; i += VL) {
    const vf v = loadUpTo(x + i, dim - i);
    const vf q = vmin(vmax(roundEvenClamped(v / a.scale) + a.zero, vf{}), top);
    const vi integers = __builtin_convertvector(q, vi);
    for (int l = 0; l < VL && i + l < dim; ++l) codes[i + l] = static_cast<uint8_t>(integers[l]);
  }
  return a;
}

PL_INLINE void putNibble(uint8_t* row, int64_t index, int64_t half, uint8_t code) {
  uint8_t* const at = row + index % half;
  *at = static_cast<uint8_t>(index < half ? (*at & 0xf0) | code : (*at & 0x0f) | (code << 4));
}

static inline void writeToken(uint8_t* head, const CacheShape& shape, int64_t slot, const float* key, const float* value,
                              float levels, const float* keyFactors, const float* valueFactors, uint8_t* codes) {
  const int64_t dim = shape.headDim;
  uint8_t* const values = head + shape.values + slot * shape.valueRow;
  if (shape.stored == 16) {
    for (int64_t d = 0; d < dim; ++d) {
      const uint16_t k = half_of(key[d]), v = half_of(value[d]);
      std::memcpy(head + d * shape.keyRow + slot * 2, &k, 2);
      std::memcpy(values + d * 2, &v, 2);
    }
    return;
  }
  const AsymmetricRange k = cacheCodes(key, dim, keyFactors[0], keyFactors[1], levels, codes);
  if (shape.stored == 4) {
    for (int64_t d = 0; d < dim; ++d) putNibble(head + d * shape.keyRow, slot, PAGE_TOKENS / 2, codes[d]);
  } else {
    for (int64_t d = 0; d < dim; ++d) head[d * shape.keyRow + slot] = codes[d];
  }
  const AsymmetricRange v = cacheCodes(value, dim, valueFactors[0], valueFactors[1], levels, codes);
  if (shape.stored == 4) {
    const int64_t half = shape.wide / 2;
    for (int64_t d = dim; d < shape.wide; ++d) codes[d] = 0;
    for (int64_t d = 0; d < half; ++d) values[d] = static_cast<uint8_t>(codes[d] | (codes[d + half] << 4));
  } else {
    std::memcpy(values, codes, static_cast<size_t>(dim));
  }
  std::memcpy(head + shape.keyScale + slot * 4, &k.scale, 4);
  std::memcpy(head + shape.valueScale + slot * 4, &v.scale, 4);
  head[shape.keyZero + slot] = static_cast<uint8_t>(k.zero);
  head[shape.valueZero + slot] = static_cast<uint8_t>(v.zero);
}

/**
 * Queries, keys and values of a step, [rows, heads·headDim] and [rows, kvHeads·headDim]: head norms (gains may be null),
 * rotary embedding (tables [rows, headDim/2] or null), P_k⁻ᵀ on queries and P_k on keys (or null), query grid (16: none).
 * Queries stay in q; keys and values go to their pages. `chunks`: CacheChunk; `clips`: four logits, keys' max and min,
 * values' max and min (+∞: none). `cache` is this layer's part of page 0, `pageBytes` from one page to the next.
 */
inline int cache_write(int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kvHeads,
                       int64_t headDim, float* q, float* k, float* v, const float* qGain, const float* kGain, float epsilon,
                       const float* cosine, const float* sine, const float* qMatrix, const float* kMatrix,
                       int32_t queryBits, int32_t bits, const float* clips, uint8_t* cache, int64_t pageBytes) {
  const CacheChunk* const list = reinterpret_cast<const CacheChunk*>(table);
  const CacheShape shape(headDim, bits);
  int64_t count = 0;
  for (int64_t c = 0; c < chunks; ++c)
    count += (list[c].start + list[c].rows - 1) / PAGE_TOKENS - list[c].start / PAGE_TOKENS + 1;
  PageTask* const tasks = scratchOf<PageTask>(4, count);
  int64_t* const groups = scratchOf<int64_t>(3, count + 1);
  float* const matrices = scratchOf<float>(6, 2 * headDim * padded(headDim));
  if (!tasks || !groups || !matrices) return fail(PL_OUT_OF_MEMORY, "cache_write: no memory for %lld pages", (long long)count);
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
  int64_t pageCount = 0;
  for (int64_t i = 0; i < count; ++i)
    if (i == 0 || tasks[i].page != tasks[i - 1].page) groups[pageCount++] = i;
  groups[pageCount] = count;
  const float* const queryMatrix = qMatrix ? paddedFactor(qMatrix, headDim, false, matrices) : nullptr;
  const float* const keyMatrix =
      kMatrix ? paddedFactor(kMatrix, headDim, false, matrices + headDim * padded(headDim)) : nullptr;
  const float levels = static_cast<float>((1 << (bits < 16 ? bits : 0)) - 1);
  const float factors[4] = {sigmoid1(clips[0]), sigmoid1(clips[1]), sigmoid1(clips[2]), sigmoid1(clips[3])};
  const float qmax = static_cast<float>((1 << (queryBits < 16 ? queryBits - 1 : 0)) - 1);
  std::atomic<bool> starved{false};
  const auto write = [&](const PageTask& task) {
    const int64_t half = headDim / 2;
    float* const space = scratchOf<float>(5, task.rows * heads * headDim + VL);
    uint8_t* const codes = scratchOf<uint8_t>(7, shape.wide + VL);
    if (!space || !codes) return starved.store(true, std::memory_order_relaxed);
    float* const queries = q + task.row * heads * headDim;
    float* const keys = k + task.row * kvHeads * headDim;
    const float* const values = v + task.row * kvHeads * headDim;
    const float* const c = cosine ? cosine + task.row * half : nullptr;
    const float* const s = sine ? sine + task.row * half : nullptr;
    prepareHeads(queries, task.rows, heads, headDim, qGain, epsilon, c, s, queryMatrix, space);
    prepareHeads(keys, task.rows, kvHeads, headDim, kGain, epsilon, c, s, keyMatrix, space);
    if (queryBits < 16) {
      const vf top = splat(qmax), bottom = splat(-qmax - 1.0f);
      for (int64_t h = 0; h < task.rows * heads; ++h) {
        float* const head = queries + h * headDim;
        const vf scale = splat(flooredScale(symmetricRange(head, headDim, 1.0f, 1.0f, qmax).raw, 0.0f));
        mapLanes(head, head, headDim, [&](vf x) { return scale * roundEven(vmin(vmax(x / scale, bottom), top)); });
      }
    }
    uint8_t* const page = cache + task.page * pageBytes;
    for (int64_t h = 0; h < kvHeads; ++h)
      for (int64_t r = 0; r < task.rows; ++r) {
        const int64_t at = (r * kvHeads + h) * headDim;
        writeToken(page + h * shape.bytes, shape, task.slot + r, keys + at, values + at, levels, factors, factors + 2, codes);
      }
  };
  parallel_for_dynamic(pageCount, [&](int64_t index) {
    for (int64_t i = groups[index]; i < groups[index + 1]; ++i) write(tasks[i]);
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "cache_write: no memory for the heads of a page");
  return 0;
}

}  // namespace planish::PL_LEVEL
