// Small matrix products held in registers and L1: C (=, +=) A·B for operands of a few hundred rows and columns.
// Attention, the Kronecker transform and the float64 factorizations are built on it; large products have their own file.
//
// B's and C's rows run along vector lanes; A is read one element at a time and broadcast, so it may be stored either
// way round. Contracts: B's rows are readable up to the next multiple of the vector length past n (contents there may
// be anything); C is written only inside its n columns.
#pragma once

#include "lanes.h"

namespace planish::PL_LEVEL {

/**
 * Two neighbours along the depth of a product, rounded to bfloat16: the lower half is the even one. Products of pairs
 * take half the steps of f32 products and accumulate in f32; only levels with a bf16 dot product have them.
 */
struct Pair {
  uint32_t bits;
};

/** What a product of elements T reads, accumulates in and does. */
template <class T>
struct Arithmetic {
  using Sum = T;
  using Vector = typename VecOf<T>::type;
  static PL_INLINE Vector read(const T* p) { return loadT<T>(p); }
  static PL_INLINE Vector broadcast(const T* p) { return Vector{} + *p; }
  static PL_INLINE Vector multiplyAdd(Vector a, Vector b, Vector sum) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
#define PL_PAIRS 1
template <>
struct Arithmetic<Pair> {
  using Sum = float;
  using Vector = __m512i;
  static PL_INLINE Vector read(const Pair* p) { return _mm512_loadu_si512(p); }
  static PL_INLINE Vector broadcast(const Pair* p) { return _mm512_set1_epi32(static_cast<int>(p->bits)); }
  static PL_INLINE vf multiplyAdd(Vector a, Vector b, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

/** Rows of A (compile-time) × vectors of B (compile-time), over the whole depth k. */
template <class T, int MR, int NV, bool TransposedA>
static void tileProduct(int64_t depth, const T* __restrict a, int64_t lda, const T* __restrict b, int64_t ldb,
                        typename Arithmetic<T>::Sum* __restrict c, int64_t ldc, bool accumulate, int64_t tail) {
  using Math = Arithmetic<T>;
  using Sum = typename Math::Sum;
  using V = typename VecOf<Sum>::type;
  constexpr int L = VecOf<Sum>::lanes;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = V{};
  for (int64_t k = 0; k < depth; ++k) {
    typename Math::Vector bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = Math::read(b + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const typename Math::Vector av = Math::broadcast(TransposedA ? a + r : a + r * lda);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = Math::multiplyAdd(av, bv[v], acc[r][v]);
    }
    a += TransposedA ? lda : 1;
    b += ldb;
  }
  // `tail` valid lanes in the last vector; the others are whole.
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    Sum* row = c + r * ldc;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (v < NV - 1 || tail == L) {
        storeT<Sum>(row + v * L, accumulate ? loadT<Sum>(row + v * L) + acc[r][v] : acc[r][v]);
      } else {
        Sum lanes[L];
        std::memcpy(lanes, &acc[r][v], sizeof lanes);
        for (int64_t i = 0; i < tail; ++i)
          row[v * L + i] = accumulate ? row[v * L + i] + lanes[i] : lanes[i];
      }
    }
  }
}

template <class T>
using TileFunction = void (*)(int64_t, const T*, int64_t, const T*, int64_t, typename Arithmetic<T>::Sum*, int64_t,
                              bool, int64_t);

// Registers allow MR·NV accumulators beside NV vectors of B and one broadcast. The float64 products are too rare to be
// worth compiling more than the two narrow shapes.
#if defined(__AVX512F__)
constexpr int kTileRows[5] = {0, 14, 12, 8, 6};
template <class T>
constexpr int kTileVectors = sizeof(T) == 4 ? 4 : 2;
#else
constexpr int kTileRows[5] = {0, 8, 6, 0, 0};
template <class T>
constexpr int kTileVectors = 2;
#endif

/** The function for a number of rows, found by counting down from the most that NV allows. */
template <class T, int NV, bool TransposedA, int MR>
static TileFunction<T> tileOfRows(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return tileOfRows<T, NV, TransposedA, MR - 1>(rows);
  }
  return tileProduct<T, MR, NV, TransposedA>;
}

template <class T, bool TransposedA>
static TileFunction<T> tileFor(int64_t rows, int vectors) {
  if constexpr (kTileVectors<T> == 4) {
    if (vectors == 4) return tileOfRows<T, 4, TransposedA, kTileRows[4]>(rows);
    if (vectors == 3) return tileOfRows<T, 3, TransposedA, kTileRows[3]>(rows);
  }
  if (vectors == 2) return tileOfRows<T, 2, TransposedA, kTileRows[2]>(rows);
  return tileOfRows<T, 1, TransposedA, kTileRows[1]>(rows);
}

/** C[m×n] (+)= A·B; A is m×depth (row-major), or depth×m when TransposedA. Depth counts elements T. */
template <class T, bool TransposedA>
static void smallProduct(int64_t m, int64_t n, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                         typename Arithmetic<T>::Sum* c, int64_t ldc, bool accumulate) {
  constexpr int L = VecOf<typename Arithmetic<T>::Sum>::lanes;
  const int64_t vectors = (n + L - 1) / L;
  const int64_t columnGroups = (vectors + kTileVectors<T> - 1) / kTileVectors<T>;
  int64_t v0 = 0;
  for (int64_t g = 0; g < columnGroups; ++g) {
    const int64_t v1 = vectors * (g + 1) / columnGroups;
    const int width = static_cast<int>(v1 - v0);
    const int64_t tail = v1 == vectors ? n - (vectors - 1) * L : L;
    // Rows in groups of equal size (to within one), so that no group is too thin to hide the latency.
    const int64_t rowGroups = (m + kTileRows[width] - 1) / kTileRows[width];
    const int64_t size = m / (rowGroups > 0 ? rowGroups : 1);
    const int64_t larger = m - size * rowGroups;
    const TileFunction<T> tile = tileFor<T, TransposedA>(size, width);
    const TileFunction<T> tilePlus = larger > 0 ? tileFor<T, TransposedA>(size + 1, width) : tile;
    int64_t r = 0;
    for (int64_t group = 0; group < rowGroups; ++group) {
      const bool plus = group < larger;
      (plus ? tilePlus : tile)(depth, a + (TransposedA ? r : r * lda), lda, b + v0 * L, ldb,
                               c + r * ldc + v0 * L, ldc, accumulate, tail);
      r += plus ? size + 1 : size;
    }
    v0 = v1;
  }
}

/** Elements of a row padded to whole vectors. */
static PL_INLINE int64_t padded(int64_t n) { return (n + VL - 1) / VL * VL; }

/** Copies rows×cols into rows of `ldOut`, zero-filled past cols. */
static inline void copyPadded(const float* x, int64_t rows, int64_t cols, int64_t ldx, float* out,
                              int64_t ldOut) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * ldOut, x + r * ldx, static_cast<size_t>(cols) * 4);
    for (int64_t c = cols; c < ldOut; ++c) out[r * ldOut + c] = 0.0f;
  }
}

/** out[c][r] = x[r][c]; rows of `out` are zero-filled past `rows` up to ldOut. */
template <class T>
static void copyTransposed(const T* x, int64_t rows, int64_t cols, int64_t ldx, T* out, int64_t ldOut) {
  for (int64_t c = 0; c < cols; ++c) {
    T* row = out + c * ldOut;
    for (int64_t r = 0; r < rows; ++r) row[r] = x[r * ldx + c];
    for (int64_t r = rows; r < ldOut; ++r) row[r] = T{};
  }
}

/** This thread's scratch as an array; null when memory is out. */
template <class T>
static PL_INLINE T* scratchOf(int slot, int64_t count) {
  return static_cast<T*>(thread_scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace planish::PL_LEVEL
