// Products with few rows (decoding): B is read once, straight from where it lies, since packing it would cost more
// than the product.
#include "abi/codes.h"

namespace planish {
namespace PL_LEVEL {

// Rows of A up to which B is not packed. In f32 and int8 the kernels below run near the units' rate once their sums
// are long, so only reading B again for every four rows ends their advantage; bf16 is rounded anew each time.
// THIN_ROWS_LONG of the ABI's codes is theirs.
constexpr int64_t THIN_ROWS = 8;
constexpr int64_t THIN_ROWS_LONG_BYTES = PL_ISA >= 3 ? THIN_ROWS : 24;
constexpr int64_t LONG_SUM = 256;
// Kernels exist for one row and for this many; what is missing to a multiple is computed and dropped.
constexpr int ROWS_AT_ONCE = 4;
constexpr int COLUMNS_AT_ONCE = 4;  // what sum_four adds up
// Elements of B that one thread should have at least: some 10 µs of reading.
constexpr int64_t THIN_GRAIN = 1 << 16;

template <bool ROUND, class Source>
inline VF load_rounded(const Source* p) {
  const VF x = load(p);
  return ROUND ? round_bf16(x) : x;
}

template <bool ROUND, class Source>
inline VF load_partial(const Source* p, int64_t count) {
  Source values[LANES] = {};
  for (int64_t j = 0; j < count; j++) values[j] = p[j];
  return load_rounded<ROUND>(values);
}

// a: ROWS rows of `padded` floats. result[r][c] = Σ_k a[r,k]·b[c,k], b's rows contiguous along k.
template <bool ROUND, int ROWS, class Source>
void thin_dots(const float* a, int64_t padded, const Source* b, int64_t stride, int64_t k, int columns,
               float (*result)[COLUMNS_AT_ONCE]) {
  VF acc[ROWS][COLUMNS_AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = zero_f();
  const Source* row[COLUMNS_AT_ONCE];
  for (int c = 0; c < COLUMNS_AT_ONCE; c++) row[c] = b + (c < columns ? c : 0) * stride;
  int64_t at = 0;
  for (; at + LANES <= k; at += LANES) {
    VF y[COLUMNS_AT_ONCE];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) y[c] = load_rounded<ROUND>(row[c] + at);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const VF x = load(a + r * padded + at);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = fma(x, y[c], acc[r][c]);
    }
  }
  if (at < k) {
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) {
      const VF y = load_partial<ROUND>(row[c] + at, k - at);
      for (int r = 0; r < ROWS; r++) acc[r][c] = fma(load(a + r * padded + at), y, acc[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) sum_four(result[r], acc[r]);
}

// The same for b contiguous along its columns: result[r][0 … COLUMNS_AT_ONCE·LANES) = Σ_k a[r,k]·b[k, ·].
template <bool ROUND, int ROWS, class Source>
void thin_sums(const float* a, int64_t padded, const Source* b, int64_t stride, int64_t k, int64_t columns,
               float (*result)[COLUMNS_AT_ONCE * LANES]) {
  VF acc[ROWS][COLUMNS_AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = zero_f();
  const bool whole = columns == COLUMNS_AT_ONCE * LANES;
  for (int64_t at = 0; at < k; at++, b += stride) {
    VF y[COLUMNS_AT_ONCE];
    if (whole) {
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS_AT_ONCE; c++) y[c] = load_rounded<ROUND>(b + c * LANES);
    } else {
      for (int c = 0; c < COLUMNS_AT_ONCE; c++) {
        const int64_t left = columns - c * LANES;
        y[c] = left <= 0 ? zero_f() : load_partial<ROUND>(b + c * LANES, left < LANES ? left : LANES);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const VF x = splat(a[r * padded + at]);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = fma(x, y[c], acc[r][c]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) store(&result[r][c * LANES], acc[r][c]);
}

// Copies A to f32 rows of `padded` elements, scaled and rounded.
inline void prepare_rows(float* rows, int64_t m, int64_t k, int64_t padded, const Side& a, bool round) {
  for (int64_t i = 0; i < m; i++) {
    float* row = rows + i * padded;
    if (a.codes) {
      for (int64_t at = 0; at < k; at++) row[at] = static_cast<float>(*a.at<int8_t>(i, at));
    } else {
      for (int64_t at = 0; at < k; at++) row[at] = *a.at<float>(i, at);
    }
    if (a.k_scale)
      for (int64_t at = 0; at < k; at++) row[at] *= a.k_scale[at];
    for (int64_t at = k; at < padded; at++) row[at] = 0;
    if (round)
      for (int64_t at = 0; at < padded; at += LANES) store(row + at, round_bf16(load(row + at)));
  }
}

// Columns [j, j + columns) of `count` ≤ ROWS rows starting at `a`, into `result` [ROWS][width].
template <bool ROUND, int ROWS, class Source>
inline void thin_block(const float* a, int64_t padded, const Side& b, int64_t j, int64_t columns, int64_t k,
                       float* result) {
  if (b.stride_k == 1) {
    thin_dots<ROUND, ROWS>(a, padded, b.at<Source>(j, 0), b.stride_i, k, static_cast<int>(columns),
                           reinterpret_cast<float (*)[COLUMNS_AT_ONCE]>(result));
  } else {
    thin_sums<ROUND, ROWS>(a, padded, b.at<Source>(j, 0), b.stride_k, k, columns,
                           reinterpret_cast<float (*)[COLUMNS_AT_ONCE * LANES]>(result));
  }
}

template <bool ROUND, int ROWS>
inline void thin_block(const float* a, int64_t padded, const Side& b, int64_t j, int64_t columns, int64_t k,
                       float* result) {
  if (b.codes) {
    thin_block<ROUND, ROWS, int8_t>(a, padded, b, j, columns, k, result);
  } else {
    thin_block<ROUND, ROWS, float>(a, padded, b, j, columns, k, result);
  }
}

// store(values, i, j, count) receives `count` neighbouring columns of one row.
template <bool ROUND, class Store>
int thin_product(int64_t m, int64_t n, int64_t k, const Side& a, const Side& b, bool parallel, const Store& store) {
  const int64_t padded = (k + LANES - 1) / LANES * LANES;
  const int64_t rows = m == 1 ? 1 : (m + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
  float* prepared = static_cast<float*>(thread_scratch(1, static_cast<size_t>(rows * padded + LANES) * sizeof(float)));
  if (!prepared) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product");
  prepare_rows(prepared, m, k, padded, a, ROUND);
  memset(prepared + m * padded, 0, static_cast<size_t>((rows - m) * padded) * sizeof(float));
  const int64_t width = b.stride_k == 1 ? COLUMNS_AT_ONCE : COLUMNS_AT_ONCE * LANES;
  const int64_t blocks = (n + width - 1) / width;
  const auto range = [&](int64_t begin, int64_t end) {
    alignas(64) float result[ROWS_AT_ONCE * COLUMNS_AT_ONCE * LANES];
    for (int64_t block = begin; block < end; block++) {
      const int64_t j = block * width, columns = n - j < width ? n - j : width;
      for (int64_t i = 0; i < m; i += ROWS_AT_ONCE) {
        if (rows == 1) {
          thin_block<ROUND, 1>(prepared, padded, b, j, columns, k, result);
        } else {
          thin_block<ROUND, ROWS_AT_ONCE>(prepared + i * padded, padded, b, j, columns, k, result);
        }
        for (int64_t r = 0; r < ROWS_AT_ONCE && i + r < m; r++) store(result + r * width, i + r, j, columns);
      }
    }
  };
  if (parallel) {
    const int64_t grain = THIN_GRAIN / (width * (k > 0 ? k : 1));
    parallel_ranges(blocks, grain > 0 ? grain : 1, range);
  } else {
    range(0, blocks);
  }
  return 0;
}

// The vector int8 unit, also where tiles exist: B's bytes are shifted as they are read (see UnitI8).
constexpr uint8_t THIN_FLIP = PL_ISA >= 2 ? 0x80 : 0;

// sums[r][c] for `rows` ≤ ROWS rows and `columns` columns from i and j on.
template <int ROWS>
void thin_bytes(const int8_t* a, const int32_t* row_sums, const int8_t* b, int64_t k, int64_t i, int64_t rows,
                int64_t j, int64_t columns, int32_t (*sums)[COLUMNS_AT_ONCE]) {
  constexpr int SPAN = LANES * UnitI8::GROUP;
  const ByteSide left{a, k, 0}, right{b, k, THIN_FLIP};
  int64_t row[ROWS], column[COLUMNS_AT_ONCE];
  for (int r = 0; r < ROWS; r++) row[r] = r < rows ? i + r : i;
  for (int c = 0; c < COLUMNS_AT_ONCE; c++) column[c] = c < columns ? j + c : j;
  VI acc[ROWS][COLUMNS_AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = zero_i();
  int64_t at = 0;
  for (; at + SPAN <= k; at += SPAN) {
    VI y[COLUMNS_AT_ONCE];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) y[c] = load_byte_groups(b + column[c] * k + at, THIN_FLIP);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const VI x = load_byte_groups(a + row[r] * k + at, 0);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS_AT_ONCE; c++) acc[r][c] = UnitI8::step(acc[r][c], x, y[c]);
    }
  }
  if (at < k) {
    for (int c = 0; c < COLUMNS_AT_ONCE; c++) {
      const VI y = load_byte_row(right, column[c], at, k - at);
      for (int r = 0; r < ROWS; r++) acc[r][c] = UnitI8::step(acc[r][c], load_byte_row(left, row[r], at, k - at), y);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) sum_four(sums[r], acc[r]);
  if (THIN_FLIP != 0)
    for (int r = 0; r < ROWS; r++) {
      const uint32_t correction = THIN_FLIP * static_cast<uint32_t>(row_sums[row[r]]);
      for (int c = 0; c < COLUMNS_AT_ONCE; c++)
        sums[r][c] = static_cast<int32_t>(static_cast<uint32_t>(sums[r][c]) - correction);
    }
}

}  // namespace PL_LEVEL
}  // namespace planish
