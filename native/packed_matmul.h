// Products of activations with packed weights: out = [out +] (s_x[row]·s_w[column])·Σ_k a·w + bias.
//
// One call may hold several parts, matrices that share rows and k (q, k and v; gate and up): one hand-out of work for
// all of them. A is packed once; then blocks of output are handed out, each walking the panels of weights outermost, so
// that a panel comes from memory once and is in the first-level cache for all rows of the block.
namespace planish {
namespace PL_LEVEL {

// What a part is made of, as the caller lays it out: eight words each.
struct PackedPart {
  int64_t n;
  int64_t a;        // int8 codes or f32 [m, k]
  int64_t a_scale;  // f32 [m]; null for real activations
  int64_t packed;
  int64_t b_scale;  // f32 [n]; null: ones
  int64_t bias;     // f32 [n] or null
  int64_t out;      // f32 [m, …]
  int64_t out_stride;
};
constexpr int64_t MAX_PARTS = 8;

template <class T>
inline T* pointer_of(int64_t word) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(word));
}

// Multiply-adds below which a call stays on its thread: waking another takes some microseconds.
constexpr int64_t PACKED_PARALLEL_WORK = 1 << 16;
// Of packed A that a block of rows may have.
constexpr int64_t PACKED_BLOCK_BYTES = 256 << 10;

template <class Cell>
inline void store_packed_row(const Cell* __restrict sums, int32_t correction, float a_scale, const float* __restrict b_scale,
                             const float* __restrict bias, float* __restrict out, int count, bool accumulate) {
  float values[NR];
  constexpr bool codes = std::is_same<Cell, int32_t>::value;
  for (int c = 0; c < count; c++) {
    if constexpr (codes) {
      const int32_t sum = static_cast<int32_t>(static_cast<uint32_t>(sums[c]) - static_cast<uint32_t>(correction));
      values[c] = (static_cast<float>(sum) * a_scale) * b_scale[c];
    } else {
      values[c] = b_scale ? sums[c] * b_scale[c] : sums[c];
    }
  }
  if (bias)
    for (int c = 0; c < count; c++) values[c] += bias[c];
  if (accumulate) {
    for (int c = 0; c < count; c++) out[c] += values[c];
  } else {
    memcpy(out, values, sizeof(float) * static_cast<size_t>(count));
  }
}

template <class Weights>
struct PackedProduct {
  using Unit = typename Weights::Unit;
  using Cell = typename Unit::Cell;
  static constexpr bool CODES = std::is_same<Cell, int32_t>::value;

  int32_t kind;
  int64_t m, k, groups, group_bytes;
  bool tiles;        // the tile unit's form of A, and panels unpacked for it
  int64_t width;     // lanes per group of packed A
  int64_t panel_a;   // lanes of one row panel
  int64_t row_panels;
  int64_t rows_per_panel;
  const PackedPart* parts;
  const uint32_t* packed_a[MAX_PARTS];
  const int32_t* row_sums[MAX_PARTS];
  bool accumulate;

  void pack_rows(const PackedPart& part, uint32_t* out, int64_t panel) const {
    const int64_t i = panel * rows_per_panel, count = m - i < rows_per_panel ? m - i : rows_per_panel;
    if constexpr (CODES) {
      const ByteSide side{pointer_of<const int8_t>(part.a), k, 0};
      // Groups past k up to a whole step are zeros: nothing else writes them.
      if (tiles) {
        pack_byte_a(out, side, i, count, k);
      } else if (width == 1) {
        pack_byte_panel<1>(out, side, i, count, k);
      } else {
        pack_byte_panel<MR_VECTOR>(out, side, i, count, k);
      }
    } else {
      const Side side{pointer_of<const void>(part.a), false, k, 1, nullptr};
      if (tiles) {
        pack_a<Unit>(out, side, i, count, 0, k);
      } else if (width == 1) {
        pack_panel<Unit, 1, float>(out, side, i, count, 0, k);
      } else {
        pack_panel<Unit, MR_VECTOR, float>(out, side, i, count, 0, k);
      }
    }
  }

  void store(const PackedPart& part, int index, const Cell* tile, int64_t i, int rows, int64_t j) const {
    const int count = static_cast<int>(part.n - j < NR ? part.n - j : NR);
    const float* const b_scale = pointer_of<const float>(part.b_scale);
    const float* const bias = pointer_of<const float>(part.bias);
    const float* const a_scale = pointer_of<const float>(part.a_scale);
    for (int r = 0; r < rows; r++) {
      const int32_t correction = CODES && row_sums[index] ? row_sums[index][i + r] : 0;
      store_packed_row<Cell>(tile + r * NR, correction, CODES ? a_scale[i + r] : 1.0f, b_scale ? b_scale + j : nullptr,
                             bias ? bias + j : nullptr, pointer_of<float>(part.out) + (i + r) * part.out_stride + j, count,
                             accumulate);
    }
  }

