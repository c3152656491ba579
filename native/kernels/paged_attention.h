// Attention of a step's queries over the paged cache (cache.h): grouped heads, causal, with an optional window.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1, as in attention.h.
//
// One task per (chunk, KV head, block of queries): each page's keys and values become f32 tiles, scale·(code − zero) as
// the simulated model rounds them, for all query heads of the group. Prefill and decoding take the same steps in the
// same order (pages lie at fixed positions, what a query may not see has weight exactly 0), so that a row's bits do
// not depend on how the prompt was cut or what else is in the step. They are the steps of `attention` in f32, whose key
// blocks are as long as a page: over the same keys and values both give the same bits.
#pragma once

#include "attention_tiles.h"
#include "cache.h"

namespace planish::PL_LEVEL {

/** Rows (queries × heads of a group) per task. */
constexpr int64_t kTaskRows = 96;

/** VL bytes as integers. */
static PL_INLINE vi bytesAt(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  vi x;
  for (int l = 0; l < VL; ++l) x[l] = p[l];
  return x;
#endif
}
static PL_INLINE vf asFloats(vi x) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps((__m512i)x);
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps((__m256i)x);
#else
  return __builtin_convertvector(x, vf);
#endif
}

static PL_INLINE vf halvesAt(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  uint16_t bits[VL];
  std::memcpy(bits, p, sizeof bits);
  vf x;
  for (int l = 0; l < VL; ++l) x[l] = float_of_half(bits[l]);
  return x;
#endif
}

/** Keys of a page, [headDim][kPageTokens]. */
static inline void unpackKeys(const uint8_t* head, const CacheShape& shape, float* tile) {
  if (shape.stored == 16) {
    for (int64_t d = 0; d < shape.headDim; ++d)
      for (int64_t i = 0; i < kPageTokens; i += VL)
        store(tile + d * kPageTokens + i, halvesAt(head + d * shape.keyRow + i * 2));
    return;
  }
  constexpr int64_t vectors = kPageTokens / VL;
  vf scale[vectors], zero[vectors];
  for (int64_t i = 0; i < vectors; ++i) {
    scale[i] = load(reinterpret_cast<const float*>(head + shape.keyScale) + i * VL);
    zero[i] = asFloats(bytesAt(head + shape.keyZero + i * VL));
  }
  if (shape.stored == 4) {
    for (int64_t d = 0; d < shape.headDim; ++d) {
      const uint8_t* const row = head + d * shape.keyRow;
      float* const out = tile + d * kPageTokens;
#pragma GCC unroll 2
      for (int64_t i = 0; i < vectors / 2; ++i) {
        const vi both = bytesAt(row + i * VL);
        const int64_t j = i + vectors / 2;
        store(out + i * VL, scale[i] * (asFloats(both & 15) - zero[i]));
        store(out + j * VL, scale[j] * (asFloats(both >> 4) - zero[j]));
      }
    }
    return;
  }
  for (int64_t d = 0; d < shape.headDim; ++d) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < vectors; ++i)
      store(tile + d * kPageTokens + i * VL, scale[i] * (asFloats(bytesAt(head + d * shape.keyRow + i * VL)) - zero[i]));
  }
}

/** The first `count` values of a page, [count][wide]. */
static inline void unpackValues(const uint8_t* head, const CacheShape& shape, int64_t count, float* tile) {
  const uint8_t* const values = head + shape.values;
  if (shape.stored == 16) {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t d = 0; d < shape.wide; d += VL) store(tile + t * shape.wide + d, halvesAt(values + t * shape.valueRow + d * 2));
    return;
  }
  const float* const scales = reinterpret_cast<const float*>(head + shape.valueScale);
  const uint8_t* const zeros = head + shape.valueZero;
  const int64_t half = shape.wide / 2;
  for (int64_t t = 0; t < count; ++t) {
    const vf scale = splat(scales[t]), zero = splat(static_cast<float>(zeros[t]));
    const uint8_t* const row = values + t * shape.valueRow;
    float* const out = tile + t * shape.wide;
    if (shape.stored == 4) {
      for (int64_t d = 0; d < half; d += VL) {
        const vi both = bytesAt(row + d);
        store(out + d, scale * (asFloats(both & 15) - zero));
        store(out + half + d, scale * (asFloats(both >> 4) - zero));
      }
    } else {
      for (int64_t d = 0; d < shape.wide; d += VL) store(out + d, scale * (asFloats(bytesAt(row + d)) - zero));
    }
  }
}

/** Queries [begin, end) of a chunk with one KV head. */
struct AttentionTask {
  int32_t chunk, head, begin, end;
};

/**
 * q: [rows, heads·headDim] as cache_write left it; out: the same shape. `table`, `pages`, `cache`, `pageBytes`, `bits`:
 * as for cache_write, which has stored this step's keys and values. window: keys further back are not seen; 0: all are.
 */
