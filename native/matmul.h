// Matrix products: out = [out +] alpha·nScale ⊙ (A ⊙ kScale)·B + bias, in f32 or bf16, and exact int8 products.
//
// Large products follow Goto and van de Geijn (2008): B is packed once for all threads (in column chunks that stay in
// the last-level cache), then blocks of output are handed out, each thread packing its own rows of A for one stretch
// of k at a time. An output element is computed by one thread in one order of k, so results do not depend on the
// number of threads.
namespace planish {
namespace PL_LEVEL {

// Multiply-adds below which a product stays on the calling thread.
constexpr int64_t PARALLEL_WORK = 1 << 18;
// Lanes of k per block: a panel of B of this depth (32 KiB at 32 columns) stays in the first-level cache beside one of A.
constexpr int64_t BLOCK_GROUPS = 256;
// Bytes of packed A that one thread works on: half of a second-level cache of 512 KiB.
constexpr int64_t BLOCK_A_BYTES = 256 << 10;
constexpr int64_t CHUNK_B_BYTES = 12 << 20;

inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

template <class F>
inline void tasks(bool parallel, int64_t count, const F& f) {
  if (parallel) {
    parallel_for_dynamic(count, f);
  } else {
    for (int64_t task = 0; task < count; task++) f(task);
  }
}

// fill_a and fill_b: (panel, i0, count, k0, length). store: (tile, i0, rows, j0, columns, k0), called once per block of k.
// `split_k` says whether k may be cut into blocks.
template <class Unit, class FillA, class FillB, class Store>
int blocked_product(int64_t m, int64_t n, int64_t k, bool split_k, bool parallel, const FillA& fill_a,
                    const FillB& fill_b, const Store& store) {
  constexpr int64_t ROWS = MR<Unit>, STEP = GROUP_STEP<Unit>, GROUP = Unit::GROUP;
  const int threads = parallel ? thread_count() : 1;
  const int64_t groups = ceil_div(k, GROUP);
  const int64_t k_blocks = split_k && groups > BLOCK_GROUPS ? ceil_div(groups, BLOCK_GROUPS) : 1;
  // Equal blocks, whole tile steps.
  const int64_t block_groups = ceil_div(ceil_div(groups, k_blocks), STEP) * STEP;
  const int64_t block_k = block_groups * GROUP;
  const int64_t panel_b = block_groups * NR, panel_a = block_groups * ROWS;

  const int64_t all_panels = ceil_div(n, NR);
  int64_t chunk_panels = CHUNK_B_BYTES / (panel_b * 4 * k_blocks + 1);
  chunk_panels = chunk_panels < 4 ? 4 : chunk_panels;
  const int64_t chunks = ceil_div(all_panels, chunk_panels);
  chunk_panels = ceil_div(all_panels, chunks);

  int64_t row_panels = BLOCK_A_BYTES / (panel_a * 4 + 1);
  row_panels = row_panels < 1 ? 1 : row_panels;
  // A multiple of the thread count of nearly equal row blocks; columns are split too when rows alone are too few.
  const int64_t all_row_panels = ceil_div(m, ROWS);
  int64_t row_blocks = ceil_div(ceil_div(all_row_panels, row_panels), threads) * threads;
  if (row_blocks > all_row_panels) row_blocks = all_row_panels;
  row_panels = ceil_div(all_row_panels, row_blocks);
  row_blocks = ceil_div(all_row_panels, row_panels);
  int64_t column_blocks = row_blocks >= 4 * threads || threads == 1 ? 1 : ceil_div(4 * threads, row_blocks);
  if (column_blocks > chunk_panels) column_blocks = chunk_panels;

  const size_t bytes_b = static_cast<size_t>(chunk_panels * k_blocks * panel_b) * 4;
  const size_t bytes_a = static_cast<size_t>(row_panels * panel_a) * 4;
  uint32_t* const packed_b = static_cast<uint32_t*>(thread_scratch(0, bytes_b + 64));
  if (!packed_b) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product");
  std::atomic<bool> starved{false};

  for (int64_t first = 0; first < all_panels; first += chunk_panels) {
    const int64_t panels = all_panels - first < chunk_panels ? all_panels - first : chunk_panels;
    tasks(parallel, panels * k_blocks, [&](int64_t task) {
      const int64_t panel = task % panels, block = task / panels;
      const int64_t j = (first + panel) * NR, k0 = block * block_k;
      fill_b(packed_b + (block * panels + panel) * panel_b, j, n - j < NR ? n - j : NR, k0,
             k - k0 < block_k ? k - k0 : block_k);
    });
    tasks(parallel, row_blocks * column_blocks, [&](int64_t task) {
      const int64_t row_block = task / column_blocks, column_block = task % column_blocks;
      const int64_t panel_begin = panels * column_block / column_blocks;
      const int64_t panel_end = panels * (column_block + 1) / column_blocks;
      const int64_t i_begin = row_block * row_panels * ROWS;
      const int64_t i_end = i_begin + row_panels * ROWS < m ? i_begin + row_panels * ROWS : m;
      uint32_t* const packed_a = static_cast<uint32_t*>(thread_scratch(1, bytes_a + 64));
      if (!packed_a) {
        starved.store(true);
        return;
      }
      alignas(64) typename Unit::Cell tile[ROWS * NR];
      UnitScope<Unit> scope;
      for (int64_t block = 0; block < k_blocks; block++) {
        const int64_t k0 = block * block_k, length = k - k0 < block_k ? k - k0 : block_k;
        const int64_t steps = ceil_div(ceil_div(length, GROUP), STEP) * STEP;
        for (int64_t i = i_begin, p = 0; i < i_end; i += ROWS, p++)
          fill_a(packed_a + p * panel_a, i, i_end - i < ROWS ? i_end - i : ROWS, k0, length);
        for (int64_t panel = panel_begin; panel < panel_end; panel++) {
          const int64_t j = (first + panel) * NR;
          const int columns = static_cast<int>(n - j < NR ? n - j : NR);
          const uint32_t* b = packed_b + (block * panels + panel) * panel_b;
          for (int64_t i = i_begin, p = 0; i < i_end; i += ROWS, p++) {
            const int rows = static_cast<int>(i_end - i < ROWS ? i_end - i : ROWS);
            multiply_panels<Unit>(steps, packed_a + p * panel_a, b, tile, rows, columns);
            store(tile, i, rows, j, columns, k0);
          }
        }
      }
    });
  }
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product");
  return 0;
}

// What happens to a sum on its way to memory.
struct Output {
  float* data;
  int64_t stride;
  const float* n_scale;
  const float* bias;
  float alpha;
  bool accumulate;

