// GPTQ's linear algebra in float64: a second moment factored as R·Rᵀ with R upper triangular, and the rounding of a
// weight's columns with feedback from the ones before. The definition is src/quantize/rounding/gptq.ts; sums run in
// another order here. Sources: Frantar et al., arXiv 2210.17323, algorithm 1; Golub & Van Loan, section 4.2.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "tile.h"

namespace planish::PL_LEVEL {

// Pivots that are eliminated together.
constexpr int64_t GPTQ_PANEL = 32;
// Rows of the trailing matrix, and rows of a weight, per task.
constexpr int64_t GPTQ_ROWS = 32;

/** Doubles per row of R: n rounded up to whole vectors, which small_product may read. */
static inline int64_t gptq_stride(int64_t n) {
  constexpr int64_t lanes = VecOf<double>::lanes;
  return (n + lanes - 1) / lanes * lanes;
}

/**
 * factor = R, [n, n] row-major with zeros below the diagonal, R·Rᵀ = H + damp·I for the second moment H, [n, n], whose
 * rows and columns are taken in `order`. `factored` receives 1, or 0 when a pivot is not positive.
 *
 * Both axes reversed, R·Rᵀ is Uᵀ·U, Cholesky's usual form, which is computed by panels of rows of U.
 */
inline int gptq_factor(int64_t n, const double* moment, const int32_t* order, double damp, double* factor,
                       int32_t* factored) {
  const int64_t ld = gptq_stride(n);
  double* const u = scratch_of<double>(0, n * ld + GPTQ_PANEL * ld + n);
  if (!u) return fail(PL_OUT_OF_MEMORY, "gptq_factor: no memory for n = %lld", (long long)n);
  double* const negated = u + n * ld;
  double* const diagonal = negated + GPTQ_PANEL * ld;
  *factored = 0;
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* const from = moment + order[n - 1 - i] * n;
      for (int64_t j = 0; j < i; ++j) u[i * ld + j] = 0;
      for (int64_t j = i; j < n; ++j) u[i * ld + j] = from[order[n - 1 - j]];
      for (int64_t j = n; j < ld; ++j) u[i * ld + j] = 0;
      u[i * ld + i] += damp;
      diagonal[i] = u[i * ld + i];
    }
  });
  for (int64_t p0 = 0; p0 < n; p0 += GPTQ_PANEL) {
    const int64_t p1 = p0 + GPTQ_PANEL < n ? p0 + GPTQ_PANEL : n;
    for (int64_t p = p0; p < p1; ++p) {
      double* const row = u + p * ld;
      // What is left of a dependent channel is rounding noise of the subtraction, of either sign.
      if (!(row[p] > static_cast<double>(n) * 2.220446049250313e-16 * diagonal[p])) return 0;
      const double root = std::sqrt(row[p]);
      for (int64_t j = p; j < n; ++j) row[j] /= root;
      for (int64_t q = p + 1; q < p1; ++q) {
        const double shared = row[q];
        double* __restrict below = u + q * ld;
        for (int64_t j = q; j < n; ++j) below[j] -= shared * row[j];
      }
    }
    if (p1 == n) break;
    // Negated once, so that the product can accumulate.
    for (int64_t p = p0; p < p1; ++p)
      for (int64_t j = p1; j < n; ++j) negated[(p - p0) * ld + j] = -u[p * ld + j];
    parallel_for_dynamic((n - p1 + GPTQ_ROWS - 1) / GPTQ_ROWS, [&](int64_t task) {
      const int64_t i0 = p1 + task * GPTQ_ROWS, i1 = i0 + GPTQ_ROWS < n ? i0 + GPTQ_ROWS : n;
      small_product<double, true>(i1 - i0, n - i0, p1 - p0, negated + i0, ld, u + p0 * ld + i0, ld, u + i0 * ld + i0,
                                  ld, true);
    });
  }
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < i; ++j) factor[i * n + j] = 0;
      for (int64_t j = i; j < n; ++j) factor[i * n + j] = u[(n - 1 - j) * ld + (n - 1 - i)];
    }
  });
  *factored = 1;
  return 0;
}

/**
 * Codes of a weight [rows, cols] on the grid of `bits` bits with one scale for all or one per `group` columns of a row
 * (`scales` of them), and with an offset beside each scale where there are some, when codes are from 0. By R from gptq_factor: column order[j] is rounded at its place j in the order, with (1/R[j,j])·Σ_{i<j} (W − Q)[:,i]·R[i,j]
 * added to it.
 */
inline int gptq_round(int64_t rows, int64_t cols, const double* weight, const double* scale, int64_t scales,
                      int64_t group, const double* offset, int32_t bits, const double* factor, const int32_t* order,
                      int8_t* codes) {
  const double lowest = offset ? 0.0 : -std::ldexp(1.0, bits - 1), highest = lowest + std::ldexp(1.0, bits) - 1;
  std::atomic<bool> starved{false};
  parallel_for_dynamic((rows + GPTQ_ROWS - 1) / GPTQ_ROWS, [&](int64_t task) {
    const int64_t r0 = task * GPTQ_ROWS, count = r0 + GPTQ_ROWS < rows ? GPTQ_ROWS : rows - r0;
    const int64_t ld = gptq_stride(GPTQ_PANEL);
    // W − Q by position; a panel of R with padded rows; what is fed back to the panel's columns.
    double* const error = scratch_of<double>(0, count * cols + cols * ld + count * ld);
    if (!error) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    double* const panel = error + count * cols;
    double* const fed = panel + cols * ld;
    for (int64_t first = 0; first < cols; first += GPTQ_PANEL) {
      const int64_t width = first + GPTQ_PANEL < cols ? GPTQ_PANEL : cols - first;
      for (int64_t i = 0; i < first + width; ++i) {
        std::memcpy(panel + i * ld, factor + i * cols + first, static_cast<size_t>(width) * sizeof(double));
        for (int64_t j = width; j < ld; ++j) panel[i * ld + j] = 0;
      }
      if (first > 0) small_product<double, false>(count, width, first, error, cols, panel, ld, fed, ld, false);
      else std::memset(fed, 0, static_cast<size_t>(count * ld) * sizeof(double));
      for (int64_t r = 0; r < count; ++r) {
        double* __restrict sums = fed + r * ld;
        for (int64_t j = 0; j < width; ++j) {
          const double* const shares = panel + (first + j) * ld;
          const int64_t at = (r0 + r) * cols + order[first + j];
          const int64_t own = scales == 1 ? 0 : at / group;
          const double step = scale[own], zero = offset ? offset[own] : 0.0;
          double code = std::nearbyint((weight[at] + sums[j] / shares[j] - zero) / step);
          code = code > lowest ? code : lowest;
          code = code < highest ? code : highest;
          codes[at] = static_cast<int8_t>(code);
          const double wrong = weight[at] - zero - code * step;
          error[r * cols + first + j] = wrong;
          for (int64_t c = j + 1; c < width; ++c) sums[c] += wrong * shares[c];
        }
      }
    }
  });
  if (starved.load())
    return fail(PL_OUT_OF_MEMORY, "gptq_round: no memory for %lld×%lld", (long long)rows, (long long)cols);
  return 0;
}

}  // namespace planish::PL_LEVEL
