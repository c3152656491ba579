// Small dense matrices in float64: the inverse by blocked LU with partial pivoting, and Cayley's orthogonal matrices.
// Sources: Golub & Van Loan, Matrix Computations, section 3.4; docs/methods.md, flatquant.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "tile.h"

namespace planish::PL_LEVEL {

constexpr int64_t PANEL = 32;
// Right-hand sides per task of the triangular solves.
constexpr int64_t SOLVE_COLUMNS = 64;

/** A − L·U on a block of A, through a product into scratch (C = C − A·B has no form of its own in tile.h). */
static inline void subtract_product(int64_t m, int64_t n, int64_t depth, const double* a, int64_t lda, const double* b,
                                    int64_t ldb, double* c, int64_t ldc, double* negated) {
  // −A is formed once, so that the product can accumulate.
  for (int64_t i = 0; i < m; ++i)
    for (int64_t k = 0; k < depth; ++k) negated[i * depth + k] = -a[i * lda + k];
  small_product<double, false>(m, n, depth, negated, depth, b, ldb, c, ldc, true);
}

/**
 * out = M⁻¹ for the n×n matrix m, which is overwritten by its factors; rows of m, work and out are `ld` doubles (a
 * multiple of the vector length) and out has n rows. `work` holds n·PANEL doubles per thread slot. Returns the index
 * of a pivot that is zero or not finite, −1 on success.
 */
static inline int64_t invert_in_place(double* m, int64_t n, int64_t ld, double* out, double* work, int64_t* order) {
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t p0 = 0; p0 < n; p0 += PANEL) {
    const int64_t p1 = p0 + PANEL < n ? p0 + PANEL : n;
    // Factor the panel of columns p0…p1, swapping whole rows.
    for (int64_t p = p0; p < p1; ++p) {
      int64_t best = p;
      for (int64_t i = p + 1; i < n; ++i)
        if (std::fabs(m[i * ld + p]) > std::fabs(m[best * ld + p])) best = i;
      const double pivot = m[best * ld + p];
      if (!(std::fabs(pivot) > 0) || !std::isfinite(pivot)) return p;
      if (best != p) {
        for (int64_t j = 0; j < n; ++j) {
          const double kept = m[p * ld + j];
          m[p * ld + j] = m[best * ld + j];
          m[best * ld + j] = kept;
        }
        const int64_t kept = order[p];
        order[p] = order[best];
        order[best] = kept;
      }
      for (int64_t i = p + 1; i < n; ++i) {
        const double factor = m[i * ld + p] / pivot;
        m[i * ld + p] = factor;
        const double* __restrict above = m + p * ld;
        double* __restrict row = m + i * ld;
        for (int64_t j = p + 1; j < p1; ++j) row[j] -= factor * above[j];
      }
    }
    if (p1 == n) break;
    // U's rows right of the panel, then the trailing block.
    for (int64_t i = p0 + 1; i < p1; ++i)
      for (int64_t k = p0; k < i; ++k) {
        const double factor = m[i * ld + k];
        const double* __restrict above = m + k * ld;
        double* __restrict row = m + i * ld;
        for (int64_t j = p1; j < n; ++j) row[j] -= factor * above[j];
      }
    subtract_product(n - p1, n - p1, p1 - p0, m + p1 * ld + p0, ld, m + p0 * ld + p1, ld, m + p1 * ld + p1, ld, work);
  }
  // Solve L·U·out = P, columns in groups; every thread negates its own panels.
  const int64_t groups = (n + SOLVE_COLUMNS - 1) / SOLVE_COLUMNS;
  std::atomic<bool> starved{false};
  parallel_for_dynamic(groups, [&](int64_t group) {
    const int64_t c0 = group * SOLVE_COLUMNS, c1 = c0 + SOLVE_COLUMNS < n ? c0 + SOLVE_COLUMNS : n, width = c1 - c0;
    double* const space = scratch_of<double>(4, PANEL * PANEL + n * PANEL);
    if (!space) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    double* const x = out + c0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < width; ++j) x[i * ld + j] = order[i] == c0 + j ? 1.0 : 0.0;
    for (int64_t p0 = 0; p0 < n; p0 += PANEL) {
      const int64_t p1 = p0 + PANEL < n ? p0 + PANEL : n;
      for (int64_t i = p0 + 1; i < p1; ++i)
        for (int64_t k = p0; k < i; ++k) {
          const double factor = m[i * ld + k];
          const double* __restrict above = x + k * ld;
          double* __restrict row = x + i * ld;
          for (int64_t j = 0; j < width; ++j) row[j] -= factor * above[j];
        }
      if (p1 < n)
        subtract_product(n - p1, width, p1 - p0, m + p1 * ld + p0, ld, x + p0 * ld, ld, x + p1 * ld, ld, space);
    }
    for (int64_t p0 = (n - 1) / PANEL * PANEL; p0 >= 0; p0 -= PANEL) {
      const int64_t p1 = p0 + PANEL < n ? p0 + PANEL : n;
      for (int64_t i = p1 - 1; i >= p0; --i) {
        double* __restrict row = x + i * ld;
        for (int64_t k = i + 1; k < p1; ++k) {
          const double factor = m[i * ld + k];
          const double* __restrict below = x + k * ld;
          for (int64_t j = 0; j < width; ++j) row[j] -= factor * below[j];
        }
        const double pivot = m[i * ld + i];
        for (int64_t j = 0; j < width; ++j) row[j] /= pivot;
      }
      if (p0 > 0) subtract_product(p0, width, p1 - p0, m + p0, ld, x + p0 * ld, ld, x, ld, space);
    }
  });
  return starved.load() ? n : -1;
}

