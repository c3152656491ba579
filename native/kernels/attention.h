// Scaled dot-product attention, tile by tile: no T×T matrix is kept. The gradient is in attention_backward.h.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1; definition: src/backend/contract/training.ts.
//
// One task per (batch, head, block of queries), walking the visible key blocks with a running maximum.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "attention_tiles.h"

namespace planish::PL_LEVEL {

constexpr int64_t kQueryBlock = 48;

/**
 * Weights exp(score − level) of one row in place, for products in T; returns their sum by lanes. `Masked` rows may hold
 * −∞, whose weight is exactly 0.
 */
template <class T, bool Masked>
PL_INLINE vf softmaxRow(float* row, int64_t wide, float level) {
  // One exponential for both: a row's weights must not depend on whether its tile is cut for another row's sake.
  const auto weigh = [level](vf score) {
    const vf weight = expNegative(score - level);
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
static int attentionForward(const AttentionShape& shape, const float* q, int64_t qBatch, int64_t qTime, int64_t qHead,
                            const float* k, const float* v, int64_t kvBatch, int64_t kvTime, int64_t kvHead, float* out,
                            int64_t outBatch, int64_t outTime, int64_t outHead, float* logSumExp) {
  const int64_t batch = shape.batch, heads = shape.heads, kvHeads = shape.kvHeads, headDim = shape.headDim;
  const int64_t queryLength = shape.queryLength, keyLength = shape.keyLength;
  const int64_t dim = padded(headDim), depth = steps<T>(headDim), keyDepth = steps<T>(kKeyBlock);
  const int64_t keyBlocks = (keyLength + kKeyBlock - 1) / kKeyBlock;
  const int64_t queryBlocks = (queryLength + kQueryBlock - 1) / kQueryBlock;
  // Keys transposed block by block, values ready for the product over keys, once for all heads of a group.
  const int64_t keyTile = depth * kKeyBlock, valueTile = keyDepth * dim;
  const int64_t tiles = batch * kvHeads * keyBlocks;
  T* const packedKeys = scratchOf<T>(0, tiles * keyTile);
  T* const packedValues = scratchOf<T>(1, tiles * valueTile);
  if (tiles > 0 && (!packedKeys || !packedValues))
    return fail(PL_OUT_OF_MEMORY, "attention: no memory to pack %lld keys", (long long)(batch * kvHeads * keyLength));
  std::atomic<bool> starved{false};
  parallel_for(tiles, [&](int64_t task) {
    T* const space = scratchOf<T>(2, keyTile);
    if (!space) return starved.store(true, std::memory_order_relaxed);
    const int64_t block = task % keyBlocks, g = task / keyBlocks % kvHeads, b = task / keyBlocks / kvHeads;
    const int64_t k0 = block * kKeyBlock;
    const int64_t count = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
    const int64_t at = b * kvBatch + k0 * kvTime + g * kvHead;
    Packer<T>::transposed(k + at, count, headDim, kvTime, packedKeys + task * keyTile, space);
    Packer<T>::depthRows(v + at, count, headDim, kvTime, packedValues + task * valueTile, dim);
  });
  parallel_for_dynamic(batch * heads * queryBlocks, [&](int64_t task) {
    // Later query blocks see more keys; they go first so that the threads finish together.
    const int64_t block = queryBlocks - 1 - task / (batch * heads);
    const int64_t h = task % heads, b = task / heads % batch;
    const int64_t q0 = block * kQueryBlock;
    const int64_t rows = queryLength - q0 < kQueryBlock ? queryLength - q0 : kQueryBlock;
    float* const work = scratchOf<float>(2, kQueryBlock * (2 * dim + kKeyBlock + VL));
    if (!work) return starved.store(true, std::memory_order_relaxed);
    T* const queries = reinterpret_cast<T*>(work);
    float* const mixed = work + kQueryBlock * dim;
    float* const scores = mixed + kQueryBlock * dim;
    float* const totals = scores + kQueryBlock * kKeyBlock;  // by lanes
    float top[kQueryBlock];
    Packer<T>::rows(q + b * qBatch + q0 * qTime + h * qHead, rows, headDim, qTime, queries, dim, shape.scale);
    std::memset(mixed, 0, static_cast<size_t>(rows * dim) * 4);
    std::memset(totals, 0, static_cast<size_t>(rows * VL) * 4);
    for (int64_t r = 0; r < rows; ++r) top[r] = -INFINITY;
    const int64_t firstVisible = shape.firstKey(q0), endVisible = shape.lastKey(q0 + rows - 1);
    const int64_t tileBase = (b * kvHeads + shape.kvHeadOf(h)) * keyBlocks;
    for (int64_t j = firstVisible / kKeyBlock; j * kKeyBlock < endVisible; ++j) {
      const int64_t k0 = j * kKeyBlock;
      const int64_t present = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
      const T* const keys = packedKeys + (tileBase + j) * keyTile;
      const T* const values = packedValues + (tileBase + j) * valueTile;
      const bool cut =
          present < kKeyBlock || shape.lastKey(q0) < k0 + kKeyBlock || shape.firstKey(q0 + rows - 1) > k0;
      const int64_t strip = cut ? kMaskStrip : rows;
      for (int64_t r0 = 0; r0 < rows; r0 += strip) {
        const int64_t m = rows - r0 < strip ? rows - r0 : strip;
        const int64_t seen = shape.lastKey(q0 + r0 + m - 1) - k0;
        const int64_t width = seen < present ? seen : present;
        if (width <= 0) continue;
        const int64_t wide = padded(width);
        float* const tile = scores + r0 * kKeyBlock;
        smallProduct<T, false>(m, wide, depth, queries + r0 * dim, dim, keys, kKeyBlock, tile, kKeyBlock, false);
        for (int64_t r = 0; r < m; ++r) {
          float* const row = tile + r * kKeyBlock;
          float* const total = totals + (r0 + r) * VL;
          if (shape.softcap > 0.0f) capRow(row, wide, shape.softcap);
          if (cut) maskRow(row, q0 + r0 + r, k0, wide, shape, -INFINITY);
          vf best = load(row);
          for (int64_t i = VL; i < wide; i += VL) best = vmax(best, load(row + i));
          const float highest = maxLanes(best), before = top[r0 + r];
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
          store(total, load(total) + (cut ? softmaxRow<T, true>(row, wide, level) : softmaxRow<T, false>(row, wide, level)));
        }
        smallProduct<T, false>(m, dim, steps<T>(width), reinterpret_cast<const T*>(tile), kKeyBlock, values, dim,
                               mixed + r0 * dim, dim, true);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float total = sumLanes(load(totals + r * VL));
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      const float* const row = mixed + r * dim;
      float* const o = out + b * outBatch + (q0 + r) * outTime + h * outHead;
      mapLanes(row, o, headDim, [&](vf x) { return x * inverse; });
      if (logSumExp)
        logSumExp[(b * heads + h) * queryLength + q0 + r] = total == 0.0f ? -INFINITY : top[r] + std::log(total);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "attention: no memory for a tile");
  return 0;
}

/** `half`: products of bfloat16 pairs, where the level has them. */
inline int attention(int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim, int64_t queryLength,
                     int64_t keyLength, int32_t causal, int64_t window, float scale, float softcap,
                              const float* q, int64_t qBatch,
                     int64_t qTime, int64_t qHead, const float* k, const float* v, int64_t kvBatch, int64_t kvTime,
                     int64_t kvHead, float* out, int64_t outBatch, int64_t outTime, int64_t outHead, float* logSumExp,
                     int32_t half) {
  const AttentionShape shape{batch, heads, kvHeads, headDim, queryLength, keyLength, window, causal != 0, scale, softcap};
#if defined(PL_PAIRS)
  if (half)
    return attentionForward<Pair>(shape, q, qBatch, qTime, qHead, k, v, kvBatch, kvTime, kvHead, out, outBatch, outTime,
                                  outHead, logSumExp);
#endif
  (void)half;
  return attentionForward<float>(shape, q, qBatch, qTime, qHead, k, v, kvBatch, kvTime, kvHead, out, outBatch, outTime,
                                 outHead, logSumExp);
}

}  // namespace planish::PL_LEVEL
