// The inner loops over weights in groups (group_weights.h). A group's products of codes are summed as integers, exactly; the
// sum becomes a float once, times the group's scales, and joins the row's f32 sum, group after group. So a result depends
// neither on the rows and panels that share a loop nor on how integers were summed.
//
// Per row and group, x = scale·codes + offset and w = scale·codes + offset give
//   Σ x·w = s_x·s_w·Σqq + (s_x·Σq_x)·o_w + o_x·(s_w·Σq_w + group·o_w),
// each term where there is such a thing.
namespace planish {
namespace PL_LEVEL {

// What activations are per group: codes with one scale per row, which the epilogue multiplies; with a scale per group; with
// an offset too.
enum class Activations { ROW, GROUP, OFFSET };

// A panel of rows: lanes [step][stride], all others [group][stride].
struct GroupRows {
  const uint32_t* lanes;
  int64_t stride;
  const int32_t* starts;  // what undoes the shift of stored weights: −shift·Σq
  const float* scale;
  const float* sum;     // (scale·)Σq
  const float* offset;  // null: none
  int64_t chunk;        // steps that 16-bit sums surely hold
};

// Lanes of a group's whole sum: those of 16 bits were widened before.
template <class Unit>
PL_INLINE VI total_of(typename Unit::Sum sum) {
  if constexpr (SHORT_SUMS<Unit>) {
    return sum;
  } else {
    return Unit::wide(sum);
  }
}

template <class Weights, bool OFFSET, Activations ACTIVATIONS, int ROWS, int PANELS>
void group_kernel(const GroupShape& shape, const GroupForm& form, int64_t group, const GroupRows& rows,
                  const uint8_t* __restrict b, float* __restrict tile) {
  using Unit = typename Weights::Unit;
  constexpr int64_t STEP_BYTES = NR * Unit::GROUP * Weights::BITS / 8;
  constexpr bool FETCHES = ROWS <= MANY_PANELS_ROWS;
  constexpr bool SUMS_WEIGHTS = ACTIVATIONS == Activations::OFFSET;
  const int64_t panel_bytes = shape.panel_bytes, stride = rows.stride;
  const uint8_t* const end = b + panel_bytes;
  const uint32_t* __restrict a = rows.lanes;
  const int32_t* __restrict starts = rows.starts;
  const float* __restrict scales = rows.scale, * __restrict sums = rows.sum, * __restrict offsets = rows.offset;
  const VF shift = splat(static_cast<float>(form.shift));
  memset(tile, 0, sizeof(float) * PANELS * ROWS * NR);
  for (int64_t g = 0; g < shape.groups; g++) {
    // Behind the last of a panel's bytes lies the panel that is walked beside it.
    const int64_t ahead = AHEAD_BYTES + (b + AHEAD_BYTES >= end ? (PANELS - 1) * panel_bytes : 0);
    const uint8_t* const head = b;
    // Sums stay in memory between groups: kept in registers they would drive out those of the group.
    asm volatile("" : : "r"(tile) : "memory");
    if constexpr (FETCHES) {
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; p++)
        for (int64_t line = 0; line < shape.scale_bytes; line += 64)
          __builtin_prefetch(b + p * panel_bytes + ahead + line);
    }
    b += shape.scale_bytes;
    typename Unit::Sum acc[PANELS][ROWS][VECTORS];
    typename Unit::Sum weights[PANELS][VECTORS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; p++) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        const typename Unit::Sum start = Unit::of(SHORT_SUMS<Unit> ? zero_i() : splat_i(starts[i]));
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) acc[p][i][v] = start;
      }
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) weights[p][v] = Unit::of(zero_i());
    }
    int64_t left = shape.steps;
    // `count` is never 0: a loop that may end before it begins costs the compiler twice the registers.
    const auto run = [&](int64_t count) __attribute__((always_inline)) {
      do {
        if constexpr (FETCHES) {
#pragma GCC unroll 4
          for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 4
            for (int64_t line = 0; line < STEP_BYTES; line += 64)
              __builtin_prefetch(b + p * panel_bytes + ahead + line);
        }
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++) {
          VI column[VECTORS];
          Weights::columns(b + p * panel_bytes, column);
          if constexpr (SUMS_WEIGHTS) {
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) weights[p][v] = Unit::more(weights[p][v], Unit::ones(), column[v]);
          }
#pragma GCC unroll 16
          for (int i = 0; i < ROWS; i++) {
            const VI row = broadcast_i(a + i);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) acc[p][i][v] = Unit::more(acc[p][i][v], row, column[v]);
          }
        }
        a += stride;
        b += STEP_BYTES;
      } while (--count > 0);
    };
    if constexpr (SHORT_SUMS<Unit>) {
      // Sums of 16 bits are widened into memory before they could overflow.
      alignas(64) int32_t wide[PANELS][ROWS][NR];
      bool first = true;
      while (left > rows.chunk) {
        run(rows.chunk);
        left -= rows.chunk;
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 16
          for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) {
              if (first) {
                Unit::store(wide[p][i] + v * LANES, acc[p][i][v]);
              } else {
                Unit::add(wide[p][i] + v * LANES, acc[p][i][v]);
              }
              acc[p][i][v] = Unit::of(zero_i());
            }
        first = false;
      }
      run(left);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; v++) {
            VI sum = add_i(Unit::wide(acc[p][i][v]), splat_i(starts[i]));
            if (!first) sum = add_i(sum, load_i(wide[p][i] + v * LANES));
            acc[p][i][v] = Unit::of(sum);
          }
    } else {
      run(left);
    }
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; p++) {
      const uint8_t* const of_panel = head + p * panel_bytes;
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        const auto number = [&](int at) {
          return form.halves ? halves_at(of_panel + 2 * at) : load(reinterpret_cast<const float*>(of_panel) + at);
        };
        const VF scale = number(v * LANES);
        VF offset = zero_f(), whole = zero_f();
        if constexpr (OFFSET) offset = fma(shift, scale, number(NR + v * LANES));
        if constexpr (SUMS_WEIGHTS)
          whole =
              fma(floats_of(add_i(Unit::wide(weights[p][v]), splat_i(-Weights::SHIFT * static_cast<int32_t>(group)))),
                  scale, mul_f(splat(static_cast<float>(group)), offset));
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
          float* const cells = tile + (p * ROWS + i) * NR + v * LANES;
          VF value = floats_of(total_of<Unit>(acc[p][i][v])), total = load(cells);
          if constexpr (ACTIVATIONS != Activations::ROW) value = mul_f(value, splat(scales[i]));
          total = fma(value, scale, total);
          if constexpr (OFFSET) total = fma(splat(sums[i]), offset, total);
          if constexpr (SUMS_WEIGHTS) total = fma(splat(offsets[i]), whole, total);
          store(cells, total);
        }
      }
    }
    starts += stride;
    if constexpr (ACTIVATIONS != Activations::ROW) scales += stride;
    if constexpr (OFFSET) sums += stride;
    if constexpr (SUMS_WEIGHTS) offsets += stride;
  }
}

