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
  PL_INLINE Vector read(const T* p) { return load_t<T>(p); }
  PL_INLINE Vector broadcast(const T* p) { return splat(*p); }
  PL_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
#define PL_PAIRS 1
template <>
struct Arithmetic<Pair> {
  using Sum = float;
  using Vector = __m512i;
  PL_INLINE Vector read(const Pair* p) { return _mm512_loadu_si512(p); }
  PL_INLINE Vector broadcast(const Pair* p) { return _mm512_set1_epi32(static_cast<int>(p->bits)); }
  PL_INLINE vf multiply_add(Vector a, Vector b, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// A full tile leaves one register for the broadcast. Clang's scheduler would load the next row's ahead of the sums of
// this one, and spill accumulators in the innermost loop: half as fast again on AVX2. This holds it to the order written.
#if defined(__clang__) && defined(__AVX2__) && !defined(__AVX512F__)
#define PL_IN_ORDER(sum) asm volatile("" : "+x"(sum) : : "memory")
#else
#define PL_IN_ORDER(sum)
#endif

/** Rows of A (compile-time) × vectors of B (compile-time), over the whole depth k. */
template <class T, int MR, int NV, bool TransposedA>
static void tile_product(int64_t depth, const T* __restrict a, int64_t lda, const T* __restrict b, int64_t ldb,
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
      for (int v = 0; v < NV; ++v) {
        acc[r][v] = Math::multiply_add(av, bv[v], acc[r][v]);
        PL_IN_ORDER(acc[r][v]);
      }
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
        store_t<Sum>(row + v * L, accumulate ? load_t<Sum>(row + v * L) + acc[r][v] : acc[r][v]);
      } else {
        Sum lanes[L];
        std::memcpy(lanes, &acc[r][v], sizeof lanes);
        for (int64_t i = 0; i < tail; ++i) row[v * L + i] = accumulate ? row[v * L + i] + lanes[i] : lanes[i];
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
constexpr int TILE_ROWS[5] = {0, 14, 12, 8, 6};
template <class T>
constexpr int TILE_VECTORS = sizeof(T) == 4 ? 4 : 2;
#else
constexpr int TILE_ROWS[5] = {0, 8, 6, 4, 0};
template <class T>
constexpr int TILE_VECTORS = sizeof(T) == 4 && VECTOR_BYTES == 32 ? 3 : 2;
#endif

#if defined(__AVX512F__)
/**
 * A whole and a half vector of columns (17 to 24 of them), the half one in 256 bits: on processors that run 512-bit
 * operations in two halves it costs half, elsewhere no more than a whole one. 24 columns are SmolLM's 576 = 24·24.
 */
template <int MR, bool TransposedA>
static void tile_product_half(int64_t depth, const float* __restrict a, int64_t lda, const float* __restrict b,
                              int64_t ldb, float* __restrict c, int64_t ldc, bool accumulate, int64_t tail) {
  typedef float v8f __attribute__((vector_size(32)));
  typedef float loose8 __attribute__((vector_size(32), aligned(4), may_alias));
  vf whole[MR];
  v8f half[MR];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    whole[r] = vf{};
    half[r] = v8f{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const vf b0 = load(b);
    const v8f b1 = *reinterpret_cast<const loose8*>(b + VL);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf av = splat(TransposedA ? a[r] : a[r * lda]);
      whole[r] = fma(av, b0, whole[r]);
      half[r] = (v8f)_mm256_fmadd_ps(_mm512_castps512_ps256((__m512)av), (__m256)b1, (__m256)half[r]);
    }
    a += TransposedA ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    float* row = c + r * ldc;
    store(row, accumulate ? load(row) + whole[r] : whole[r]);
    const __mmask8 mask = (__mmask8)((1u << tail) - 1u);
    __m256 part = (__m256)half[r];
    if (accumulate) part = _mm256_add_ps(part, _mm256_maskz_loadu_ps(mask, row + VL));
    _mm256_mask_storeu_ps(row + VL, mask, part);
  }
}

template <bool TransposedA, int MR>
static TileFunction<float> tile_half_of_rows(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return tile_half_of_rows<TransposedA, MR - 1>(rows);
  }
  return tile_product_half<MR, TransposedA>;
}
#endif

/** The function for a number of rows, found by counting down from the most that NV allows. */
template <class T, int NV, bool TransposedA, int MR>
static TileFunction<T> tile_of_rows(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return tile_of_rows<T, NV, TransposedA, MR - 1>(rows);
  }
  return tile_product<T, MR, NV, TransposedA>;
}

template <class T, bool TransposedA>
static TileFunction<T> tile_for(int64_t rows, int vectors) {
  if constexpr (TILE_VECTORS<T> > 3)
    if (vectors == 4) return tile_of_rows<T, 4, TransposedA, TILE_ROWS[4]>(rows);
  if constexpr (TILE_VECTORS<T> > 2)
    if (vectors == 3) return tile_of_rows<T, 3, TransposedA, TILE_ROWS[3]>(rows);
  if (vectors == 2) return tile_of_rows<T, 2, TransposedA, TILE_ROWS[2]>(rows);
  return tile_of_rows<T, 1, TransposedA, TILE_ROWS[1]>(rows);
}