  // Panels [begin, end) of a part by row panels [row_begin, row_end).
  void block(int index, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end, uint32_t* space) const {
    const PackedPart& part = parts[index];
    const PackedShape shape(kind, part.n, k);
    const uint8_t* const weights = pointer_of<const uint8_t>(part.packed);
#if PL_ISA >= 3
    if constexpr (Unit::TILES) {
      if (tiles) {
        alignas(64) Cell tile[MR<Unit> * NR];
        UnitScope<Unit> scope;
        for (int64_t panel = begin; panel < end; panel++) {
          unpack_for_tiles<Weights>(groups, group_bytes, weights + panel * shape.panel_bytes, space);
          const int64_t j = panel * NR;
          const int columns = static_cast<int>(part.n - j < NR ? part.n - j : NR);
          for (int64_t p = row_begin; p < row_end; p++) {
            const int64_t i = p * rows_per_panel;
            const int rows = static_cast<int>(m - i < rows_per_panel ? m - i : rows_per_panel);
            tile_kernel<Unit>(groups, packed_a[index] + p * panel_a, space, tile, rows, columns);
            store(part, index, tile, i, rows, j);
          }
        }
        return;
      }
    }
#endif
    (void)space;
    constexpr int MOST = MANY_PANELS * (MANY_PANELS_ROWS > MR_VECTOR ? MANY_PANELS_ROWS : MR_VECTOR);
    alignas(64) Cell tile[MOST * NR];
    const int last_rows = static_cast<int>(m - (row_end - 1) * rows_per_panel);
    const bool many = row_end - row_begin == 1 && last_rows <= MANY_PANELS_ROWS;
    for (int64_t panel = begin; panel < end;) {
      const int together = many && panel + MANY_PANELS <= end ? MANY_PANELS : 1;
      for (int64_t p = row_begin; p < row_end; p++) {
        const int64_t i = p * rows_per_panel;
        const int rows = static_cast<int>(m - i < rows_per_panel ? m - i : rows_per_panel);
        packed_kernel_of<Weights, MR_VECTOR>(rows, together)(groups, group_bytes, packed_a[index] + p * panel_a, width,
                                                             weights + panel * shape.panel_bytes, shape.panel_bytes, tile);
        for (int t = 0; t < together; t++) store(part, index, tile + t * rows * NR, i, rows, (panel + t) * NR);
      }
      panel += together;
    }
  }

