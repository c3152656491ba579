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
// Count: int, or std::integral_constant, which leaves no loops.
template <class Cell, class Count>
inline void store_packed_row(const Cell* __restrict sums, int32_t correction, float a_scale,
                             const float* __restrict b_scale, const float* __restrict bias, float* __restrict out,
                             Count count, bool accumulate) {
  float values[NR];
  constexpr bool codes = std::is_same<Cell, int32_t>::value;
  if constexpr (codes) {
    for (int c = 0; c < count; c++) {
      const int32_t sum = static_cast<int32_t>(static_cast<uint32_t>(sums[c]) - static_cast<uint32_t>(correction));
      values[c] = (static_cast<float>(sum) * a_scale) * b_scale[c];
    }
  } else if (b_scale) {
    // Asked once: inside the loop, clang leaves a scalar branch for each column, a third of a thin product's time.
    for (int c = 0; c < count; c++) values[c] = sums[c] * b_scale[c];
  } else {
    memcpy(values, sums, sizeof(float) * static_cast<size_t>(count));
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
  bool tiles;       // the tile unit's form of A, and panels unpacked for it
  bool unpacks;     // panels of 4-bit weights into bytes, at levels where many rows pay for it
  int64_t width;    // lanes per group of packed A
  int64_t panel_a;  // lanes of one row panel
  int64_t row_panels;
  int64_t rows_per_panel;
  const PackedPart* parts;
  const uint32_t* packed_a[MAX_PARTS];
  const int32_t* row_sums[MAX_PARTS];
  int64_t most_ends;               // per row panel
  const int32_t* ends[MAX_PARTS];  // of its blocks of groups, for 16-bit sums
  bool accumulate;

  void pack_rows(const PackedPart& part, uint32_t* out, int64_t panel) const {
    const int64_t i = panel * rows_per_panel, count = m - i < rows_per_panel ? m - i : rows_per_panel;
    if constexpr (CODES) {
      const ByteSide side{pointer_of<const int8_t>(part.a), k, 0};
      // Groups past k up to a whole step are zeros: nothing else writes them.
      if (tiles) {
        pack_byte_a<Unit>(out, side, i, count, k);
      } else if (width == 1) {
        pack_byte_panel<1, Unit>(out, side, i, count, k);
      } else {
        pack_byte_panel<MR_VECTOR, Unit>(out, side, i, count, k);
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
    const auto store_rows = [&](auto columns) {
      for (int r = 0; r < rows; r++) {
        const int32_t correction = CODES && row_sums[index] ? row_sums[index][i + r] : 0;
        store_packed_row(tile + r * NR, correction, CODES ? a_scale[i + r] : 1.0f, b_scale ? b_scale + j : nullptr,
                         bias ? bias + j : nullptr, pointer_of<float>(part.out) + (i + r) * part.out_stride + j,
                         columns, accumulate);
      }
    };
    if (count == NR) {
      store_rows(std::integral_constant<int, NR>());
    } else {
      store_rows(count);
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
#elif PL_ISA == 1
    if constexpr (SHORT_SUMS<Unit>) {
      if (unpacks) {
        uint8_t* const bytes = reinterpret_cast<uint8_t*>(space);
        alignas(64) Cell tile[MR_VECTOR * NR];
        for (int64_t panel = begin; panel < end; panel++) {
          unpack_nibbles(groups, group_bytes, weights + panel * shape.panel_bytes, bytes);
          for (int64_t p = row_begin; p < row_end; p++) {
            const int64_t i = p * rows_per_panel;
            const int rows = static_cast<int>(m - i < rows_per_panel ? m - i : rows_per_panel);
            packed_kernel_of<UnpackedNibbles, MR_VECTOR>(rows, 1)(groups, UnpackedNibbles::GROUP_BYTES,
                                                                  packed_a[index] + p * panel_a, width, bytes, 0,
                                                                  ends[index] + p * most_ends, tile);
            store(part, index, tile, i, rows, panel * NR);
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
        packed_kernel_of<Weights, MR_VECTOR>(rows, together)(
            groups, group_bytes, packed_a[index] + p * panel_a, width, weights + panel * shape.panel_bytes,
            shape.panel_bytes, SHORT_SUMS<Unit> ? ends[index] + p * most_ends : nullptr, tile);
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
    for (int p = 0; p < count_parts; p++) panels += ceil_div(parts[p].n, NR);
    int source[MAX_PARTS];
    const int distinct = distinct_activations(parts, count_parts, source);
    const int64_t lanes_a = row_panels * panel_a;
    most_ends = SHORT_SUMS<Unit> ? ceil_div(k, 32) + 1 : 0;
    uint32_t* const space = static_cast<uint32_t*>(thread_scratch(0, static_cast<size_t>(distinct * lanes_a + 64) * 4));
    int32_t* const sums =
        static_cast<int32_t*>(thread_scratch(2, static_cast<size_t>(distinct * (m + row_panels * most_ends) + 16) * 4));
    int32_t* const blocks = sums + distinct * m;
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
          if constexpr (SHORT_SUMS<Unit>)
            short_blocks(pointer_of<const int8_t>(part.a) + i * k, end - i, k, groups, blocks + task * most_ends);
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
      ends[p] = blocks + source[p] * row_panels * most_ends;
    }

    const int64_t row_blocks = blocks_of_rows(row_panels, panel_a * 4);
#if PL_ISA == 1
    unpacks = SHORT_SUMS<Unit> && row_panels / row_blocks >= UNPACK_ROW_PANELS;
#else
    unpacks = false;
#endif
    std::atomic<bool> starved{false};
    share_panels(threads, parts, count_parts, row_panels, row_blocks, m <= MANY_PANELS_ROWS ? MANY_PANELS : 1,
                 [&](int p, int64_t from, int64_t to, int64_t row_begin, int64_t row_end) {
                   uint32_t* unpacked = nullptr;
                   if (tiles || unpacks) {
                     unpacked = static_cast<uint32_t*>(thread_scratch(1, static_cast<size_t>(groups * NR) * 4 + 64));
                     if (!unpacked) {
                       starved.store(true);
                       return;
                     }
                   }
                   block(p, from, to, row_begin, row_end, unpacked);
                 });
    return starved.load() ? fail(PL_OUT_OF_MEMORY, "no memory for the operands of a packed product") : 0;
  }
};

// `table`: `parts` × PackedPart, all with the same m and k. `accumulate`: add to what `out` holds.
inline int packed_matmul_parts(int32_t kind, int64_t m, int64_t k, int64_t parts, const int64_t* table,
                               int32_t accumulate) {
  if (m <= 0 || parts <= 0) return 0;
  if (parts > MAX_PARTS)
    return fail(PL_BAD_ARGUMENT, "%lld parts in a packed product; at most %d", static_cast<long long>(parts),
                int{MAX_PARTS});
  // As for int_matmul: beyond it a sum of products of codes could leave int32.
  if (k > 131071)
    return fail(PL_BAD_ARGUMENT, "packed product over k = %lld; at most 131071", static_cast<long long>(k));
  const PackedPart* const list = reinterpret_cast<const PackedPart*>(table);
  const bool add = accumulate != 0;
  switch (kind) {
    case PACKED_KIND_INT4: return PackedProduct<Int4Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_INT8: return PackedProduct<Int8Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_INT4_F32: return PackedProduct<Int4F32Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_INT8_F32: return PackedProduct<Int8F32Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_BF16_BF16: return PackedProduct<Bf16Bf16Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_HALF_F32: return PackedProduct<HalfF32Weights>().run(kind, m, k, parts, list, add);
    case PACKED_KIND_BF16_F32: return PackedProduct<Bf16F32Weights>().run(kind, m, k, parts, list, add);
    default: return fail(PL_BAD_ARGUMENT, "no packed weights of kind %d", kind);
  }
}

// One matrix. a [m, k], out [m, n]; scales and bias as in PackedPart.
inline int packed_matmul(int32_t kind, int64_t m, int64_t n, int64_t k, const void* a, const float* a_scale,
                         const uint8_t* packed, const float* b_scale, const float* bias, float* out,
                         int32_t accumulate) {
  const auto word = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
  const int64_t table[8] = {n, word(a), word(a_scale), word(packed), word(b_scale), word(bias), word(out), n};
  return packed_matmul_parts(kind, m, k, 1, table, accumulate);
}

#if PL_ISA == 1
// Codes of 4 bits in bytes, the weights of a quantizer in training: packed anew for each call, they multiply 1.6 times as
// fast as bytes do.
inline int nibble_matmul(int64_t m, int64_t n, int64_t k, const int8_t* a, const float* a_scale, const int8_t* b,
                         const float* b_scale, const float* bias, float* out, bool& done) {
  if (k == 0) return 0;
  std::atomic<bool> wide{false};
  parallel_ranges(n, ceil_div(1 << 16, k + 1), [&](int64_t begin, int64_t end) {
    const int8_t* const codes = b + begin * k;
    const int64_t length = (end - begin) * k;
    VI beyond = zero_i();
    int64_t at = 0;
    // x + 8 lies in [0, 15] where no other bit is set.
    const VI shift = _mm256_set1_epi8(SHIFT_INT4), high = _mm256_set1_epi8(static_cast<char>(0xf0));
    for (; at + 32 <= length; at += 32)
      beyond = _mm256_or_si256(beyond, _mm256_and_si256(_mm256_add_epi8(load_i(codes + at), shift), high));
    bool any = !_mm256_testz_si256(beyond, beyond);
    for (; at < length; at++) any |= codes[at] < -SHIFT_INT4 || codes[at] > 15 - SHIFT_INT4;
    if (any) wide.store(true, std::memory_order_relaxed);
  });
  if (wide.load()) return 0;
  const PackedShape shape(PACKED_KIND_INT4, n, k);
  uint8_t* const packed =
      static_cast<uint8_t*>(thread_scratch(3, static_cast<size_t>(shape.panels * shape.panel_bytes) + 64));
  if (!packed) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a matrix product");
  if (const int code = pack_weights(PACKED_KIND_INT4, n, k, b, packed)) return code;
  done = true;
  return packed_matmul(PACKED_KIND_INT4, m, n, k, a, a_scale, packed, b_scale, bias, out, 0);
}
#endif

}  // namespace PL_LEVEL
}  // namespace planish
