// Products of activations with weights in groups: out = [out +] Σ over groups (group_micro.h) + bias, handed out as those of
// packed_matmul.h are.
namespace planish {
namespace PL_LEVEL {

// What a part is made of, as the caller lays it out: nine words each.
struct GroupPart {
  int64_t n;
  int64_t a;         // int8 codes [m, k]
  int64_t a_scale;   // f32 [m], or [m, k / span]
  int64_t a_offset;  // f32 [m, k / span], or null
  int64_t packed;
  int64_t form;
  int64_t bias;  // f32 [n] or null
  int64_t out;   // f32 [m, …]
  int64_t out_stride;
};

template <class Weights>
struct GroupProduct {
  using Unit = typename Weights::Unit;

  const int32_t kind;
  const int64_t m, k, group, span;
  const GroupPart* const parts;
  const bool accumulate;
  int64_t groups, steps;
  int64_t width;  // lanes per step of packed A
  int64_t row_panels;
  int64_t panel_lanes, panel_groups;  // of a panel of rows: lanes of codes; numbers [groups][width]
  const uint32_t* lanes[MAX_PARTS];
  const int32_t* starts[MAX_PARTS];
  const float* scales[MAX_PARTS];
  const float* sums[MAX_PARTS];
  const float* offsets[MAX_PARTS];
  const int32_t* chunks[MAX_PARTS];

  GroupProduct(int32_t packed_kind, int64_t count_m, int64_t depth, int64_t of_weights, int64_t of_activations,
               const GroupPart* list, bool add)
      : kind(packed_kind),
        m(count_m),
        k(depth),
        group(of_weights),
        span(of_activations),
        parts(list),
        accumulate(add) {}

  // Whether the epilogue multiplies by the activations' scale, of which a row has one.
  bool one_scale(const GroupPart& part) const { return span == k && !part.a_offset; }

  // Packs a panel of rows, with what its groups' sums need.
  void prepare(const GroupPart& part, int64_t panel, uint32_t* to, int32_t* start, float* scale, float* sum,
               float* offset, int32_t* chunk) const {
    const int64_t i = panel * MR_VECTOR, count = m - i < MR_VECTOR ? m - i : MR_VECTOR;
    const int8_t* const codes = pointer_of<const int8_t>(part.a) + i * k;
    const float* const a_scale = pointer_of<const float>(part.a_scale);
    const float* const a_offset = pointer_of<const float>(part.a_offset);
    const ByteSide side{codes, k, 0};
    if (width == 1) {
      pack_byte_panel<1, Unit>(to, side, 0, count, k);
    } else {
      pack_byte_panel<MR_VECTOR, Unit>(to, side, 0, count, k);
    }
    const int64_t spans = k / span;
    for (int64_t g = 0; g < groups; g++) {
      int32_t total[LANES > MR_VECTOR ? LANES : MR_VECTOR];
      if (width == 1) {
        total[0] = sum_bytes(codes + g * group, group);
      } else {
        for (int lane = 0; lane < MR_VECTOR; lane += LANES) {
          VI acc = zero_i();
          for (int64_t s = 0; s < steps; s++) acc = Unit::sum(acc, load_i(to + (g * steps + s) * width + lane));
          store_lanes(total + lane, acc, MR_VECTOR - lane < LANES ? MR_VECTOR - lane : LANES);
        }
      }
      for (int64_t r = 0; r < width; r++) {
        const int64_t at = g * width + r;
        // Rows past the last one: zeros.
        const int32_t q = r < count ? total[r] : 0;
        start[at] = -Weights::SHIFT * q;
        if (one_scale(part)) {
          sum[at] = static_cast<float>(q);
          continue;
        }
        const int64_t from = (i + r) * spans + g * group / span;
        scale[at] = r < count ? a_scale[from] : 0.0f;
        sum[at] = scale[at] * static_cast<float>(q);
        if (a_offset) offset[at] = r < count ? a_offset[from] : 0.0f;
      }
    }
    if constexpr (SHORT_SUMS<Unit>) {
      int most = 1;
      for (int64_t c = 0; c < count * k; c++) {
        const int size = codes[c] < 0 ? -codes[c] : codes[c];
        most = size > most ? size : most;
      }
      *chunk = 32767 / (30 * most);
    } else {
      *chunk = 0;
    }
  }

