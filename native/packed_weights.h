// Weights as they lie in memory for the engine: packed once at load, in the order in which the micro-kernels of
// packed_micro.h read them, and never unpacked as a whole.
//
// A matrix [n, k] is cut into panels of NR output columns. A panel holds, group after group along k, NR lanes of GROUP
// consecutive k, the form of the multiply-add units (simd/): byte weights lane by lane; 4-bit weights with the
// first half of the lanes in the low nibbles and the second half in the high ones, so that one mask and one shift give
// two vectors. Panels are padded with zero weights to NR columns and to whole steps of the unit.
namespace planish {
namespace PL_LEVEL {

struct PackedForm {
  int group;  // consecutive k per lane
  int step;   // groups per step of the unit
  int bits;   // per weight
};

inline PackedForm packed_form(int32_t kind) {
  switch (kind) {
    case PACKED_KIND_INT4: return {UnitNibbles::GROUP, GROUP_STEP<UnitNibbles>, 4};
    case PACKED_KIND_INT8: return {UnitI8::GROUP, GROUP_STEP<UnitI8>, 8};
    case PACKED_KIND_INT4_F32: return {1, 1, 4};
    case PACKED_KIND_INT8_F32: return {1, 1, 8};
    case PACKED_KIND_BF16_BF16: return {UnitBf16::GROUP, GROUP_STEP<UnitBf16>, 16};
    default: return {1, 1, 16};
  }
}

struct PackedShape {
  PackedForm form;
  int64_t groups;       // along k, padded
  int64_t group_bytes;  // of NR lanes
  int64_t panel_bytes;
  int64_t panels;

