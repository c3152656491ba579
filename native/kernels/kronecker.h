// The Kronecker transform of rows, out = leftᵀ·(x ⊙ diag)·right per row, and its gradient.
// Definition: src/backend/contract/training.ts; source: spec/flatquant.md, Kronecker transform.
//
// Rows are taken a block at a time, small enough to stay in L2. The right factor sees a block as one tall matrix of
// rows·nLeft lines; the left factor works row by row. Sums over rows are kept per thread and added in thread order.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "rows.h"
#include "tile.h"

namespace planish::PL_LEVEL {

/** Rows per block: about 8192 elements, so that the five arrays of the backward pass share L2 with the factors. */
PL_INLINE int64_t kroneckerBlock(int64_t width) {
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

/**
 * out = leftᵀ·x·right for `count` rows. `rightRows`: the right factor with rows padded to whole vectors. `work` holds
 * count·nLeft padded lines; where nRight is no whole number of vectors its padding must hold numbers, and keeps them.
 */
static inline void transformRows(const float* x, int64_t count, int64_t nLeft, int64_t nRight, const float* left,
                                 const float* rightRows, float* work, float* out) {
  const int64_t width = nLeft * nRight, ld = padded(nRight);
  if (!left && !rightRows) {
    std::memcpy(out, x, static_cast<size_t>(count * width) * 4);
    return;
  }
  if (!left) {
    smallProduct<float, false>(count * nLeft, nRight, nRight, x, nRight, rightRows, ld, out, nRight, false);
    return;
  }
  const float* lines = x;
  int64_t lineStride = nRight;
  if (rightRows) {
    smallProduct<float, false>(count * nLeft, nRight, nRight, x, nRight, rightRows, ld, work, ld, false);
    lines = work;
    lineStride = ld;
  } else if (ld != nRight) {
    copyPadded(x, count * nLeft, nRight, nRight, work, ld);
    lines = work;
    lineStride = ld;
  }
  productsAcross(count, nLeft, nRight, nLeft, left, lines, lineStride, nLeft * lineStride, out, nRight, width);
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
    // Padding of the lines is read along with them, so it must hold numbers; nothing writes it later.
    if (ld != nRight) std::memset(work, 0, static_cast<size_t>(block * nLeft * ld) * 4);
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* source = x + r0 * width;
      if (diag) {
        for (int64_t r = 0; r < count; ++r)
          mapLanes2(source + r * width, diag, scaled + r * width, width, [](vf a, vf d) { return a * d; });
        source = scaled;
      }
      transformRows(source, count, nLeft, nRight, left, rightRows, work, out + r0 * width);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "kronecker: no memory for a block of rows");
  return 0;
}

/** Lines of a block of rows: `row` floats from one row to the next, `line` from one line to the next. */
struct Lines {
  const float* data;
  int64_t row, line;
  const float* at(int64_t i) const { return data + i * line; }
};

/**
 * MR×NR inner products along lanes: sums[a][i] (a vector each, at stride `ldSums` vectors) += Σ over `count` rows of
 * MR lines of x times NR lines of h, `vectors` long. Nothing is transposed and nothing summed across lanes, which the
 * caller does once at the end.
 */
template <int MR, int NR>
static void laneProducts(Lines x, Lines h, int64_t count, int64_t vectors, float* sums, int64_t ldSums) {
  vf acc[MR][NR];
#pragma GCC unroll 8
  for (int a = 0; a < MR; ++a)
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) acc[a][i] = load(sums + (a * ldSums + i) * VL);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      vf hv[NR];
#pragma GCC unroll 8
      for (int i = 0; i < NR; ++i) hv[i] = load(h.data + r * h.row + i * h.line + v * VL);
#pragma GCC unroll 8
      for (int a = 0; a < MR; ++a) {
        const vf xv = load(x.data + r * x.row + a * x.line + v * VL);
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

using LaneFunction = void (*)(Lines, Lines, int64_t, int64_t, float*, int64_t);
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

/** sums[a][i] += lane products of line a of x and line i of h, nLeft of each, over `count` rows. */
static inline void addLaneProducts(Lines x, Lines h, int64_t nLeft, int64_t vectors, int64_t count, float* sums) {
  const int64_t rowGroups = (nLeft + kLaneRows - 1) / kLaneRows;
  const int64_t columnGroups = (nLeft + kLaneColumns - 1) / kLaneColumns;
  for (int64_t ra = 0; ra < rowGroups; ++ra) {
    const int64_t a0 = nLeft * ra / rowGroups, a1 = nLeft * (ra + 1) / rowGroups;
    for (int64_t ci = 0; ci < columnGroups; ++ci) {
      const int64_t i0 = nLeft * ci / columnGroups, i1 = nLeft * (ci + 1) / columnGroups;
      laneFunction(a1 - a0, i1 - i0)({x.at(a0), x.row, x.line}, {h.at(i0), h.row, h.line}, count, vectors,
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
  float* const rightSpace = scratchOf<float>(0, nRight * ld + nLeft * nLeft);
  float* const sums = scratchOf<float>(1, parts * partFloats + VL);
  if (!rightSpace || !sums)
    return fail(PL_OUT_OF_MEMORY, "kronecker_backward: no memory for gradients of %lld×%lld", (long long)nLeft, (long long)nRight);
  std::memset(sums, 0, static_cast<size_t>(parts * partFloats) * 4);
  const float* const rightT = right ? paddedFactor(right, nRight, true, rightSpace) : nullptr;
  float* const leftT = rightSpace + nRight * ld;
  if (left) copyTransposed(left, nLeft, nLeft, nLeft, leftT, nLeft);
  std::atomic<bool> starved{false};
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* const partLeft = sums + part * partFloats;
    float* const partRight = partLeft + leftSums;
    float* const partDiag = partRight + rightSums;
    const int64_t dense = block * width + VL;
    float* const work = scratchOf<float>(2, 3 * dense + 2 * block * line);
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const spaceX = work;                   // x ⊙ diag
    float* const spaceZ = spaceX + dense;         // leftᵀ·(x ⊙ diag)
    float* const spaceD = spaceZ + dense;         // left·grad·rightᵀ
    float* const spaceG = spaceD + dense;         // grad, lines padded
    float* const spaceH = spaceG + block * line;  // grad·rightᵀ, lines padded
    // Vectors that reach past a line of x meet zeros of h in the lane sums, so h's padding must stay zero.
    if (ld != nRight) std::memset(spaceG, 0, static_cast<size_t>(2 * block * line) * 4);
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* const xr = x + r0 * width;
      // Lines whose vectors reach past them are read from a copy where nothing may follow.
      const float* scaled = xr;
      if (diag || ld != nRight) {
        scaled = spaceX;
        if (diag) {
          for (int64_t r = 0; r < count; ++r)
            mapLanes2(xr + r * width, diag, spaceX + r * width, width, [](vf a, vf d) { return a * d; });
        } else {
          std::memcpy(spaceX, xr, static_cast<size_t>(count * width) * 4);
        }
        store(spaceX + count * width, vf{});
      }
      const float* g = grad + r0 * width;
      int64_t ldG = nRight;
      if (ld != nRight && (!right || r0 + count == rows)) {
        copyPadded(g, count * nLeft, nRight, nRight, spaceG, ld);
        g = spaceG;
        ldG = ld;
      }
      if (gradRight) {
        const float* z = scaled;
        if (left) {
          productsAcross(count, nLeft, nRight, nLeft, left, scaled, nRight, width, spaceZ, nRight, width);
          z = spaceZ;
        }
        smallProduct<float, true>(nRight, nRight, count * nLeft, z, nRight, g, ldG, partRight, ld, true);
      }
      if (!gradX && !gradLeft && !gradDiag) continue;
      const float* h = g;
      if (right) {
        smallProduct<float, false>(count * nLeft, nRight, nRight, g, ldG, rightT, ld, spaceH, ld, false);
        h = spaceH;
      }
      if (gradLeft) addLaneProducts({scaled, width, nRight}, {h, line, ld}, nLeft, ld / VL, count, partLeft);
      if (!gradX && !gradDiag) continue;
      float* const target = gradX ? gradX + r0 * width : spaceD;
      if (left) {
        // Straight to gradX where nothing is left to do to it.
        float* const d = diag || gradDiag ? spaceD : target;
        productsAcross(count, nLeft, nRight, nLeft, leftT, h, ld, line, d, nRight, width);
        h = d;
      } else if (ld != nRight) {
        for (int64_t i = 0; i < count * nLeft; ++i)
          std::memcpy(spaceD + i * nRight, h + i * ld, static_cast<size_t>(nRight) * 4);
        h = spaceD;
      }
      if (!gradDiag && h == target) continue;
      for (int64_t r = 0; r < count; ++r) {
        const float* const d = h + r * width;
        if (gradDiag)
          for (int64_t i = 0; i < width; i += VL) {
            const vf term = loadUpTo(d + i, width - i) * loadUpTo(xr + r * width + i, width - i);
            store(partDiag + i, load(partDiag + i) + term);
          }
        if (!gradX) continue;
        if (diag) mapLanes2(d, diag, target + r * width, width, [](vf a, vf b) { return a * b; });
        else std::memcpy(target + r * width, d, static_cast<size_t>(width) * 4);
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
