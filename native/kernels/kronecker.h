// The Kronecker transform of rows, out = leftᵀ·(x ⊙ diag)·right per row, and its gradient.
// Definition: src/backend/contract/training.ts; source: docs/methods.md, Kronecker transform.
//
// Rows are taken a block at a time, small enough to stay in L2. The right factor sees a block as one tall matrix of
// rows·n_left lines; the left factor works row by row. Sums over rows are kept per thread and added in thread order.
#pragma once

#include "../planish.h"
#include "../pool.h"
#include "rows.h"
#include "tile.h"

namespace planish::PL_LEVEL {

/** Rows per block: about 8192 elements, so that the five arrays of the backward pass share L2 with the factors. */
PL_INLINE int64_t kronecker_block(int64_t width) {
  const int64_t rows = 8192 / (width > 0 ? width : 1);
  return rows < 1 ? 1 : rows;
}

/** The matrix with rows padded to whole vectors (in place when they are already), or its transpose. */
static inline const float* padded_factor(const float* m, int64_t n, bool transposed, float* space) {
  const int64_t ld = padded(n);
  if (transposed) copy_transposed(m, n, n, n, space, ld);
  else if (ld == n) return m;
  else copy_padded(m, n, n, n, space, ld);
  return space;
}

/**
 * out = leftᵀ·x·right for `count` rows. `right_rows`: the right factor with rows padded to whole vectors. `work` holds
 * count·n_left padded lines; where n_right is no whole number of vectors its padding must hold numbers, and keeps them.
 */
static inline void transform_rows(const float* x, int64_t count, int64_t n_left, int64_t n_right, const float* left,
                                  const float* right_rows, float* work, float* out) {
  const int64_t width = n_left * n_right, ld = padded(n_right);
  if (!left && !right_rows) {
    std::memcpy(out, x, static_cast<size_t>(count * width) * 4);
    return;
  }
  if (!left) {
    small_product<float, false>(count * n_left, n_right, n_right, x, n_right, right_rows, ld, out, n_right, false);
    return;
  }
  const float* lines = x;
  int64_t line_stride = n_right;
  if (right_rows) {
    small_product<float, false>(count * n_left, n_right, n_right, x, n_right, right_rows, ld, work, ld, false);
    lines = work;
    line_stride = ld;
  } else if (ld != n_right) {
    copy_padded(x, count * n_left, n_right, n_right, work, ld);
    lines = work;
    line_stride = ld;
  }
  products_across(count, n_left, n_right, n_left, left, lines, line_stride, n_left * line_stride, out, n_right, width);
}

inline int kronecker(const float* x, int64_t rows, int64_t n_left, int64_t n_right, const float* left,
                     const float* right, const float* diag, float* out) {
  const int64_t width = n_left * n_right, ld = padded(n_right);
  float* const right_space = scratch_of<float>(0, n_right * ld);
  if (!right_space) return fail(PL_OUT_OF_MEMORY, "kronecker: no memory for a %lld-wide factor", (long long)n_right);
  const float* const right_rows = right ? padded_factor(right, n_right, false, right_space) : nullptr;
  const int64_t block = kronecker_block(width);
  std::atomic<bool> starved{false};
  parallel_ranges(rows, block, [&](int64_t begin, int64_t end) {
    float* const work = scratch_of<float>(1, block * (width + n_left * ld));
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const scaled = work + block * n_left * ld;
    // Padding of the lines is read along with them, so it must hold numbers; nothing writes it later.
    if (ld != n_right) std::memset(work, 0, static_cast<size_t>(block * n_left * ld) * 4);
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* source = x + r0 * width;
      if (diag) {
        for (int64_t r = 0; r < count; ++r)
          map_lanes2(source + r * width, diag, scaled + r * width, width, [](vf a, vf d) { return a * d; });
        source = scaled;
      }
      transform_rows(source, count, n_left, n_right, left, right_rows, work, out + r0 * width);
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
 * MR×NR inner products along lanes: sums[a][i] (a vector each, at stride `ld_sums` vectors) += Σ over `count` rows of
 * MR lines of x times NR lines of h, `vectors` long. Nothing is transposed and nothing summed across lanes, which the
 * caller does once at the end.
 */
template <int MR, int NR>
static void lane_products(Lines x, Lines h, int64_t count, int64_t vectors, float* sums, int64_t ld_sums) {
  vf acc[MR][NR];
#pragma GCC unroll 8
  for (int a = 0; a < MR; ++a)
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) acc[a][i] = load(sums + (a * ld_sums + i) * VL);
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
    for (int i = 0; i < NR; ++i) store(sums + (a * ld_sums + i) * VL, acc[a][i]);
}

using LaneFunction = void (*)(Lines, Lines, int64_t, int64_t, float*, int64_t);
#if defined(__AVX512F__)
constexpr int LANE_ROWS = 4, LANE_COLUMNS = 6;
#else
constexpr int LANE_ROWS = 3, LANE_COLUMNS = 3;
#endif

template <int MR>
static LaneFunction lane_function(int64_t columns) {
  switch (columns) {
    case 1: return lane_products<MR, 1>;
    case 2: return lane_products<MR, 2>;
    case 3: return lane_products<MR, 3>;
#if defined(__AVX512F__)
    case 4: return lane_products<MR, 4>;
    case 5: return lane_products<MR, 5>;
    default: return lane_products<MR, 6>;
#else
    default: return lane_products<MR, 3>;
#endif
  }
}
static inline LaneFunction lane_function(int64_t rows, int64_t columns) {
  switch (rows) {
    case 1: return lane_function<1>(columns);
    case 2: return lane_function<2>(columns);
    case 3: return lane_function<3>(columns);
    default:
#if defined(__AVX512F__)
      return lane_function<4>(columns);
#else
      return lane_function<3>(columns);
#endif
  }
}

/** sums[a][i] += lane products of line a of x and line i of h, n_left of each, over `count` rows. */
static inline void add_lane_products(Lines x, Lines h, int64_t n_left, int64_t vectors, int64_t count, float* sums) {
  const int64_t row_groups = (n_left + LANE_ROWS - 1) / LANE_ROWS;
  const int64_t column_groups = (n_left + LANE_COLUMNS - 1) / LANE_COLUMNS;
  for (int64_t ra = 0; ra < row_groups; ++ra) {
    const int64_t a0 = n_left * ra / row_groups, a1 = n_left * (ra + 1) / row_groups;
    for (int64_t ci = 0; ci < column_groups; ++ci) {
      const int64_t i0 = n_left * ci / column_groups, i1 = n_left * (ci + 1) / column_groups;
      lane_function(a1 - a0, i1 - i0)({x.at(a0), x.row, x.line}, {h.at(i0), h.row, h.line}, count, vectors,
                                      sums + (a0 * n_left + i0) * VL, n_left);
    }
  }
}

inline int kronecker_backward(const float* x, int64_t rows, int64_t n_left, int64_t n_right, const float* left,
                              const float* right, const float* diag, const float* grad, float* grad_x, float* grad_left,
                              float* grad_right, float* grad_diag) {
  const int64_t width = n_left * n_right, ld = padded(n_right), line = n_left * ld;
  const int64_t block = kronecker_block(width);
  int64_t parts = rows / block;
  if (parts > thread_count()) parts = thread_count();
  if (parts < 1) parts = 1;
  // Lane sums of the left gradient stay in vectors as long as they fit beside the block in L2.
  const int64_t left_sums = grad_left ? n_left * n_left * VL : 0;
  const int64_t right_sums = grad_right ? n_right * ld : 0;
  const int64_t diag_sums = grad_diag ? padded(width) : 0;
  const int64_t part_floats = left_sums + right_sums + diag_sums;
  float* const right_space = scratch_of<float>(0, n_right * ld + n_left * n_left);
  float* const sums = scratch_of<float>(1, parts * part_floats + VL);
  if (!right_space || !sums)
    return fail(PL_OUT_OF_MEMORY, "kronecker_backward: no memory for gradients of %lld×%lld", (long long)n_left,
                (long long)n_right);
  std::memset(sums, 0, static_cast<size_t>(parts * part_floats) * 4);
  const float* const right_t = right ? padded_factor(right, n_right, true, right_space) : nullptr;
  float* const left_t = right_space + n_right * ld;
  if (left) copy_transposed(left, n_left, n_left, n_left, left_t, n_left);
  std::atomic<bool> starved{false};
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* const part_left = sums + part * part_floats;
    float* const part_right = part_left + left_sums;
    float* const part_diag = part_right + right_sums;
    const int64_t dense = block * width + VL;
    float* const work = scratch_of<float>(2, 3 * dense + 2 * block * line);
    if (!work) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    float* const space_x = work;                    // x ⊙ diag
    float* const space_z = space_x + dense;         // leftᵀ·(x ⊙ diag)
    float* const space_d = space_z + dense;         // left·grad·rightᵀ
    float* const space_g = space_d + dense;         // grad, lines padded
    float* const space_h = space_g + block * line;  // grad·rightᵀ, lines padded
    // Vectors that reach past a line of x meet zeros of h in the lane sums, so h's padding must stay zero.
    if (ld != n_right) std::memset(space_g, 0, static_cast<size_t>(2 * block * line) * 4);
    for (int64_t r0 = begin; r0 < end; r0 += block) {
      const int64_t count = end - r0 < block ? end - r0 : block;
      const float* const xr = x + r0 * width;
      // Lines whose vectors reach past them are read from a copy where nothing may follow.
      const float* scaled = xr;
      if (diag || ld != n_right) {
        scaled = space_x;
        if (diag) {
          for (int64_t r = 0; r < count; ++r)
            map_lanes2(xr + r * width, diag, space_x + r * width, width, [](vf a, vf d) { return a * d; });
        } else {
          std::memcpy(space_x, xr, static_cast<size_t>(count * width) * 4);
        }
        store(space_x + count * width, vf{});
      }
      const float* g = grad + r0 * width;
      int64_t ld_g = n_right;
      if (ld != n_right && (!right || r0 + count == rows)) {
        copy_padded(g, count * n_left, n_right, n_right, space_g, ld);
        g = space_g;
        ld_g = ld;
      }
      if (grad_right) {
        const float* z = scaled;
        if (left) {
          products_across(count, n_left, n_right, n_left, left, scaled, n_right, width, space_z, n_right, width);
          z = space_z;
        }
        small_product<float, true>(n_right, n_right, count * n_left, z, n_right, g, ld_g, part_right, ld, true);
      }
      if (!grad_x && !grad_left && !grad_diag) continue;
      const float* h = g;
      if (right) {
        small_product<float, false>(count * n_left, n_right, n_right, g, ld_g, right_t, ld, space_h, ld, false);
        h = space_h;
      }
      if (grad_left) add_lane_products({scaled, width, n_right}, {h, line, ld}, n_left, ld / VL, count, part_left);
      if (!grad_x && !grad_diag) continue;
      float* const target = grad_x ? grad_x + r0 * width : space_d;
      if (left) {
        // Straight to grad_x where nothing is left to do to it.
        float* const d = diag || grad_diag ? space_d : target;
        products_across(count, n_left, n_right, n_left, left_t, h, ld, line, d, n_right, width);
        h = d;
      } else if (ld != n_right) {
        for (int64_t i = 0; i < count * n_left; ++i)
          std::memcpy(space_d + i * n_right, h + i * ld, static_cast<size_t>(n_right) * 4);
        h = space_d;
      }
      if (!grad_diag && h == target) continue;
      for (int64_t r = 0; r < count; ++r) {
        const float* const d = h + r * width;
        if (grad_diag)
          for (int64_t i = 0; i < width; i += VL) {
            const vf term = load_up_to(d + i, width - i) * load_up_to(xr + r * width + i, width - i);
            store(part_diag + i, load(part_diag + i) + term);
          }
        if (!grad_x) continue;
        if (diag) map_lanes2(d, diag, target + r * width, width, [](vf a, vf b) { return a * b; });
        else std::memcpy(target + r * width, d, static_cast<size_t>(width) * 4);
      }
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "kronecker_backward: no memory for a block of rows");
  const auto parts_of = [&](int64_t at) {
    float total = sums[at];
    for (int64_t part = 1; part < parts; ++part) total += sums[part * part_floats + at];
    return total;
  };
  if (grad_left) {
    for (int64_t i = 0; i < n_left * n_left; ++i) {
      vf total = load(sums + i * VL);
      for (int64_t part = 1; part < parts; ++part) total += load(sums + part * part_floats + i * VL);
      grad_left[i] = sum_lanes(total);
    }
  }
  if (grad_right)
    for (int64_t i = 0; i < n_right; ++i)
      for (int64_t j = 0; j < n_right; ++j) grad_right[i * n_right + j] = parts_of(left_sums + i * ld + j);
  if (grad_diag)
    for (int64_t i = 0; i < width; ++i) grad_diag[i] = parts_of(left_sums + right_sums + i);
  return 0;
}

}  // namespace planish::PL_LEVEL
