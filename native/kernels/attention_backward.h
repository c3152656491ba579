// Gradient of attention from the saved logSumExp. Source: Dao et al. 2022 (FlashAttention), algorithm 4.
//
// One task per (batch, KV head, share of the key blocks). A task owns its keys' gradients and walks the group's heads
// and the queries that see each key block, so every sum has one order. When there are fewer KV heads than the threads
// need, the key blocks are dealt to several shares, whose query gradients are added up afterwards, in order.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "attention_tiles.h"

namespace planish::PL_LEVEL {

constexpr int64_t kBackwardQueryBlock = 64;
// Copies of gradQ that shares may ask for.
constexpr int64_t kMostShares = 8;

/**
 * Tiles of one backward task, in one block of scratch. Products read weights and score gradients in two ways: by rows of
 * queries (for dQ) and with the queries along the depth (for dK, dV). In f32 one tile serves both.
 */
template <class T>
struct BackwardTiles {
  static constexpr bool paired = !std::is_same<T, float>::value;
  T *keys, *keysT, *valuesT, *space;                  // key block: for dQ; for the scores; for dP
  float *gradK, *gradV;
  T *queries, *grads, *queriesDepth, *gradsDepth;     // query block: A side; B side
  float *weights, *gradScores;                        // products of one strip in f32
  T *weightsDepth, *gradScoresDepth, *gradScoresRows;  // the same, ready for products

  static int64_t words(int64_t headDim, int64_t dim) {
    return 3 * kKeyBlock * dim + 3 * headDim * kKeyBlock + 4 * kBackwardQueryBlock * dim +
           5 * kBackwardQueryBlock * kKeyBlock;
  }
  BackwardTiles(float* p, int64_t headDim, int64_t dim) {
    const auto take = [&p](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(p);
      p += count;
    };
    const int64_t queryTile = kBackwardQueryBlock * dim, scoreTile = kBackwardQueryBlock * kKeyBlock;
    take(keys, kKeyBlock * dim);
    take(gradK, kKeyBlock * dim);
    take(gradV, kKeyBlock * dim);
    take(keysT, headDim * kKeyBlock);
    take(valuesT, headDim * kKeyBlock);
    take(space, headDim * kKeyBlock);
    take(queries, queryTile);
    take(grads, queryTile);
    take(weights, scoreTile);
    take(gradScores, scoreTile);
    if (paired) {
      take(queriesDepth, queryTile);
      take(gradsDepth, queryTile);
      take(weightsDepth, scoreTile);
      take(gradScoresDepth, scoreTile);
      take(gradScoresRows, scoreTile);
    } else {
      queriesDepth = queries;
      gradsDepth = grads;
      weightsDepth = reinterpret_cast<T*>(weights);
      gradScoresDepth = gradScoresRows = reinterpret_cast<T*>(gradScores);
    }
  }
};

/**
 * From scores and dP of one query: weights p = exp(scale·s − lse) and score gradients p·(dP − delta)·scale, in place. A soft
 * cap acts on scale·s, and multiplies the gradient by its slope.
 */
PL_INLINE void gradientRow(float* w, float* ds, int64_t wide, float scale, float softcap, float lse, float delta) {
  if (softcap > 0.0f) {
    for (int64_t i = 0; i < wide; i += VL) {
      const vf t = tanhv(load(w + i) * (scale / softcap));
      const vf p = expNegative(softcap * t - lse);
      store(w + i, p);
      store(ds + i, p * (load(ds + i) - delta) * (1.0f - t * t) * scale);
    }
    return;
  }
  for (int64_t i = 0; i < wide; i += VL) {
    const vf p = expNegative(fma(load(w + i), splat(scale), splat(-lse)));
    store(w + i, p);
    store(ds + i, p * (load(ds + i) - delta) * scale);
  }
}

#if defined(PL_PAIRS)
/** Rows r and r+1 of weights and score gradients in the forms that products of pairs read. */
PL_INLINE void pairRows(const BackwardTiles<Pair>& tiles, int64_t r, bool both, int64_t wide) {
  const float* const w = tiles.weights + r * kKeyBlock;
  const float* const ds = tiles.gradScores + r * kKeyBlock;
  Pair* const weightsDepth = tiles.weightsDepth + r / 2 * kKeyBlock;
  Pair* const gradScoresDepth = tiles.gradScoresDepth + r / 2 * kKeyBlock;
  for (int64_t i = 0; i < wide; i += VL) {
    const vf second = both ? load(w + kKeyBlock + i) : vf{};
    _mm512_storeu_si512(weightsDepth + i, pairLanes(load(w + i), second));
    const vf low = load(ds + i), high = both ? load(ds + kKeyBlock + i) : vf{};
    _mm512_storeu_si512(gradScoresDepth + i, pairLanes(low, high));
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    Pair* const rows = tiles.gradScoresRows + r * kKeyBlock + i / 2;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(halves));
    if (both) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + kKeyBlock), _mm512_extracti64x4_epi64(halves, 1));
  }
}
#endif