  // `fresh`: the first (or only) part of the sum over k, which brings the bias and overwrites.
  void store_row(const float* sums, int64_t i, int64_t j, int64_t count, bool fresh) const {
    float* out = data + i * stride + j;
    const bool add = accumulate || !fresh;
    const float* shift = fresh ? bias : nullptr;
    float values[NR > COLUMNS_AT_ONCE * LANES ? NR : COLUMNS_AT_ONCE * LANES];
    const bool plain = !n_scale && !shift && alpha == 1.0f;
    if (!plain) {
      for (int64_t c = 0; c < count; c++) values[c] = sums[c] * alpha;
      if (n_scale)
        for (int64_t c = 0; c < count; c++) values[c] *= n_scale[j + c];
      if (shift)
        for (int64_t c = 0; c < count; c++) values[c] += shift[j + c];
      sums = values;
    }
    if (add) {
      for (int64_t c = 0; c < count; c++) out[c] += sums[c];
    } else {
      memcpy(out, sums, sizeof(float) * static_cast<size_t>(count));
    }
  }

  void store_tile(const float* tile, int64_t i, int rows, int64_t j, int columns, bool fresh) const {
    if (columns == NR) {
      for (int r = 0; r < rows; r++) store_row(tile + r * NR, i + r, j, NR, fresh);
    } else {
      for (int r = 0; r < rows; r++) store_row(tile + r * NR, i + r, j, columns, fresh);
    }
  }
};

template <class Unit>
int real_product(int64_t m, int64_t n, int64_t k, const Side& a, const Side& b, const Output& output, bool parallel) {
  const bool is_long = !Unit::ROUND && !b.codes && (b.stride_k != 1 || k >= LONG_SUM);
  if (m <= (is_long ? THIN_ROWS_LONG : THIN_ROWS))
    return thin_product<Unit::ROUND>(
        m, n, k, a, b, parallel,
        [&](const float* sums, int64_t i, int64_t j, int64_t count) { output.store_row(sums, i, j, count, true); });
  return blocked_product<Unit>(
      m, n, k, true, parallel,
      [&](uint32_t* panel, int64_t i, int64_t count, int64_t k0, int64_t length) {
        pack_a<Unit>(panel, a, i, count, k0, length);
      },
      [&](uint32_t* panel, int64_t j, int64_t count, int64_t k0, int64_t length) {
        pack_b<Unit>(panel, b, j, count, k0, length);
      },
      [&](const float* tile, int64_t i, int rows, int64_t j, int columns, int64_t k0) {
        output.store_tile(tile, i, rows, j, columns, k0 == 0);
      });
}

inline int matmul(int64_t m, int64_t n, int64_t k, int64_t batch, const void* a, int64_t a_offset, int64_t a_stride,
                  int64_t a_batch, int32_t a_flags, const void* b, int64_t b_offset, int64_t b_stride, int64_t b_batch,
                  int32_t b_flags, float* out, int64_t out_offset, int64_t out_stride, int64_t out_batch,
                  const float* k_scale, const float* n_scale, const float* bias, double alpha, int32_t flags) {
  if (m <= 0 || n <= 0 || batch <= 0) return 0;
  const bool a_across = (a_flags & OPERAND_TRANSPOSED) != 0, b_across = (b_flags & OPERAND_TRANSPOSED) != 0;
  const Side left =
      Side{a, (a_flags & OPERAND_CODES) != 0, a_across ? 1 : a_stride, a_across ? a_stride : 1, k_scale, m}.advanced(
          a_offset);
  const Side right =
      Side{b, (b_flags & OPERAND_CODES) != 0, b_across ? b_stride : 1, b_across ? 1 : b_stride, nullptr, n}.advanced(
          b_offset);
  const auto one = [&](int64_t index, bool parallel) {
    const Output output{out + out_offset + index * out_batch, out_stride, n_scale, bias, static_cast<float>(alpha),
                        (flags & PRODUCT_ACCUMULATES) != 0};
    const Side x = left.advanced(index * a_batch), y = right.advanced(index * b_batch);
    return flags & PRODUCT_BF16 ? real_product<UnitBf16>(m, n, k, x, y, output, parallel)
                                : real_product<UnitF32>(m, n, k, x, y, output, parallel);
  };
  const int64_t work = m * n * (k > 0 ? k : 1);
  // Many products: one thread each. Few: all threads in each.
  if (batch > 1 && (batch >= 4 * thread_count() || work < PARALLEL_WORK)) {
    std::atomic<bool> failed{false};
    const int64_t grain = work < PARALLEL_WORK ? ceil_div(PARALLEL_WORK, work) : 1;
    parallel_ranges(batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; index++)
        if (one(index, false) != 0) failed.store(true);
    });
    // The reason was recorded on the thread that met it, which need not be this one.
    return failed.load() ? fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product") : 0;
  }
  for (int64_t index = 0; index < batch; index++)
    if (const int code = one(index, work >= PARALLEL_WORK)) return code;
  return 0;
}