/** C[m×n] (+)= A·B; A is m×depth (row-major), or depth×m when TransposedA. Depth counts elements T. */
template <class T, bool TransposedA>
static void small_product(int64_t m, int64_t n, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                          typename Arithmetic<T>::Sum* c, int64_t ldc, bool accumulate) {
  constexpr int L = VecOf<typename Arithmetic<T>::Sum>::lanes;
  const int64_t vectors = (n + L - 1) / L;
  const int64_t column_groups = (vectors + TILE_VECTORS<T> - 1) / TILE_VECTORS<T>;
  int64_t v0 = 0;
  for (int64_t g = 0; g < column_groups; ++g) {
    const int64_t v1 = vectors * (g + 1) / column_groups;
    const int width = static_cast<int>(v1 - v0);
    const int64_t tail = v1 == vectors ? n - (vectors - 1) * L : L;
    // Rows in groups of equal size (to within one), so that no group is too thin to hide the latency.
    const int64_t row_groups = (m + TILE_ROWS[width] - 1) / TILE_ROWS[width];
    const int64_t size = m / (row_groups > 0 ? row_groups : 1);
    const int64_t larger = m - size * row_groups;
    TileFunction<T> tile = tile_for<T, TransposedA>(size, width);
    TileFunction<T> tile_plus = larger > 0 ? tile_for<T, TransposedA>(size + 1, width) : tile;
#if defined(__AVX512F__)
    if constexpr (std::is_same<T, float>::value) {
      if (width == 2 && tail <= 8) {
        tile = tile_half_of_rows<TransposedA, TILE_ROWS[2]>(size);
        if (larger > 0) tile_plus = tile_half_of_rows<TransposedA, TILE_ROWS[2]>(size + 1);
      }
    }
#endif
    int64_t r = 0;
    for (int64_t group = 0; group < row_groups; ++group) {
      const bool plus = group < larger;
      (plus ? tile_plus : tile)(depth, a + (TransposedA ? r : r * lda), lda, b + v0 * L, ldb, c + r * ldc + v0 * L, ldc,
                                accumulate, tail);
      r += plus ? size + 1 : size;
    }
    v0 = v1;
  }
}

/** MR rows of Aᵀ times one vector of columns of TILE_VECTORS matrices B, `b_step` apart, into C's, `c_step` apart. */
template <int MR>
static void tile_across(int64_t depth, const float* __restrict a, int64_t lda, const float* __restrict b, int64_t ldb,
                        int64_t b_step, float* __restrict c, int64_t ldc, int64_t c_step, int64_t tail) {
  constexpr int NV = TILE_VECTORS<float>;
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = vf{};
  for (int64_t k = 0; k < depth; ++k) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * b_step);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf av = splat(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[r][v] = fma(av, bv[v], acc[r][v]);
        PL_IN_ORDER(acc[r][v]);
      }
    }
    a += lda;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (tail == VL) store(c + r * ldc + v * c_step, acc[r][v]);
      else store_part(c + r * ldc + v * c_step, acc[r][v], tail);
    }
}

template <int MR>
static void tiles_across(int64_t m, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                         int64_t b_step, float* c, int64_t ldc, int64_t c_step, int64_t tail) {
  int64_t r = 0;
  for (; r + MR <= m; r += MR) tile_across<MR>(depth, a + r, lda, b, ldb, b_step, c + r * ldc, ldc, c_step, tail);
  if constexpr (MR > 1) {
    if (r < m) tiles_across<MR - 1>(m - r, depth, a + r, lda, b, ldb, b_step, c + r * ldc, ldc, c_step, tail);
  }
}

/**
 * C = Aᵀ·B for `count` pairs (B, C), `b_step` and `c_step` apart, and one A (depth×m, rows `m` long). When B is a single
 * vector wide, several pairs share a tile: alone they would be too narrow to keep the multipliers busy.
 */
static inline void products_across(int64_t count, int64_t m, int64_t n, int64_t depth, const float* a, const float* b,
                                   int64_t ldb, int64_t b_step, float* c, int64_t ldc, int64_t c_step) {
  constexpr int NV = TILE_VECTORS<float>;
  int64_t i = 0;
  if (n <= VL)
    for (; i + NV <= count; i += NV)
      tiles_across<TILE_ROWS[NV]>(m, depth, a, m, b + i * b_step, ldb, b_step, c + i * c_step, ldc, c_step, n);
  for (; i < count; ++i) small_product<float, true>(m, n, depth, a, m, b + i * b_step, ldb, c + i * c_step, ldc, false);
}

/** Elements of a row padded to whole vectors. */
PL_INLINE int64_t padded(int64_t n) { return (n + VL - 1) / VL * VL; }

/** Copies rows×cols into rows of `ld_out`, zero-filled past cols. */
static inline void copy_padded(const float* x, int64_t rows, int64_t cols, int64_t ldx, float* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * ld_out, x + r * ldx, static_cast<size_t>(cols) * 4);
    for (int64_t c = cols; c < ld_out; ++c) out[r * ld_out + c] = 0.0f;
  }
}

/** out[c][r] = x[r][c]; rows of `out` are zero-filled past `rows` up to ld_out. */
template <class T>
static void copy_transposed(const T* x, int64_t rows, int64_t cols, int64_t ldx, T* out, int64_t ld_out) {
  for (int64_t c = 0; c < cols; ++c) {
    T* row = out + c * ld_out;
    for (int64_t r = 0; r < rows; ++r) row[r] = x[r * ldx + c];
    for (int64_t r = rows; r < ld_out; ++r) row[r] = T{};
  }
}

/** This thread's scratch as an array; null when memory is out. */
template <class T>
PL_INLINE T* scratch_of(int slot, int64_t count) {
  return static_cast<T*>(thread_scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace planish::PL_LEVEL