  PackedShape(int32_t kind, int64_t n, int64_t k) : form(packed_form(kind)) {
    groups = ceil_div(ceil_div(k, form.group), form.step) * form.step;
    group_bytes = NR * form.group * form.bits / 8;
    panel_bytes = ceil_div(groups * group_bytes, 64) * 64;
    panels = ceil_div(n, NR);
  }
};

// What is added to codes before they are stored, so that the unit can take them as unsigned; the sums' correction is
// this times the sum of the activations' codes. 4-bit codes are always stored plus 8.
constexpr int SHIFT_INT4 = 8;
constexpr int SHIFT_INT8 = PL_ISA >= 2 ? 128 : 0;

inline int packed_bytes(int32_t kind, int64_t n, int64_t k, int64_t* bytes) {
  if (kind < 0 || kind >= PACKED_KIND_COUNT || n < 0 || k < 0)
    return fail(PL_BAD_ARGUMENT, "no packed weights of kind %d and shape %lld×%lld", kind, static_cast<long long>(n),
                static_cast<long long>(k));
  const PackedShape shape(kind, n, k);
  *bytes = shape.panels * shape.panel_bytes;
  return 0;
}

inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if PL_ISA == 1
// A panel of 4-bit weights for UnitNibbles: bytes transposed into lanes, then halves of the lanes joined. `lanes` holds
// a panel's groups × NR lanes.
inline void pack_nibbles(const int8_t* codes, int64_t count, int64_t k, int64_t groups, uint32_t* lanes, uint8_t* out) {
  pack_byte_panel<NR, UnitNibbles>(lanes, {codes, k, 0}, 0, count, k);
  const VI shift = _mm256_set1_epi8(SHIFT_INT4), low = _mm256_set1_epi8(15);
  for (int64_t g = 0; g < groups; g++) {
    const VI first = _mm256_add_epi8(load_i(lanes + g * NR), shift);
    const VI second = _mm256_add_epi8(load_i(lanes + g * NR + LANES), shift);
    store_i(out + g * 2 * LANES * UnitNibbles::GROUP / 2,
            _mm256_or_si256(_mm256_and_si256(first, low), _mm256_slli_epi16(_mm256_and_si256(second, low), 4)));
  }
}
#endif

// source: int8 codes [n, k] for the kinds with codes, else f32 [n, k], rounded to the kind's 16 bits.
inline int pack_weights(int32_t kind, int64_t n, int64_t k, const void* source, uint8_t* packed) {
  int64_t unused;
  if (const int code = packed_bytes(kind, n, k, &unused)) return code;
  const PackedShape shape(kind, n, k);
  const int group = shape.form.group;
  parallel_for(shape.panels, [&](int64_t panel) {
    uint8_t* const out = packed + panel * shape.panel_bytes;
    memset(out, 0, static_cast<size_t>(shape.panel_bytes));
#if PL_ISA == 1
    if (kind == PACKED_KIND_INT4) {
      if (uint32_t* const lanes =
              static_cast<uint32_t*>(thread_scratch(1, static_cast<size_t>(shape.groups * NR + 8) * 4))) {
        pack_nibbles(static_cast<const int8_t*>(source) + panel * NR * k, n - panel * NR < NR ? n - panel * NR : NR, k,
                     shape.groups, lanes, out);
        return;
      }
    }
#endif
    for (int lane = 0; lane < NR; lane++) {
      const int64_t row = panel * NR + lane;
      const int vector = lane / LANES;
      for (int64_t at = 0; at < shape.groups * group; at++) {
        const bool exists = row < n && at < k;
        const int64_t element = lane % LANES * group + at % group;  // within its vector
        uint8_t* const base = out + at / group * shape.group_bytes;
        if (shape.form.bits == 16) {
          const float x = exists ? static_cast<const float*>(source)[row * k + at] : 0.0f;
          const uint16_t bits = kind == PACKED_KIND_HALF_F32 ? half_of(x) : bf16_bits(x);
          memcpy(base + 2 * (vector * LANES * group + element), &bits, sizeof bits);
          continue;
        }
        const int code = exists ? static_cast<const int8_t*>(source)[row * k + at] : 0;
        if (shape.form.bits == 8) {
          base[vector * LANES * group + element] =
              static_cast<uint8_t>(code + (kind == PACKED_KIND_INT8 ? SHIFT_INT8 : 0));
        } else {
          base[element] = static_cast<uint8_t>(base[element] | (((code + SHIFT_INT4) & 15) << (4 * vector)));
        }
      }
    }
  });
  return 0;
}

inline int check_ids(int64_t n, const int32_t* ids, int64_t rows) {
  for (int64_t r = 0; r < rows; r++)
    if (ids[r] < 0 || ids[r] >= n)
      return fail(PL_BAD_ARGUMENT, "id %d of row %lld is not in the table; give 0 … %lld", ids[r],
                  static_cast<long long>(r), static_cast<long long>(n - 1));
  return 0;
}

// out[r] = row ids[r] of a packed matrix of 16-bit weights by f32 activations (an embedding that shares the head's
// memory), [rows, k].
inline int packed_rows(int32_t kind, int64_t n, int64_t k, const uint8_t* packed, const int32_t* ids, int64_t rows,
                       float* out) {
  if (kind != PACKED_KIND_HALF_F32 && kind != PACKED_KIND_BF16_F32)
    return fail(PL_BAD_ARGUMENT, "rows are read from packed weights of 16 bits for f32 activations, not of kind %d",
                kind);
  if (const int code = check_ids(n, ids, rows)) return code;
  const PackedShape shape(kind, n, k);
  parallel_ranges(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const uint8_t* at = packed + ids[r] / NR * shape.panel_bytes + ids[r] % NR * 2;
      float* const row = out + r * k;
      for (int64_t c = 0; c < k; c++, at += shape.group_bytes) {
        uint16_t bits;
        memcpy(&bits, at, sizeof bits);
        if (kind == PACKED_KIND_HALF_F32) {
          row[c] = float_of_half(bits);
        } else {
          const uint32_t wide = static_cast<uint32_t>(bits) << 16;
          memcpy(row + c, &wide, sizeof wide);
        }
      }
    }
  });
  return 0;
}

}  // namespace PL_LEVEL
}  // namespace planish