  void store(const GroupPart& part, const float* tile, int64_t i, int rows, int64_t j) const {
    const int count = static_cast<int>(part.n - j < NR ? part.n - j : NR);
    const float* const bias = pointer_of<const float>(part.bias);
    const float* const a_scale = pointer_of<const float>(part.a_scale);
    // A number of columns that the compiler knows leaves no loops.
    const auto store_rows = [&](auto columns) {
      for (int r = 0; r < rows; r++, tile += NR) {
        const float scale = one_scale(part) ? a_scale[i + r] : 1.0f;
        float* const out = pointer_of<float>(part.out) + (i + r) * part.out_stride + j;
        float values[NR];
        for (int c = 0; c < columns; c++) values[c] = tile[c] * scale;
        if (bias)
          for (int c = 0; c < columns; c++) values[c] += bias[j + c];
        if (accumulate)
          for (int c = 0; c < columns; c++) values[c] += out[c];
        memcpy(out, values, sizeof(float) * static_cast<size_t>(columns));
      }
    };
    if (count == NR) {
      store_rows(std::integral_constant<int, NR>());
    } else {
      store_rows(count);
    }
  }

  // Panels [begin, end) of a part by row panels [row_begin, row_end).
  void block(int index, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end) const {
    const GroupPart& part = parts[index];
    const GroupForm form(part.form);
    const GroupShape shape(kind, part.n, k, group, form);
    const uint8_t* const weights = pointer_of<const uint8_t>(part.packed);
    const Activations activations = part.a_offset     ? Activations::OFFSET
                                    : one_scale(part) ? Activations::ROW
                                                      : Activations::GROUP;
    constexpr int MOST = MANY_PANELS * (MANY_PANELS_ROWS > MR_VECTOR ? MANY_PANELS_ROWS : MR_VECTOR);
    alignas(64) float tile[MOST * NR];
    const int last_rows = static_cast<int>(m - (row_end - 1) * MR_VECTOR);
    const bool many = row_end - row_begin == 1 && last_rows <= MANY_PANELS_ROWS;
    for (int64_t panel = begin; panel < end;) {
      const int together = many && panel + MANY_PANELS <= end ? MANY_PANELS : 1;
      for (int64_t p = row_begin; p < row_end; p++) {
        const int64_t i = p * MR_VECTOR, at = p * panel_groups;
        const int rows = static_cast<int>(m - i < MR_VECTOR ? m - i : MR_VECTOR);
        const GroupRows panel_rows{lanes[index] + p * panel_lanes,
                                   width,
                                   starts[index] + at,
                                   scales[index] + at,
                                   sums[index] + at,
                                   offsets[index] + at,
                                   chunks[index][p]};
        group_kernel_of<Weights>(form.offset, activations, rows, together)(shape, form, group, panel_rows,
                                                                           weights + panel * shape.panel_bytes, tile);
        const int stride = group_kernel_rows(rows);
        for (int t = 0; t < together; t++) store(part, tile + t * stride * NR, i, rows, (panel + t) * NR);
      }
      panel += together;
    }
  }

