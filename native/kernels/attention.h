// Scaled dot-product attention, forward and backward, tile by tile: no T×T matrix is kept.
// Sources: Dao et al. 2022 (FlashAttention), algorithms 1 and 4; definitions: src/backend/backend.ts.
//
// Forward: one task per (batch, head, block of queries), walking the visible key blocks with a running maximum.
// Backward: one task per (batch, KV head, share of the key blocks). A task owns its keys' gradients and walks the
// group's heads and the queries that see each key block, so every sum has one order. When there are fewer KV heads
// than threads need, the key blocks are dealt to several shares, whose query gradients are added up afterwards.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "tile.h"

namespace planish::PL_LEVEL {

constexpr int64_t kQueryBlock = 48;
constexpr int64_t kKeyBlock = 64;
constexpr int64_t kBackwardQueryBlock = 64;
// A tile that the mask cuts is computed in strips of this many queries, each up to its own last key.
constexpr int64_t kMaskStrip = 16;

/** Everything about an attention call but its tensors. */
struct AttentionShape {
  int64_t batch, heads, kvHeads, headDim, queryLength, keyLength, window;
  bool causal;
  float scale;

  /** One past the last key that query t sees. */
  int64_t lastKey(int64_t t) const {
    if (!causal) return keyLength;
    const int64_t end = t + keyLength - queryLength + 1;
    return end < 0 ? 0 : end > keyLength ? keyLength : end;
  }
  int64_t firstKey(int64_t t) const {
    if (window <= 0) return 0;
    const int64_t first = t + keyLength - queryLength + 1 - window, end = lastKey(t);
    return first < 0 ? 0 : first > end ? end : first;
  }
  int64_t kvHeadOf(int64_t head) const { return head * kvHeads / heads; }
  /** First query head of KV head g; g = kvHeads gives `heads`. */
  int64_t firstHead(int64_t g) const { return (g * heads + kvHeads - 1) / kvHeads; }
};

/** Writes `value` to keys of a row of scores that query t must not see; the row starts at key `k0`. */
static PL_INLINE void maskRow(float* row, int64_t t, int64_t k0, int64_t count,
                              const AttentionShape& shape, float value) {
  const int64_t first = shape.firstKey(t) - k0, last = shape.lastKey(t) - k0;
  for (int64_t j = 0; j < first && j < count; ++j) row[j] = value;
  for (int64_t j = last < 0 ? 0 : last; j < count; ++j) row[j] = value;
}

/** Copies `count` rows of a strided head into dense rows of `ld` floats, times `factor`. */
static PL_INLINE void packHead(const float* x, int64_t count, int64_t dim, int64_t stride, float* out,
                               int64_t ld, float factor) {
  for (int64_t r = 0; r < count; ++r) {
    const float* row = x + r * stride;
    float* o = out + r * ld;
    int64_t d = 0;
    for (; d + VL <= dim; d += VL) store(o + d, load(row + d) * factor);
    if (d < dim) store(o + d, loadPart(row + d, dim - d) * factor);
  }
}

inline int attention(int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim, int64_t queryLength,
                     int64_t keyLength, int32_t causal, int64_t window, float scale, const float* q,
                     int64_t qBatch, int64_t qTime, int64_t qHead, const float* k, const float* v,
                     int64_t kvBatch, int64_t kvTime, int64_t kvHead, float* out, int64_t outBatch,
                     int64_t outTime, int64_t outHead, float* logSumExp) {
  const AttentionShape shape{batch, heads, kvHeads, headDim, queryLength, keyLength, window, causal != 0, scale};
  const int64_t dim = padded(headDim);
  const int64_t keyBlocks = (keyLength + kKeyBlock - 1) / kKeyBlock;
  const int64_t queryBlocks = (queryLength + kQueryBlock - 1) / kQueryBlock;
  // Keys transposed block by block [headDim][kKeyBlock], values as dense rows, once for all heads of a group.
  const int64_t keyTile = headDim * kKeyBlock, valueTile = kKeyBlock * dim;
  const int64_t tiles = batch * kvHeads * keyBlocks;
  float* const packedKeys = scratchOf<float>(0, tiles * keyTile);
  float* const packedValues = scratchOf<float>(1, tiles * valueTile);
  if (tiles > 0 && (!packedKeys || !packedValues))
    return fail(PL_OUT_OF_MEMORY, "attention: no memory to pack %lld keys", (long long)(batch * kvHeads * keyLength));
  parallel_for(tiles, [&](int64_t task) {
    const int64_t block = task % keyBlocks, g = task / keyBlocks % kvHeads, b = task / keyBlocks / kvHeads;
    const int64_t k0 = block * kKeyBlock;
    const int64_t count = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
    const int64_t at = b * kvBatch + k0 * kvTime + g * kvHead;
    copyTransposed(k + at, count, headDim, kvTime, packedKeys + task * keyTile, kKeyBlock);
    packHead(v + at, count, headDim, kvTime, packedValues + task * valueTile, dim, 1.0f);
  });
  std::atomic<bool> starved{false};
  parallel_for_dynamic(batch * heads * queryBlocks, [&](int64_t task) {
    // Later query blocks see more keys; they go first so that the threads finish together.
    const int64_t block = queryBlocks - 1 - task / (batch * heads);
    const int64_t h = task % heads, b = task / heads % batch;
    const int64_t q0 = block * kQueryBlock;
    const int64_t rows = queryLength - q0 < kQueryBlock ? queryLength - q0 : kQueryBlock;
    float* const work = scratchOf<float>(2, kQueryBlock * (2 * dim + kKeyBlock));
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const queries = work;
    float* const mixed = queries + kQueryBlock * dim;
    float* const scores = mixed + kQueryBlock * dim;
    float top[kQueryBlock], total[kQueryBlock];
    packHead(q + b * qBatch + q0 * qTime + h * qHead, rows, headDim, qTime, queries, dim, scale);
    std::memset(mixed, 0, static_cast<size_t>(rows * dim) * 4);
    for (int64_t r = 0; r < rows; ++r) {
      top[r] = -INFINITY;
      total[r] = 0.0f;
    }
    const int64_t firstVisible = shape.firstKey(q0), endVisible = shape.lastKey(q0 + rows - 1);
    const int64_t tileBase = (b * kvHeads + shape.kvHeadOf(h)) * keyBlocks;
    for (int64_t j = firstVisible / kKeyBlock; j * kKeyBlock < endVisible; ++j) {
      const int64_t k0 = j * kKeyBlock;
      const int64_t present = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
      const float* const keys = packedKeys + (tileBase + j) * keyTile;
      const float* const values = packedValues + (tileBase + j) * valueTile;
      const bool cut = present < kKeyBlock || shape.lastKey(q0) < k0 + kKeyBlock || shape.firstKey(q0 + rows - 1) > k0;
      const int64_t strip = cut ? kMaskStrip : rows;
      for (int64_t r0 = 0; r0 < rows; r0 += strip) {
        const int64_t m = rows - r0 < strip ? rows - r0 : strip;
        const int64_t seen = shape.lastKey(q0 + r0 + m - 1) - k0;
        const int64_t width = seen < present ? seen : present;
        if (width <= 0) continue;
        const int64_t wide = padded(width);
        float* const tile = scores + r0 * kKeyBlock;
        smallProduct<float, false>(m, wide, headDim, queries + r0 * dim, dim, keys, kKeyBlock, tile, kKeyBlock, false);
        for (int64_t r = 0; r < m; ++r) {
          float* const row = tile + r * kKeyBlock;
          if (cut) maskRow(row, q0 + r0 + r, k0, wide, shape, -INFINITY);
          vf best = load(row);
          for (int64_t i = VL; i < wide; i += VL) best = vmax(best, load(row + i));
          const float highest = maxLanes(best), before = top[r0 + r];
          if (highest > before) {
            top[r0 + r] = highest;
            if (total[r0 + r] != 0.0f) {
              const float shrink = std::exp(before - highest);
              total[r0 + r] *= shrink;
              float* const o = mixed + (r0 + r) * dim;
              for (int64_t d = 0; d < dim; d += VL) store(o + d, load(o + d) * shrink);
            }
          }
          // Where nothing is visible yet, the maximum is −∞ and the weights must come out as 0, not NaN.
          const float level = top[r0 + r] == -INFINITY ? 0.0f : top[r0 + r];
          vf sum = vf{};
          for (int64_t i = 0; i < wide; i += VL) {
            const vf weight = expv(load(row + i) - level);
            store(row + i, weight);
            sum += weight;
          }
          total[r0 + r] += sumLanes(sum);
        }
        smallProduct<float, false>(m, dim, width, tile, kKeyBlock, values, dim, mixed + r0 * dim, dim, true);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = total[r] == 0.0f ? 0.0f : 1.0f / total[r];
      const float* const row = mixed + r * dim;
      float* const o = out + b * outBatch + (q0 + r) * outTime + h * outHead;
      mapLanes(row, o, headDim, [&](vf x) { return x * inverse; });
      if (logSumExp)
        logSumExp[(b * heads + h) * queryLength + q0 + r] =
            total[r] == 0.0f ? -INFINITY : top[r] + std::log(total[r]);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "attention: no memory for a tile");
  return 0;
}

/** Tiles of one backward task, all in one block of scratch. */
struct BackwardTiles {
  float *keys, *keysT, *valuesT, *gradK, *gradV;        // key side
  float *queries, *grads, *weights, *gradScores;         // query side
  float *delta, *lse;
  static int64_t floats(int64_t headDim, int64_t dim) {
    return 3 * kKeyBlock * dim + 2 * headDim * kKeyBlock + 2 * kBackwardQueryBlock * dim +
           2 * kBackwardQueryBlock * kKeyBlock + 2 * kBackwardQueryBlock;
  }
  BackwardTiles(float* p, int64_t headDim, int64_t dim) {
    const auto take = [&p](int64_t count) {
      float* const start = p;
      p += count;
      return start;
    };
    keys = take(kKeyBlock * dim);
    gradK = take(kKeyBlock * dim);
    gradV = take(kKeyBlock * dim);
    keysT = take(headDim * kKeyBlock);
    valuesT = take(headDim * kKeyBlock);
    queries = take(kBackwardQueryBlock * dim);
    grads = take(kBackwardQueryBlock * dim);
    weights = take(kBackwardQueryBlock * kKeyBlock);
    gradScores = take(kBackwardQueryBlock * kKeyBlock);
    delta = take(kBackwardQueryBlock);
    lse = take(kBackwardQueryBlock);
  }
};

inline int attention_backward(int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim,
                              int64_t queryLength, int64_t keyLength, int32_t causal, int64_t window,
                              float scale, const float* q, int64_t qBatch, int64_t qTime, int64_t qHead,
                              const float* k, const float* v, int64_t kvBatch, int64_t kvTime,
                              int64_t kvHead, const float* out, const float* grad, int64_t outBatch,
                              int64_t outTime, int64_t outHead, const float* logSumExp, float* gradQ,
                              float* gradK, float* gradV) {
  const AttentionShape shape{batch, heads, kvHeads, headDim, queryLength, keyLength, window, causal != 0, scale};
  const int64_t dim = padded(headDim);
  const int64_t keyBlocks = (keyLength + kKeyBlock - 1) / kKeyBlock;
  const int64_t items = batch * kvHeads;
  // Shares of key blocks: enough tasks to keep the threads level, at most 8 copies of gradQ.
  int64_t shares = 1;
  if (thread_count() > 1) {
    shares = (4 * thread_count() + items - 1) / (items > 0 ? items : 1);
    if (shares > 8) shares = 8;
    if (shares > keyBlocks) shares = keyBlocks;
    if (shares < 1) shares = 1;
  }
  // Query gradients are gathered in dense rows [share][batch][head][query][dim].
  const int64_t queryFloats = batch * heads * queryLength * dim;
  float* const partial = scratchOf<float>(0, shares * queryFloats);
  float* const deltas = scratchOf<float>(1, batch * heads * queryLength);
  if (!partial || !deltas)
    return fail(PL_OUT_OF_MEMORY, "attention_backward: no memory for %lld query gradients", (long long)(shares * queryFloats));
  parallel_ranges(batch * heads * queryLength, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % queryLength, h = i / queryLength % heads, b = i / queryLength / heads;
      const int64_t at = b * outBatch + t * outTime + h * outHead;
      vf sum = vf{};
      int64_t d = 0;
      for (; d + VL <= headDim; d += VL) sum = fma(load(grad + at + d), load(out + at + d), sum);
      if (d < headDim) sum = fma(loadPart(grad + at + d, headDim - d), loadPart(out + at + d, headDim - d), sum);
      deltas[i] = sumLanes(sum);
    }
  });
  std::atomic<bool> starved{false};
  parallel_for_dynamic(items * shares, [&](int64_t task) {
    const int64_t share = task % shares, g = task / shares % kvHeads, b = task / shares / kvHeads;
    float* const work = scratchOf<float>(2, BackwardTiles::floats(headDim, dim));
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    BackwardTiles tiles(work, headDim, dim);
    const int64_t headBegin = shape.firstHead(g), headEnd = shape.firstHead(g + 1);
    float* const queryGrads = partial + share * queryFloats + b * heads * queryLength * dim;
    std::memset(queryGrads + headBegin * queryLength * dim, 0,
                static_cast<size_t>((headEnd - headBegin) * queryLength * dim) * 4);
    for (int64_t j = share; j < keyBlocks; j += shares) {
      const int64_t k0 = j * kKeyBlock;
      const int64_t count = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
      const int64_t at = b * kvBatch + k0 * kvTime + g * kvHead;
      packHead(k + at, count, headDim, kvTime, tiles.keys, dim, 1.0f);
      copyTransposed(k + at, count, headDim, kvTime, tiles.keysT, kKeyBlock);
      copyTransposed(v + at, count, headDim, kvTime, tiles.valuesT, kKeyBlock);
      std::memset(tiles.gradK, 0, static_cast<size_t>(kKeyBlock * dim) * 4);
      std::memset(tiles.gradV, 0, static_cast<size_t>(kKeyBlock * dim) * 4);
      for (int64_t h = headBegin; h < headEnd; ++h) {
        for (int64_t q0 = 0; q0 < queryLength; q0 += kBackwardQueryBlock) {
          const int64_t rows = queryLength - q0 < kBackwardQueryBlock ? queryLength - q0 : kBackwardQueryBlock;
          if (shape.lastKey(q0 + rows - 1) <= k0 || shape.firstKey(q0) >= k0 + count) continue;
          packHead(q + b * qBatch + q0 * qTime + h * qHead, rows, headDim, qTime, tiles.queries, dim, 1.0f);
          packHead(grad + b * outBatch + q0 * outTime + h * outHead, rows, headDim, outTime, tiles.grads, dim, 1.0f);
          const int64_t row0 = (b * heads + h) * queryLength + q0;
          const bool cut = count < kKeyBlock || shape.lastKey(q0) < k0 + kKeyBlock || shape.firstKey(q0 + rows - 1) > k0;
          const int64_t strip = cut ? kMaskStrip : rows;
          for (int64_t r0 = 0; r0 < rows; r0 += strip) {
            const int64_t m = rows - r0 < strip ? rows - r0 : strip;
            const int64_t seen = shape.lastKey(q0 + r0 + m - 1) - k0;
            const int64_t width = seen < count ? seen : count;
            if (width <= 0) continue;
            const int64_t wide = padded(width);
            float* const weights = tiles.weights + r0 * kKeyBlock;
            float* const gradScores = tiles.gradScores + r0 * kKeyBlock;
            const float* const queries = tiles.queries + r0 * dim;
            const float* const grads = tiles.grads + r0 * dim;
            smallProduct<float, false>(m, wide, headDim, queries, dim, tiles.keysT, kKeyBlock, weights, kKeyBlock, false);
            smallProduct<float, false>(m, wide, headDim, grads, dim, tiles.valuesT, kKeyBlock, gradScores, kKeyBlock, false);
            for (int64_t r = 0; r < m; ++r) {
              float* const w = weights + r * kKeyBlock;
              float* const ds = gradScores + r * kKeyBlock;
              const float lse = logSumExp[row0 + r0 + r], delta = deltas[row0 + r0 + r];
              for (int64_t i = 0; i < wide; i += VL) {
                const vf p = expv(load(w + i) * scale - lse);
                store(w + i, p);
                store(ds + i, p * (load(ds + i) - delta) * scale);
              }
              if (cut) {
                maskRow(w, q0 + r0 + r, k0, wide, shape, 0.0f);
                maskRow(ds, q0 + r0 + r, k0, wide, shape, 0.0f);
              }
            }
            smallProduct<float, true>(width, dim, m, weights, kKeyBlock, grads, dim, tiles.gradV, dim, true);
            smallProduct<float, true>(width, dim, m, gradScores, kKeyBlock, queries, dim, tiles.gradK, dim, true);
            smallProduct<float, false>(m, dim, width, gradScores, kKeyBlock, tiles.keys, dim,
                                       queryGrads + (h * queryLength + q0 + r0) * dim, dim, true);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        std::memcpy(gradK + at + r * kvTime, tiles.gradK + r * dim, static_cast<size_t>(headDim) * 4);
        std::memcpy(gradV + at + r * kvTime, tiles.gradV + r * dim, static_cast<size_t>(headDim) * 4);
      }
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "attention_backward: no memory for a tile");
  parallel_ranges(batch * heads * queryLength, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % queryLength, h = i / queryLength % heads, b = i / queryLength / heads;
      float* const o = gradQ + b * qBatch + t * qTime + h * qHead;
      const float* const p = partial + i * dim;
      for (int64_t d = 0; d < headDim; d += VL) {
        vf sum = load(p + d);
        for (int64_t s = 1; s < shares; ++s) sum += load(p + s * queryFloats + d);
        if (d + VL <= headDim) store(o + d, sum);
        else storePart(o + d, sum, headDim - d);
      }
    }
  });
  return 0;
}

}  // namespace planish::PL_LEVEL