  int run(int32_t packed_kind, int64_t count_m, int64_t depth, int64_t count_parts, const PackedPart* list, bool add) {
    kind = packed_kind;
    m = count_m;
    k = depth;
    parts = list;
    accumulate = add;
    const PackedShape shape(kind, 1, k);
    groups = shape.groups;
    group_bytes = shape.group_bytes;
    // Real products always take one unit, so that a row's result does not depend on the rows beside it.
    tiles = Unit::TILES && (!CODES || m > 16);
    rows_per_panel = tiles ? MR<Unit> : MR_VECTOR;
    width = tiles ? MR<Unit> : m == 1 ? 1 : MR_VECTOR;
    row_panels = ceil_div(m, rows_per_panel);
    panel_a = groups * width;

    int64_t panels = 0;
    int distinct = 0, source[MAX_PARTS];
    for (int p = 0; p < count_parts; p++) {
      panels += ceil_div(parts[p].n, NR);
      source[p] = distinct;
      for (int q = 0; q < p; q++)
        if (parts[q].a == parts[p].a) source[p] = source[q];
      if (source[p] == distinct) distinct++;
    }
    const int64_t lanes_a = row_panels * panel_a;
    uint32_t* const space = static_cast<uint32_t*>(thread_scratch(0, static_cast<size_t>(distinct * lanes_a + 64) * 4));
    int32_t* const sums = static_cast<int32_t*>(thread_scratch(2, static_cast<size_t>(distinct * m + 16) * 4));
    if (!space || !sums) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a packed product");
    const bool parallel = m * panels * NR * k >= PACKED_PARALLEL_WORK;
    const int threads = parallel ? thread_count() : 1;
    constexpr bool CORRECTED = CODES && Weights::SHIFT != 0;
    const bool corrected = CORRECTED && !tiles;
    int first_of[MAX_PARTS] = {};
    for (int p = static_cast<int>(count_parts) - 1; p >= 0; p--) first_of[source[p]] = p;
    const auto prepare = [&](int64_t task) {
      const int a = static_cast<int>(task / row_panels);
      const int64_t panel = task % row_panels;
      const PackedPart& part = parts[first_of[a]];
      uint32_t* const out = space + a * lanes_a + panel * panel_a;
      const int64_t used = ceil_div(k, shape.form.group);
      if (!tiles && used < groups) memset(out + used * width, 0, static_cast<size_t>((groups - used) * width) * 4);
      pack_rows(part, out, panel);
      if constexpr (CORRECTED) {
        if (corrected) {
          const int64_t i = panel * rows_per_panel, end = i + rows_per_panel < m ? i + rows_per_panel : m;
          for (int64_t r = i; r < end; r++)
            sums[a * m + r] = Weights::SHIFT * sum_bytes(pointer_of<const int8_t>(part.a) + r * k, k);
        }
      }
    };
    if (threads > 1 && m >= 64) {
      parallel_for(distinct * row_panels, prepare);
    } else {
      for (int64_t task = 0; task < distinct * row_panels; task++) prepare(task);
    }
    for (int p = 0; p < count_parts; p++) {
      packed_a[p] = space + source[p] * lanes_a;
      row_sums[p] = corrected ? sums + source[p] * m : nullptr;
    }

    int64_t block_rows = PACKED_BLOCK_BYTES / (panel_a * 4);
    if (block_rows < 1) block_rows = 1;
    const int64_t row_blocks = ceil_div(row_panels, block_rows);
    // Enough pieces that threads which were held up elsewhere do not hold up the rest.
    int64_t pieces = threads == 1 ? 1 : ceil_div(4 * threads, row_blocks);
    if (pieces > panels) pieces = panels;
    std::atomic<bool> starved{false};
    tasks(threads > 1, row_blocks * pieces, [&](int64_t task) {
      const int64_t row_block = task % row_blocks, piece = task / row_blocks;
      int64_t begin = panels * piece / pieces, end = panels * (piece + 1) / pieces;
      const int64_t row_begin = row_panels * row_block / row_blocks, row_end = row_panels * (row_block + 1) / row_blocks;
      uint32_t* unpacked = nullptr;
      if (tiles) {
        unpacked = static_cast<uint32_t*>(thread_scratch(1, static_cast<size_t>(groups * NR) * 4 + 64));
        if (!unpacked) {
          starved.store(true);
          return;
        }
      }
      for (int p = 0; p < count_parts && begin < end; p++) {
        const int64_t here = ceil_div(parts[p].n, NR);
        const int64_t from = begin < here ? begin : here, to = end < here ? end : here;
        if (from < to) block(p, from, to, row_begin, row_end, unpacked);
        begin = begin > here ? begin - here : 0;
        end -= here;
        if (end <= 0) break;
      }
    });
    return starved.load() ? fail(PL_OUT_OF_MEMORY, "no memory for the operands of a packed product") : 0;
  }
};

// `table`: `parts` × PackedPart, all with the same m and k. `accumulate`: add to what `out` holds.
inline int packed_matmul_parts(int32_t kind, int64_t m, int64_t k, int64_t parts, const int64_t* table,
                               int32_t accumulate) {
  if (m <= 0 || parts <= 0) return 0;
  if (parts > MAX_PARTS)
    return fail(PL_BAD_ARGUMENT, "%lld parts in a packed product; at most %d", static_cast<long long>(parts), int{MAX_PARTS});
  // As for int_matmul: beyond it a sum of products of codes could leave int32.
  if (k > 131071) return fail(PL_BAD_ARGUMENT, "packed product over k = %lld; at most 131071", static_cast<long long>(k));
  const PackedPart* const list = reinterpret_cast<const PackedPart*>(table);
  const bool add = accumulate != 0;
  switch (kind) {
    case INT4:
      return PackedProduct<Int4Weights>().run(kind, m, k, parts, list, add);
    case INT8:
      return PackedProduct<Int8Weights>().run(kind, m, k, parts, list, add);
    case INT4_F32:
      return PackedProduct<Int4F32Weights>().run(kind, m, k, parts, list, add);
    case INT8_F32:
      return PackedProduct<Int8F32Weights>().run(kind, m, k, parts, list, add);
    case BF16_BF16:
      return PackedProduct<Bf16Bf16Weights>().run(kind, m, k, parts, list, add);
    case HALF_F32:
      return PackedProduct<HalfF32Weights>().run(kind, m, k, parts, list, add);
    case BF16_F32:
      return PackedProduct<Bf16F32Weights>().run(kind, m, k, parts, list, add);
    default:
      return fail(PL_BAD_ARGUMENT, "no packed weights of kind %d", kind);
  }
}

// One matrix. a [m, k], out [m, n]; scales and bias as in PackedPart.
inline int packed_matmul(int32_t kind, int64_t m, int64_t n, int64_t k, const void* a, const float* a_scale,
                         const uint8_t* packed, const float* b_scale, const float* bias, float* out, int32_t accumulate) {
  const auto word = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
  const int64_t table[8] = {n, word(a), word(a_scale), word(packed), word(b_scale), word(bias), word(out), n};
  return packed_matmul_parts(kind, m, k, 1, table, accumulate);
}

}  // namespace PL_LEVEL
}  // namespace planish