using GroupKernel = void (*)(const GroupShape&, const GroupForm&, int64_t, const GroupRows&, const uint8_t*, float*);

// Rows of the kernel that takes `rows`: few go by themselves, more by the next size, with rows of zeros.
constexpr int group_kernel_rows(int rows) {
  if (rows >= MR_VECTOR) return MR_VECTOR;
  return rows <= 4 ? rows : rows <= 6 ? 6 : rows <= 8 ? 8 : MR_VECTOR;
}

template <class Weights, bool OFFSET, Activations ACTIVATIONS, int ROWS = MR_VECTOR>
GroupKernel group_kernel_of(int rows, int panels) {
  if constexpr (ROWS > 1) {
    if (group_kernel_rows(rows) < ROWS) return group_kernel_of<Weights, OFFSET, ACTIVATIONS, ROWS - 1>(rows, panels);
  }
  if constexpr (ROWS <= MANY_PANELS_ROWS) {
    if (panels > 1) return &group_kernel<Weights, OFFSET, ACTIVATIONS, ROWS, MANY_PANELS>;
  }
  (void)panels;
  if constexpr (group_kernel_rows(ROWS) == ROWS) return &group_kernel<Weights, OFFSET, ACTIVATIONS, ROWS, 1>;
  return nullptr;
}

template <class Weights>
GroupKernel group_kernel_of(bool offset, Activations activations, int rows, int panels) {
  switch (activations) {
    case Activations::ROW:
      return offset ? group_kernel_of<Weights, true, Activations::ROW>(rows, panels)
                    : group_kernel_of<Weights, false, Activations::ROW>(rows, panels);
    case Activations::GROUP:
      return offset ? group_kernel_of<Weights, true, Activations::GROUP>(rows, panels)
                    : group_kernel_of<Weights, false, Activations::GROUP>(rows, panels);
    default:
      return offset ? group_kernel_of<Weights, true, Activations::OFFSET>(rows, panels)
                    : group_kernel_of<Weights, false, Activations::OFFSET>(rows, panels);
  }
}

}  // namespace PL_LEVEL
}  // namespace planish