inline int paged_attention(int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kvHeads,
                           int64_t headDim, int64_t window, float scale, const float* q, int32_t bits,
                           const uint8_t* cache, int64_t pageBytes, float* out) {
  const CacheChunk* const list = reinterpret_cast<const CacheChunk*>(table);
  const CacheShape shape(headDim, bits);
  const int64_t group = (heads + kvHeads - 1) / kvHeads;
  const int64_t most = kTaskRows / group > 0 ? kTaskRows / group : 1;
  int64_t count = 0;
  for (int64_t c = 0; c < chunks; ++c) count += (list[c].rows + most - 1) / most * kvHeads;
  AttentionTask* const tasks = scratchOf<AttentionTask>(4, count);
  if (!tasks) return fail(PL_OUT_OF_MEMORY, "paged_attention: no memory for %lld tasks", (long long)count);
  int64_t made = 0;
  // Later queries see more keys; they go first so that the threads finish together.
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t end = list[c].rows; end > 0; end -= most)
      for (int64_t h = 0; h < kvHeads; ++h)
        tasks[made++] = AttentionTask{static_cast<int32_t>(c), static_cast<int32_t>(h),
                                      static_cast<int32_t>(end > most ? end - most : 0), static_cast<int32_t>(end)};
  const AttentionShape mapping{1, heads, kvHeads, headDim, 0, 0, 0, true, scale};
  const int64_t wide = shape.wide;
  std::atomic<bool> starved{false};
  parallel_for_dynamic(count, [&](int64_t index) {
    const AttentionTask& task = tasks[index];
    const CacheChunk& chunk = list[task.chunk];
    const int64_t firstHead = mapping.firstHead(task.head), taskHeads = mapping.firstHead(task.head + 1) - firstHead;
    const int64_t tokens = task.end - task.begin, rows = tokens * taskHeads;
    float* const work = scratchOf<float>(5, rows * (headDim + wide + kPageTokens + VL + 1) + kPageTokens * (headDim + wide) + VL);
    if (!work) return starved.store(true, std::memory_order_relaxed);
    float* const keys = work;
    float* const values = keys + kPageTokens * headDim;
    float* const mixed = values + kPageTokens * wide;
    float* const scores = mixed + rows * wide;
    float* const totals = scores + rows * kPageTokens;  // by lanes
    float* const top = totals + rows * VL;
    float* const queries = top + rows;
    // Row r: token r / taskHeads, head r % taskHeads.
    for (int64_t r = 0; r < rows; ++r) {
      const float* const from = q + ((chunk.row + task.begin + r / taskHeads) * heads + firstHead + r % taskHeads) * headDim;
      mapLanes(from, queries + r * headDim, headDim, [&](vf x) { return x * scale; });
      top[r] = -INFINITY;
    }
    std::memset(mixed, 0, static_cast<size_t>(rows * wide) * 4);
    std::memset(totals, 0, static_cast<size_t>(rows * VL) * 4);
    const int64_t firstPosition = chunk.start + task.begin, endPosition = chunk.start + task.end;
    const int64_t firstVisible = window > 0 && firstPosition >= window ? firstPosition - window + 1 : 0;
    for (int64_t j = firstVisible / kPageTokens; j * kPageTokens < endPosition; ++j) {
      const int64_t k0 = j * kPageTokens;
      const int64_t width = endPosition - k0 < kPageTokens ? endPosition - k0 : kPageTokens;
      const uint8_t* const head = cache + pages[chunk.pages + j] * pageBytes + task.head * shape.bytes;
      unpackKeys(head, shape, keys);
      unpackValues(head, shape, width, values);
      const int64_t lanes = padded(width);
      // Queries before this page see nothing of it.
      const int64_t blind = k0 > firstPosition ? (k0 - firstPosition) * taskHeads : 0;
      smallProduct<float, false>(rows - blind, lanes, headDim, queries + blind * headDim, headDim, keys, kPageTokens,
                                 scores + blind * kPageTokens, kPageTokens, false);
      for (int64_t r = blind; r < rows; ++r) {
        float* const row = scores + r * kPageTokens;
        const int64_t position = firstPosition + r / taskHeads;
        const int64_t end = position - k0 + 1 < width ? position - k0 + 1 : width;
        const int64_t begin = window > 0 && position - window + 1 > k0 ? position - window + 1 - k0 : 0;
        for (int64_t i = 0; i < begin && i < lanes; ++i) row[i] = -INFINITY;
        for (int64_t i = end; i < lanes; ++i) row[i] = -INFINITY;
        vf best = load(row);
        for (int64_t i = VL; i < lanes; i += VL) best = vmax(best, load(row + i));
        const float highest = maxLanes(best), before = top[r];
        float* const total = totals + r * VL;
        if (highest > before) {
          top[r] = highest;
          if (before != -INFINITY) {
            const float shrink = std::exp(before - highest);
            store(total, load(total) * shrink);
            float* const o = mixed + r * wide;
            for (int64_t d = 0; d < wide; d += VL) store(o + d, load(o + d) * shrink);
          }
        }
        const float level = top[r] == -INFINITY ? 0.0f : top[r];
        vf sum = vf{};
        for (int64_t i = 0; i < lanes; i += VL) {
          const vf score = load(row + i);
          const vf weight = score == -INFINITY ? vf{} : expNegative(score - level);
          store(row + i, weight);
          sum += weight;
        }
        store(total, load(total) + sum);
      }
      smallProduct<float, false>(rows - blind, wide, width, scores + blind * kPageTokens, kPageTokens, values, wide,
                                 mixed + blind * wide, wide, true);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float total = sumLanes(load(totals + r * VL));
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      float* const o = out + ((chunk.row + task.begin + r / taskHeads) * heads + firstHead + r % taskHeads) * headDim;
      mapLanes(mixed + r * wide, o, headDim, [&](vf x) { return x * inverse; });
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "paged_attention: no memory for a tile");
  return 0;
}

}  // namespace planish::PL_LEVEL