#if PL_ISA == 1
// In packed_matmul.h: the same product where all of b lies in [−8, 7]; `done` tells whether it was.
int nibble_matmul(int64_t m, int64_t n, int64_t k, const int8_t* a, const float* a_scale, const int8_t* b,
                  const float* b_scale, const float* bias, float* out, bool& done);
#endif

inline int int_matmul(int64_t m, int64_t n, int64_t k, const int8_t* a, const float* a_scale, const int8_t* b,
                      const float* b_scale, const float* bias, float* out) {
  if (m <= 0 || n <= 0) return 0;
  // 2³¹ / 2¹⁴: beyond it a sum of products of codes could leave int32.
  if (k > 131071)
    return fail(PL_BAD_ARGUMENT, "integer product over k = %lld; at most 131071", static_cast<long long>(k));
  const bool parallel = m * n * (k > 0 ? k : 1) >= 4 * PARALLEL_WORK;
  const auto store_row = [&](const int32_t* sums, int64_t i, int64_t j, int64_t count) {
    float* row = out + i * n + j;
    for (int64_t c = 0; c < count; c++) row[c] = (static_cast<float>(sums[c]) * a_scale[i]) * b_scale[j + c];
    if (bias)
      for (int64_t c = 0; c < count; c++) row[c] += bias[j + c];
  };
  const bool thin = m <= (k >= 4 * LONG_SUM ? THIN_ROWS_LONG_BYTES : THIN_ROWS);
#if PL_ISA == 1
  if (!thin) {
    bool done = false;
    const int code = nibble_matmul(m, n, k, a, a_scale, b, b_scale, bias, out, done);
    if (done || code) return code;
  }
#endif
  int32_t* row_sums = nullptr;
  if (thin ? THIN_FLIP != 0 : UnitI8::B_SHIFT != 0) {
    row_sums = static_cast<int32_t*>(thread_scratch(2, static_cast<size_t>(m) * sizeof(int32_t)));
    if (!row_sums) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product");
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) row_sums[i] = sum_bytes(a + i * k, k);
    };
    if (parallel) {
      parallel_ranges(m, 64, rows);
    } else {
      rows(0, m);
    }
  }
  if (thin) {
    const int64_t blocks = ceil_div(n, COLUMNS_AT_ONCE);
    const int64_t grain = 4 * THIN_GRAIN / (COLUMNS_AT_ONCE * (k > 0 ? k : 1));
    const auto range = [&](int64_t begin, int64_t end) {
      int32_t sums[ROWS_AT_ONCE][COLUMNS_AT_ONCE];
      for (int64_t block = begin; block < end; block++) {
        const int64_t j = block * COLUMNS_AT_ONCE;
        const int64_t columns = n - j < COLUMNS_AT_ONCE ? n - j : COLUMNS_AT_ONCE;
        for (int64_t i = 0; i < m; i += ROWS_AT_ONCE) {
          const int64_t rows = m - i < ROWS_AT_ONCE ? m - i : ROWS_AT_ONCE;
          if (rows == 1) {
            thin_bytes<1>(a, row_sums, b, k, i, rows, j, columns, sums);
          } else {
            thin_bytes<ROWS_AT_ONCE>(a, row_sums, b, k, i, rows, j, columns, sums);
          }
          for (int64_t r = 0; r < rows; r++) store_row(sums[r], i + r, j, columns);
        }
      }
    };
    if (parallel) {
      parallel_ranges(blocks, grain > 0 ? grain : 1, range);
    } else {
      range(0, blocks);
    }
    return 0;
  }
  const ByteSide left{a, k, 0}, right{b, k, static_cast<uint8_t>(UnitI8::B_SHIFT)};
  return blocked_product<UnitI8>(
      m, n, k, false, parallel,
      [&](uint32_t* panel, int64_t i, int64_t count, int64_t, int64_t length) {
        pack_byte_a(panel, left, i, count, length);
      },
      [&](uint32_t* panel, int64_t j, int64_t count, int64_t, int64_t length) {
        pack_byte_panel<NR>(panel, right, j, count, length);
      },
      [&](int32_t* tile, int64_t i, int rows, int64_t j, int columns, int64_t) {
        for (int r = 0; r < rows; r++) {
          int32_t* sums = tile + r * NR;
          if (UnitI8::B_SHIFT != 0) {
            const uint32_t correction = static_cast<uint32_t>(UnitI8::B_SHIFT) * static_cast<uint32_t>(row_sums[i + r]);
            for (int c = 0; c < NR; c++) sums[c] = static_cast<int32_t>(static_cast<uint32_t>(sums[c]) - correction);
          }
          store_row(sums, i + r, j, columns);
        }
      });
}

}  // namespace PL_LEVEL
}  // namespace planish