/** Scratch of one inversion, in one block: matrix, inverse, panel space, row order. */
struct InverseSpace {
  int64_t ld;
  double *matrix, *result, *work;
  int64_t* order;
  static bool reserve(int64_t n, int64_t extra, InverseSpace& space, double*& rest) {
    constexpr int64_t lanes = VecOf<double>::lanes;
    space.ld = (n + lanes - 1) / lanes * lanes + lanes;
    const int64_t square = n * space.ld;
    double* const p = scratch_of<double>(0, 2 * square + n * PANEL + n + extra * square + lanes);
    if (!p) return false;
    space.matrix = p;
    space.result = p + square;
    space.work = p + 2 * square;
    space.order = reinterpret_cast<int64_t*>(space.work + n * PANEL);
    rest = space.work + n * PANEL + n;
    return true;
  }
};

inline int inverse(const float* x, int64_t n, float* out) {
  InverseSpace space;
  double* rest;
  if (!InverseSpace::reserve(n, 0, space, rest))
    return fail(PL_OUT_OF_MEMORY, "inverse: no memory for n = %lld", (long long)n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) space.matrix[i * space.ld + j] = static_cast<double>(x[i * n + j]);
  const int64_t bad = invert_in_place(space.matrix, n, space.ld, space.result, space.work, space.order);
  if (bad == n) return fail(PL_OUT_OF_MEMORY, "inverse: no memory for n = %lld", (long long)n);
  if (bad >= 0)
    return fail(
        PL_SINGULAR,
        "a %lld×%lld matrix has no inverse (pivot %lld); start again from an invertible matrix, or use the Cayley "
        "parametrisation",
        (long long)n, (long long)n, (long long)bad);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) out[i * n + j] = static_cast<float>(space.result[i * space.ld + j]);
  return 0;
}

/** (I − A/2)⁻¹ into space.result, A = tril(seed) − tril(seed)ᵀ. I − A/2 is never singular: its symmetric part is I. */
static inline int invert_cayley(const float* seed, int64_t n, InverseSpace& space) {
  for (int64_t i = 0; i < n; ++i) {
    space.matrix[i * space.ld + i] = 1.0;
    for (int64_t j = 0; j < i; ++j) {
      const double half = static_cast<double>(seed[i * n + j]) / 2;
      space.matrix[i * space.ld + j] = -half;
      space.matrix[j * space.ld + i] = half;
    }
  }
  const int64_t bad = invert_in_place(space.matrix, n, space.ld, space.result, space.work, space.order);
  if (bad == n) return fail(PL_OUT_OF_MEMORY, "cayley: no memory for n = %lld", (long long)n);
  if (bad >= 0)
    return fail(PL_SINGULAR, "cayley: the %lld×%lld seed holds a value that is not finite", (long long)n, (long long)n);
  return 0;
}

/** Q = (I − A/2)⁻¹(I + A/2) = 2·(I − A/2)⁻¹ − I. */
inline int cayley(const float* seed, int64_t n, float* out) {
  InverseSpace space;
  double* rest;
  if (!InverseSpace::reserve(n, 0, space, rest))
    return fail(PL_OUT_OF_MEMORY, "cayley: no memory for n = %lld", (long long)n);
  const int status = invert_cayley(seed, n, space);
  if (status != 0) return status;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      out[i * n + j] = static_cast<float>(2 * space.result[i * space.ld + j] - (i == j ? 1.0 : 0.0));
  return 0;
}

/**
 * With M = I − A/2: M·dQ = ½·dA·(I + Q), hence dL/dA = ½·M⁻ᵀ·G·(I + Q)ᵀ, q being the forward result;
 * grad_seed[i,j] = dA[i,j] − dA[j,i] below the diagonal, 0 elsewhere.
 */
inline int cayley_backward(const float* seed, int64_t n, const float* q, const float* grad, float* grad_seed) {
  InverseSpace space;
  double* rest;
  if (!InverseSpace::reserve(n, 2, space, rest))
    return fail(PL_OUT_OF_MEMORY, "cayley_backward: no memory for n = %lld", (long long)n);
  const int status = invert_cayley(seed, n, space);
  if (status != 0) return status;
  const int64_t ld = space.ld;
  double* const wide = rest;             // G, then the result
  double* const half_t = rest + n * ld;  // (I + Q)ᵀ/2 by rows
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      wide[i * ld + j] = static_cast<double>(grad[i * n + j]);
      half_t[j * ld + i] = (static_cast<double>(q[i * n + j]) + (i == j ? 1.0 : 0.0)) / 2;
    }
  double* const product = space.matrix;
  small_product<double, true>(n, n, n, space.result, ld, wide, ld, product, ld, false);
  small_product<double, false>(n, n, n, product, ld, half_t, ld, wide, ld, false);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      grad_seed[i * n + j] = j < i ? static_cast<float>(wide[i * ld + j] - wide[j * ld + i]) : 0.0f;
  return 0;
}

}  // namespace planish::PL_LEVEL
