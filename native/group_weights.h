// Weights whose scale, and perhaps offset, stands for a group of neighbouring input channels, as they lie in memory for the
// engine: the panels of packed_weights.h, with each group's scales and offsets before its codes, so that one stretch of
// memory gives both.
//
// A matrix [n, k] with k / group scales per row. A weight is scale·code, or scale·code + offset with codes from 0 on; then
// `shift` is taken off the codes when they are packed, which makes them signed, and shift·scale joins the offset where it is
// read: offsets stay as given, in 16 bits where they were.
namespace planish {
namespace PL_LEVEL {

// How a matrix is kept: halves or f32 for scales and offsets, whether there are offsets, and what was taken off the codes.
struct GroupForm {
  bool halves, offset;
  int shift;

  explicit GroupForm(int64_t word)
      : halves((word & GROUP_HALVES) != 0), offset((word & GROUP_OFFSET) != 0), shift(static_cast<int>(word >> 8)) {}
};

struct GroupShape {
  int64_t groups;       // along k
  int64_t steps;        // of the multiply-add unit in a group
  int64_t scale_bytes;  // of NR scales and offsets
  int64_t step_bytes;   // of NR lanes of codes
  int64_t group_bytes;
  int64_t panel_bytes;
  int64_t panels;

  GroupShape(int32_t kind, int64_t n, int64_t k, int64_t group, const GroupForm& form) {
    const PackedForm unit = packed_form(kind);
    groups = k / group;
    steps = group / unit.group;
    scale_bytes = NR * (form.halves ? 2 : 4) * (form.offset ? 2 : 1);
    step_bytes = NR * unit.group * unit.bits / 8;
    group_bytes = scale_bytes + steps * step_bytes;
    panel_bytes = ceil_div(groups * group_bytes, 64) * 64;
    panels = ceil_div(n, NR);
  }
};

inline int check_groups(int32_t kind, int64_t n, int64_t k, int64_t group) {
  if (kind != PACKED_KIND_INT4 && kind != PACKED_KIND_INT8)
    return fail(PL_BAD_ARGUMENT, "groups of weights are codes of 4 or 8 bits, not of kind %d", kind);
  if (n < 0 || k < 0 || group < 16 || group % 16 != 0 || k % group != 0)
    return fail(PL_BAD_ARGUMENT,
                "groups of %lld in weights of shape %lld×%lld; a group is a multiple of 16 that divides k",
                static_cast<long long>(group), static_cast<long long>(n), static_cast<long long>(k));
  return 0;
}

inline int group_bytes(int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form, int64_t* bytes) {
  if (const int code = check_groups(kind, n, k, group)) return code;
  const GroupShape shape(kind, n, k, group, GroupForm(form));
  *bytes = shape.panels * shape.panel_bytes;
  return 0;
}

// codes [n, k]: signed, or from 0 on where there are offsets; scale, offset [n, k / group].
inline int pack_groups(int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form_word, const int8_t* codes,
                       const float* scale, const float* offset, uint8_t* packed) {
  if (const int code = check_groups(kind, n, k, group)) return code;
  const GroupForm form(form_word);
  if (form.offset != (offset != nullptr)) return fail(PL_BAD_ARGUMENT, "offsets of weights do not fit their form");
  const GroupShape shape(kind, n, k, group, form);
  const int unit = packed_form(kind).group;
  const bool nibbles = kind == PACKED_KIND_INT4;
  const int stored = (nibbles ? SHIFT_INT4 : SHIFT_INT8) - form.shift;
  parallel_for(shape.panels, [&](int64_t panel) {
    uint8_t* const out = packed + panel * shape.panel_bytes;
    memset(out, 0, static_cast<size_t>(shape.panel_bytes));
    for (int lane = 0; lane < NR; lane++) {
      const int64_t row = panel * NR + lane;
      if (row >= n) continue;
      const int vector = lane / LANES;
      for (int64_t g = 0; g < shape.groups; g++) {
        uint8_t* const base = out + g * shape.group_bytes;
        const auto put = [&](float x, int64_t at) {
          if (form.halves) {
            const uint16_t bits = half_of(x);
            memcpy(base + 2 * at, &bits, sizeof bits);
          } else {
            memcpy(base + 4 * at, &x, sizeof x);
          }
        };
        put(scale[row * shape.groups + g], lane);
        if (offset) put(offset[row * shape.groups + g], NR + lane);
        const uint8_t* const from = reinterpret_cast<const uint8_t*>(codes) + row * k + g * group;
        for (int64_t s = 0; s < shape.steps; s++) {
          uint8_t* const step = base + shape.scale_bytes + s * shape.step_bytes + lane % LANES * unit;
          for (int e = 0; e < unit; e++) {
            const int code = from[s * unit + e] + stored;
            if (nibbles) {
              step[e] = static_cast<uint8_t>(step[e] | ((code & 15) << (4 * vector)));
            } else {
              step[vector * LANES * unit + e] = static_cast<uint8_t>(code);
            }
          }
        }
      }
    }
  });
  return 0;
}

// out[r] = row ids[r] of a matrix, [rows, k] (an embedding, which may share the head's memory).
inline int group_rows(int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form_word, const uint8_t* packed,
                      const int32_t* ids, int64_t rows, float* out) {
  if (const int code = check_groups(kind, n, k, group)) return code;
  const GroupForm form(form_word);
  if (const int code = check_ids(n, ids, rows)) return code;
  const GroupShape shape(kind, n, k, group, form);
  const int unit = packed_form(kind).group;
  const bool nibbles = kind == PACKED_KIND_INT4;
  const float shift = static_cast<float>(form.shift);
  parallel_ranges(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int lane = static_cast<int>(ids[r] % NR), vector = lane / LANES;
      const uint8_t* base = packed + ids[r] / NR * shape.panel_bytes;
      float* to = out + r * k;
      for (int64_t g = 0; g < shape.groups; g++, base += shape.group_bytes) {
        const auto get = [&](int at) {
          if (form.halves) {
            uint16_t bits;
            memcpy(&bits, base + 2 * at, sizeof bits);
            return float_of_half(bits);
          }
          float x;
          memcpy(&x, base + 4 * at, sizeof x);
          return x;
        };
        const float scale = get(lane), offset = form.offset ? get(NR + lane) + shift * scale : 0.0f;
        for (int64_t s = 0; s < shape.steps; s++) {
          const uint8_t* const step = base + shape.scale_bytes + s * shape.step_bytes + lane % LANES * unit;
          for (int e = 0; e < unit; e++) {
            const int code = nibbles ? ((step[e] >> (4 * vector)) & 15) - SHIFT_INT4
                                     : static_cast<int8_t>(step[vector * LANES * unit + e] - SHIFT_INT8);
            *to++ = scale * static_cast<float>(code) + offset;
          }
        }
      }
    }
  });
  return 0;
}

}  // namespace PL_LEVEL
}  // namespace planish
