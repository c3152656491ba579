// The Kronecker transform of rows, out = leftᵀ·(x ⊙ diag)·right per row, and its gradient.
// Definition: src/backend/backend.ts; source: spec/flatquant.md, Kronecker transform.
//
// Rows are taken a block at a time, small enough to stay in L2. The right factor sees a block as one tall matrix of
// rows·nLeft lines; the left factor works row by row. Sums over rows are kept per thread and added in thread order.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "tile.h"

namespace planish::PL_LEVEL {

/** Rows per block: about 8192 elements, so that the five arrays of the backward pass share L2 with the factors. */
static PL_INLINE int64_t kroneckerBlock(int64_t width) {
  const int64_t rows = 8192 / (width > 0 ? width : 1);
  return rows < 1 ? 1 : rows;
}

/** The matrix with rows padded to whole vectors (in place when they are already), or its transpose. */
static inline const float* paddedFactor(const float* m, int64_t n, bool transposed, float* space) {
  const int64_t ld = padded(n);
  if (transposed) copyTransposed(m, n, n, n, space, ld);
  else if (ld == n) return m;
  else copyPadded(m, n, n, n, space, ld);
  return space;
}

inline int kronecker(const float* x, int64_t rows, int64_t nLeft, int64_t nRight, const float* left,
                     const float* right, const float* diag, float* out) {
  const int64_t width = nLeft * nRight, ld = padded(nRight);
  float* const rightSpace = scratchOf<float>(0, nRight * ld);
  if (!rightSpace) return fail(PL_OUT_OF_MEMORY, "kronecker: no memory for a %lld-wide factor", (long long)nRight);
  const float* const rightRows = right ? paddedFactor(right, nRight, false, rightSpace) : nullptr;
  const int64_t block = kroneckerBlock(width);
  std::atomic<bool> starved{false};
  parallel_ranges(rows, block, [&](int64_t begin, int64_t end) {
    float* const work = scratchOf<float>(1, block * (width + nLeft * ld));
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const scaled = work + block * nLeft * ld;
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* source = x + r0 * width;
      if (diag) {
        for (int64_t r = 0; r < count; ++r)
          mapLanes2(source + r * width, diag, scaled + r * width, width, [](vf a, vf d) { return a * d; });
        source = scaled;
      }
      float* const target = out + r0 * width;
      if (!left && !right) {
        std::memcpy(target, source, static_cast<size_t>(count * width) * 4);
        continue;
      }
      if (!left) {
        smallProduct<float, false>(count * nLeft, nRight, nRight, source, nRight, rightRows, ld, target, nRight, false);
        continue;
      }
      const float* lines = source;
      int64_t lineStride = nRight;
      if (right) {
        smallProduct<float, false>(count * nLeft, ld, nRight, source, nRight, rightRows, ld, work, ld, false);
        lines = work;
        lineStride = ld;
      } else if (ld != nRight) {
        copyPadded(source, count * nLeft, nRight, nRight, work, ld);
        lines = work;
        lineStride = ld;
      }
      for (int64_t r = 0; r < count; ++r)
        smallProduct<float, true>(nLeft, nRight, nLeft, left, nLeft, lines + r * nLeft * lineStride, lineStride,
                                  target + r * width, nRight, false);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "kronecker: no memory for a block of rows");
  return 0;
}

/**
 * MR×NR inner products along lanes: sums[a][i] (a vector each, at stride `ldSums` vectors) += Σ over `count` blocks of
 * lines p (from x, MR lines) and h (NR lines), `vectors` long. Nothing is transposed and nothing summed across lanes,
 * which the caller does once at the end.
 */
template <int MR, int NR>
static void laneProducts(const float* x, const float* h, int64_t line, int64_t blockStride, int64_t count,
                         int64_t vectors, float* sums, int64_t ldSums) {
  vf acc[MR][NR];
#pragma GCC unroll 8
  for (int a = 0; a < MR; ++a)
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) acc[a][i] = load(sums + (a * ldSums + i) * VL);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      vf hv[NR];
#pragma GCC unroll 8
      for (int i = 0; i < NR; ++i) hv[i] = load(h + r * blockStride + i * line + v * VL);
#pragma GCC unroll 8
      for (int a = 0; a < MR; ++a) {
        const vf xv = load(x + r * blockStride + a * line + v * VL);
#pragma GCC unroll 8
        for (int i = 0; i < NR; ++i) acc[a][i] = fma(xv, hv[i], acc[a][i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < MR; ++a)
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) store(sums + (a * ldSums + i) * VL, acc[a][i]);
}

using LaneFunction = void (*)(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
#if defined(__AVX512F__)
constexpr int kLaneRows = 4, kLaneColumns = 6;
#else
constexpr int kLaneRows = 3, kLaneColumns = 3;
#endif

template <int MR>
static LaneFunction laneFunction(int64_t columns) {
  switch (columns) {
    case 1:
      return laneProducts<MR, 1>;
    case 2:
      return laneProducts<MR, 2>;
    case 3:
      return laneProducts<MR, 3>;
#if defined(__AVX512F__)
    case 4:
      return laneProducts<MR, 4>;
    case 5:
      return laneProducts<MR, 5>;
    default:
      return laneProducts<MR, 6>;
#else
    default:
      return laneProducts<MR, 3>;
#endif
  }
}
static inline LaneFunction laneFunction(int64_t rows, int64_t columns) {
  switch (rows) {
    case 1:
      return laneFunction<1>(columns);
    case 2:
      return laneFunction<2>(columns);
    case 3:
      return laneFunction<3>(columns);
    default:
#if defined(__AVX512F__)
      return laneFunction<4>(columns);
#else
      return laneFunction<3>(columns);
#endif
  }
}

/** sums[a][i] += lane products of line a of x and line i of h over a block of rows; nLeft lines of `ld` floats each. */
static inline void addLaneProducts(const float* x, const float* h, int64_t nLeft, int64_t ld, int64_t count, float* sums) {
  const int64_t rowGroups = (nLeft + kLaneRows - 1) / kLaneRows;
  const int64_t columnGroups = (nLeft + kLaneColumns - 1) / kLaneColumns;
  for (int64_t ra = 0; ra < rowGroups; ++ra) {
    const int64_t a0 = nLeft * ra / rowGroups, a1 = nLeft * (ra + 1) / rowGroups;
    for (int64_t ci = 0; ci < columnGroups; ++ci) {
      const int64_t i0 = nLeft * ci / columnGroups, i1 = nLeft * (ci + 1) / columnGroups;
      laneFunction(a1 - a0, i1 - i0)(x + a0 * ld, h + i0 * ld, ld, nLeft * ld, count, ld / VL,
                                     sums + (a0 * nLeft + i0) * VL, nLeft);
    }
  }
}

inline int kronecker_backward(const float* x, int64_t rows, int64_t nLeft, int64_t nRight, const float* left,
                              const float* right, const float* diag, const float* grad, float* gradX,
                              float* gradLeft, float* gradRight, float* gradDiag) {
  const int64_t width = nLeft * nRight, ld = padded(nRight), line = nLeft * ld;
  const int64_t block = kroneckerBlock(width);
  int64_t parts = rows / block;
  if (parts > thread_count()) parts = thread_count();
  if (parts < 1) parts = 1;
  // Lane sums of the left gradient stay in vectors as long as they fit beside the block in L2.
  const int64_t leftSums = gradLeft ? nLeft * nLeft * VL : 0;
  const int64_t rightSums = gradRight ? nRight * ld : 0;
  const int64_t diagSums = gradDiag ? padded(width) : 0;
  const int64_t partFloats = leftSums + rightSums + diagSums;
  float* const rightSpace = scratchOf<float>(0, nRight * ld);
  float* const sums = scratchOf<float>(1, parts * partFloats + VL);
  if (!rightSpace || !sums)
    return fail(PL_OUT_OF_MEMORY, "kronecker_backward: no memory for gradients of %lld×%lld", (long long)nLeft, (long long)nRight);
  std::memset(sums, 0, static_cast<size_t>(parts * partFloats) * 4);
  const float* const rightT = right ? paddedFactor(right, nRight, true, rightSpace) : nullptr;
  std::atomic<bool> starved{false};
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* const partLeft = sums + part * partFloats;
    float* const partRight = partLeft + leftSums;
    float* const partDiag = partRight + rightSums;
    float* const work = scratchOf<float>(2, 5 * block * line);
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const spaceX = work;                     // x ⊙ diag, padded
    float* const spaceG = spaceX + block * line;    // grad, padded
    float* const spaceH = spaceG + block * line;    // grad·rightᵀ
    float* const spaceZ = spaceH + block * line;    // leftᵀ·(x ⊙ diag)
    float* const spaceD = spaceZ + block * line;    // left·grad·rightᵀ
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* const xr = x + r0 * width;
      const float* const gr = grad + r0 * width;
      const float* scaled = xr;
      if (diag || ld != nRight) {
        scaled = spaceX;
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t a = 0; a < nLeft; ++a) {
            const float* const source = xr + r * width + a * nRight;
            float* const target = spaceX + r * line + a * ld;
            for (int64_t i = 0; i < nRight; i += VL) {
              vf v = loadUpTo(source + i, nRight - i);
              if (diag) v *= loadUpTo(diag + a * nRight + i, nRight - i);
              store(target + i, v);
            }
          }
        }
      }
      const float* g = gr;
      if (ld != nRight) {
        copyPadded(gr, count * nLeft, nRight, nRight, spaceG, ld);
        g = spaceG;
      }
      if (gradRight) {
        const float* z = scaled;
        if (left) {
          for (int64_t r = 0; r < count; ++r)
            smallProduct<float, true>(nLeft, ld, nLeft, left, nLeft, scaled + r * line, ld, spaceZ + r * line, ld, false);
          z = spaceZ;
        }
        smallProduct<float, true>(nRight, ld, count * nLeft, z, ld, g, ld, partRight, ld, true);
      }
      if (!gradX && !gradLeft && !gradDiag) continue;
      const float* h = g;
      if (right) {
        smallProduct<float, false>(count * nLeft, ld, nRight, g, ld, rightT, ld, spaceH, ld, false);
        h = spaceH;
      }
      if (gradLeft) addLaneProducts(scaled, h, nLeft, ld, count, partLeft);
      if (!gradX && !gradDiag) continue;
      for (int64_t r = 0; r < count; ++r) {
        const float* d = h + r * line;
        if (left) {
          smallProduct<float, false>(nLeft, ld, nLeft, left, nLeft, h + r * line, ld, spaceD, ld, false);
          d = spaceD;
        }
        for (int64_t a = 0; a < nLeft; ++a) {
          const int64_t at = a * nRight;
          for (int64_t i = 0; i < nRight; i += VL) {
            const int64_t rest = nRight - i;
            vf v = load(d + a * ld + i);
            if (gradDiag) {
              float* const sum = partDiag + at + i;
              const vf term = v * loadUpTo(xr + r * width + at + i, rest);
              if (rest >= VL) store(sum, load(sum) + term);
              else storePart(sum, loadPart(sum, rest) + term, rest);
            }
            if (!gradX) continue;
            if (diag) v *= loadUpTo(diag + at + i, rest);
            float* const o = gradX + (r0 + r) * width + at + i;
            if (rest >= VL) store(o, v);
            else storePart(o, v, rest);
          }
        }
      }
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "kronecker_backward: no memory for a block of rows");
  const auto partsOf = [&](int64_t at) {
    float total = sums[at];
    for (int64_t part = 1; part < parts; ++part) total += sums[part * partFloats + at];
    return total;
  };
  if (gradLeft) {
    for (int64_t i = 0; i < nLeft * nLeft; ++i) {
      vf total = load(sums + i * VL);
      for (int64_t part = 1; part < parts; ++part) total += load(sums + part * partFloats + i * VL);
      gradLeft[i] = sumLanes(total);
    }
  }
  if (gradRight)
    for (int64_t i = 0; i < nRight; ++i)
      for (int64_t j = 0; j < nRight; ++j) gradRight[i * nRight + j] = partsOf(leftSums + i * ld + j);
  if (gradDiag)
    for (int64_t i = 0; i < width; ++i) gradDiag[i] = partsOf(leftSums + rightSums + i);
  return 0;
}

}  // namespace planish::PL_LEVEL