  int run(int64_t count_parts) {
    const PackedForm unit = packed_form(kind);
    groups = k / group;
    steps = group / unit.group;
    width = m == 1 ? 1 : MR_VECTOR;
    row_panels = ceil_div(m, MR_VECTOR);
    // pack_byte_panel fills whole steps of the tile unit.
    panel_lanes = ceil_div(groups * steps, GROUP_STEP<Unit>) * GROUP_STEP<Unit> * width;
    panel_groups = groups * width;
    int source[MAX_PARTS];
    const int distinct = distinct_activations(parts, count_parts, source);
    int64_t columns = 0;
    for (int p = 0; p < count_parts; p++) columns += ceil_div(parts[p].n, NR) * NR;
    const int64_t numbers = row_panels * panel_groups, of_each = row_panels * panel_lanes;
    uint32_t* const space = static_cast<uint32_t*>(thread_scratch(0, static_cast<size_t>(distinct * of_each + 64) * 4));
    int32_t* const integers =
        static_cast<int32_t*>(thread_scratch(2, static_cast<size_t>(distinct * (numbers + row_panels) + 16) * 4));
    float* const reals = static_cast<float*>(thread_scratch(1, static_cast<size_t>(3 * distinct * numbers + 16) * 4));
    if (!space || !integers || !reals) return fail(PL_OUT_OF_MEMORY, "no memory for the operands of a packed product");
    const int threads = m * columns * k >= PACKED_PARALLEL_WORK ? thread_count() : 1;
    int first_of[MAX_PARTS] = {};
    for (int p = static_cast<int>(count_parts) - 1; p >= 0; p--) first_of[source[p]] = p;
    const auto at = [&](int a) { return a * numbers; };
    int32_t* const chunk_of = integers + distinct * numbers;
    tasks(threads > 1 && m >= 64, distinct * row_panels, [&](int64_t task) {
      const int a = static_cast<int>(task / row_panels);
      const int64_t panel = task % row_panels, from = at(a) + panel * panel_groups;
      prepare(parts[first_of[a]], panel, space + a * of_each + panel * panel_lanes, integers + from,
              reals + 3 * at(a) + panel * panel_groups, reals + 3 * at(a) + numbers + panel * panel_groups,
              reals + 3 * at(a) + 2 * numbers + panel * panel_groups, chunk_of + task);
    });
    for (int p = 0; p < count_parts; p++) {
      const int a = source[p];
      lanes[p] = space + a * of_each;
      starts[p] = integers + at(a);
      scales[p] = reals + 3 * at(a);
      sums[p] = scales[p] + numbers;
      offsets[p] = sums[p] + numbers;
      chunks[p] = chunk_of + a * row_panels;
    }
    share_panels(threads, parts, count_parts, row_panels, blocks_of_rows(row_panels, panel_lanes * 4),
                 m <= MANY_PANELS_ROWS ? MANY_PANELS : 1,
                 [&](int p, int64_t from, int64_t to, int64_t row_begin, int64_t row_end) {
                   block(p, from, to, row_begin, row_end);
                 });
    return 0;
  }
};

// `table`: `parts` × GroupPart, all with the same kind, m, k, groups and, of the activations, channels per scale (`span`: a
// multiple of the group, k for one scale per row).
inline int group_matmul_parts(int32_t kind, int64_t m, int64_t k, int64_t group, int64_t span, int64_t parts,
                              const int64_t* table, int32_t accumulate) {
  if (m <= 0 || parts <= 0) return 0;
  if (const int code = check_groups(kind, 0, k, group)) return code;
  if (parts > MAX_PARTS)
    return fail(PL_BAD_ARGUMENT, "%lld parts in a packed product; at most %d", static_cast<long long>(parts),
                int{MAX_PARTS});
  if (span < group || span % group != 0 || k % span != 0)
    return fail(PL_BAD_ARGUMENT, "activations with a scale for %lld channels by weights in groups of %lld, %lld in all",
                static_cast<long long>(span), static_cast<long long>(group), static_cast<long long>(k));
  const GroupPart* const list = reinterpret_cast<const GroupPart*>(table);
  const bool add = accumulate != 0;
  if (kind == PACKED_KIND_INT4) return GroupProduct<Int4Weights>(kind, m, k, group, span, list, add).run(parts);
  return GroupProduct<Int8Weights>(kind, m, k, group, span, list, add).run(parts);
}

// One matrix. a [m, k], out [m, n]; all else as in GroupPart.
inline int group_matmul(int32_t kind, int64_t m, int64_t n, int64_t k, int64_t group, int64_t form, int64_t span,
                        const int8_t* a, const float* a_scale, const float* a_offset, const uint8_t* packed,
                        const float* bias, float* out, int32_t accumulate) {
  const auto word = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
  const int64_t table[9] = {n, word(a), word(a_scale), word(a_offset), word(packed), form, word(bias), word(out), n};
  return group_matmul_parts(kind, m, k, group, span, 1, table, accumulate);
}

}  // namespace PL_LEVEL
}  // namespace planish