template <class T>
static int attentionGradient(const AttentionShape& shape, const float* q, int64_t qBatch, int64_t qTime, int64_t qHead,
                             const float* k, const float* v, int64_t kvBatch, int64_t kvTime, int64_t kvHead,
                             const float* out, const float* grad, int64_t outBatch, int64_t outTime, int64_t outHead,
                             const float* logSumExp, float* gradQ, float* gradK, float* gradV) {
  const int64_t batch = shape.batch, heads = shape.heads, kvHeads = shape.kvHeads, headDim = shape.headDim;
  const int64_t queryLength = shape.queryLength, keyLength = shape.keyLength;
  const int64_t dim = padded(headDim), depth = steps<T>(headDim);
  const int64_t keyBlocks = (keyLength + kKeyBlock - 1) / kKeyBlock;
  const int64_t items = batch * kvHeads;
  int64_t shares = 1;
  if (thread_count() > 1) {
    shares = (4 * thread_count() + items - 1) / (items > 0 ? items : 1);
    if (shares > kMostShares) shares = kMostShares;
    if (shares > keyBlocks) shares = keyBlocks;
    if (shares < 1) shares = 1;
  }
  // Query gradients are gathered in dense rows [share][batch][head][query][dim].
  const int64_t queryFloats = batch * heads * queryLength * dim;
  float* const partial = scratchOf<float>(0, shares * queryFloats);
  float* const deltas = scratchOf<float>(1, batch * heads * queryLength);
  if (!partial || !deltas)
    return fail(PL_OUT_OF_MEMORY, "attention_backward: no memory for %lld query gradients",
                (long long)(shares * queryFloats));
  parallel_ranges(batch * heads * queryLength, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % queryLength, h = i / queryLength % heads, b = i / queryLength / heads;
      const int64_t at = b * outBatch + t * outTime + h * outHead;
      vf sum = vf{};
      for (int64_t d = 0; d < headDim; d += VL)
        sum = fma(Packer<float>::loadPartly(grad + at + d, headDim - d),
                  Packer<float>::loadPartly(out + at + d, headDim - d), sum);
      deltas[i] = sumLanes(sum);
    }
  });
  std::atomic<bool> starved{false};
  parallel_for_dynamic(items * shares, [&](int64_t task) {
    const int64_t share = task % shares, g = task / shares % kvHeads, b = task / shares / kvHeads;
    float* const work = scratchOf<float>(2, BackwardTiles<T>::words(headDim, dim));
    if (!work) return starved.store(true, std::memory_order_relaxed);
    const BackwardTiles<T> tiles(work, headDim, dim);
    const int64_t headBegin = shape.firstHead(g), headEnd = shape.firstHead(g + 1);
    float* const queryGrads = partial + share * queryFloats + b * heads * queryLength * dim;
    std::memset(queryGrads + headBegin * queryLength * dim, 0,
                static_cast<size_t>((headEnd - headBegin) * queryLength * dim) * 4);
    for (int64_t j = share; j < keyBlocks; j += shares) {
      const int64_t k0 = j * kKeyBlock;
      const int64_t count = keyLength - k0 < kKeyBlock ? keyLength - k0 : kKeyBlock;
      const int64_t at = b * kvBatch + k0 * kvTime + g * kvHead;
      Packer<T>::depthRows(k + at, count, headDim, kvTime, tiles.keys, dim);
      Packer<T>::transposed(k + at, count, headDim, kvTime, tiles.keysT, tiles.space);
      Packer<T>::transposed(v + at, count, headDim, kvTime, tiles.valuesT, tiles.space);
      std::memset(tiles.gradK, 0, static_cast<size_t>(kKeyBlock * dim) * 4);
      std::memset(tiles.gradV, 0, static_cast<size_t>(kKeyBlock * dim) * 4);
      for (int64_t h = headBegin; h < headEnd; ++h) {
        for (int64_t q0 = 0; q0 < queryLength; q0 += kBackwardQueryBlock) {
          const int64_t rows = queryLength - q0 < kBackwardQueryBlock ? queryLength - q0 : kBackwardQueryBlock;
          if (shape.lastKey(q0 + rows - 1) <= k0 || shape.firstKey(q0) >= k0 + count) continue;
          const float* const qRows = q + b * qBatch + q0 * qTime + h * qHead;
          const float* const gRows = grad + b * outBatch + q0 * outTime + h * outHead;
          Packer<T>::rows(qRows, rows, headDim, qTime, tiles.queries, dim, 1.0f);
          Packer<T>::rows(gRows, rows, headDim, outTime, tiles.grads, dim, 1.0f);
          if (BackwardTiles<T>::paired) {
            Packer<T>::depthRows(qRows, rows, headDim, qTime, tiles.queriesDepth, dim);
            Packer<T>::depthRows(gRows, rows, headDim, outTime, tiles.gradsDepth, dim);
          }
          const int64_t row0 = (b * heads + h) * queryLength + q0;
          const bool cut =
              count < kKeyBlock || shape.lastKey(q0) < k0 + kKeyBlock || shape.firstKey(q0 + rows - 1) > k0;
          const int64_t strip = cut ? kMaskStrip : rows;
          for (int64_t r0 = 0; r0 < rows; r0 += strip) {
            const int64_t m = rows - r0 < strip ? rows - r0 : strip;
            const int64_t seen = shape.lastKey(q0 + r0 + m - 1) - k0;
            const int64_t width = seen < count ? seen : count;
            if (width <= 0) continue;
            const int64_t wide = padded(width);
            smallProduct<T, false>(m, wide, depth, tiles.queries + r0 * dim, dim, tiles.keysT, kKeyBlock,
                                   tiles.weights + r0 * kKeyBlock, kKeyBlock, false);
            smallProduct<T, false>(m, wide, depth, tiles.grads + r0 * dim, dim, tiles.valuesT, kKeyBlock,
                                   tiles.gradScores + r0 * kKeyBlock, kKeyBlock, false);
            for (int64_t r = r0; r < r0 + m; ++r) {
              float* const w = tiles.weights + r * kKeyBlock;
              float* const ds = tiles.gradScores + r * kKeyBlock;
              gradientRow(w, ds, wide, shape.scale, shape.softcap, logSumExp[row0 + r], deltas[row0 + r]);
              if (cut) {
                maskRow(w, q0 + r, k0, wide, shape, 0.0f);
                maskRow(ds, q0 + r, k0, wide, shape, 0.0f);
              }
#if defined(PL_PAIRS)
              if constexpr (BackwardTiles<T>::paired) {
                if (r % 2 == 1) pairRows(tiles, r - 1, true, wide);
                else if (r == r0 + m - 1) pairRows(tiles, r, false, wide);
              }
#endif
            }
            const int64_t at0 = steps<T>(r0);
            smallProduct<T, true>(width, dim, steps<T>(m), tiles.weightsDepth + at0 * kKeyBlock, kKeyBlock,
                                  tiles.gradsDepth + at0 * dim, dim, tiles.gradV, dim, true);
            smallProduct<T, true>(width, dim, steps<T>(m), tiles.gradScoresDepth + at0 * kKeyBlock, kKeyBlock,
                                  tiles.queriesDepth + at0 * dim, dim, tiles.gradK, dim, true);
            smallProduct<T, false>(m, dim, steps<T>(width), tiles.gradScoresRows + r0 * kKeyBlock, kKeyBlock,
                                   tiles.keys, dim, queryGrads + (h * queryLength + q0 + r0) * dim, dim, true);
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
        else store_part(o + d, sum, headDim - d);
      }
    }
  });
  return 0;
}

/** `half`: products of bfloat16 pairs, where the level has them. */
inline int attention_backward(int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim, int64_t queryLength,
                              int64_t keyLength, int32_t causal, int64_t window, float scale, float softcap,
                              const float* q,
                              int64_t qBatch, int64_t qTime, int64_t qHead, const float* k, const float* v,
                              int64_t kvBatch, int64_t kvTime, int64_t kvHead, const float* out, const float* grad,
                              int64_t outBatch, int64_t outTime, int64_t outHead, const float* logSumExp, float* gradQ,
                              float* gradK, float* gradV, int32_t half) {
  const AttentionShape shape{batch, heads, kvHeads, headDim, queryLength, keyLength, window, causal != 0, scale, softcap};
#if defined(PL_PAIRS)
  if (half)
    return attentionGradient<Pair>(shape, q, qBatch, qTime, qHead, k, v, kvBatch, kvTime, kvHead, out, grad, outBatch,
                                   outTime, outHead, logSumExp, gradQ, gradK, gradV);
#endif
  (void)half;
  return attentionGradient<float>(shape, q, qBatch, qTime, qHead, k, v, kvBatch, kvTime, kvHead, out, grad, outBatch,
                                  outTime, outHead, logSumExp, gradQ, gradK, gradV);
}

}  // namespace planish::PL_LEVEL
