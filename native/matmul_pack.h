// Packing: one side of a product, f32 or int8, either orientation, into panels of lanes; conversion, rounding to bf16
// and kScale happen on the way, so the micro-kernels see nothing but lanes.
//
// A side is seen as elements x(i, κ), i along rows of A or columns of B, κ along k; one of the two strides is 1.
namespace planish {
namespace PL_LEVEL {

struct Side {
  const void* data;
  bool codes;  // int8, else f32
  int64_t stride_i;
  int64_t stride_k;
  const float* k_scale;  // null: none
  int64_t extent = 0;    // elements along i, where known: up to there a load may reach past the panel

  template <class Source>
  const Source* at(int64_t i, int64_t k) const {
    return static_cast<const Source*>(data) + i * stride_i + k * stride_k;
  }
  // The same side, `elements` further.
  Side advanced(int64_t elements) const {
    Side next = *this;
    next.data = static_cast<const char*>(data) + elements * (codes ? 1 : 4);
    return next;
  }
};

// LANES·GROUP consecutive κ of one row: a vector of groups.
template <class Unit, class Source>
inline VI load_groups(const Source* p, const float* scale) {
#if PL_ISA >= 2
  if constexpr (Unit::GROUP == 2) {
    VF low = load(p), high = load(p + LANES);
    if (scale) {
      low = mul_f(low, load(scale));
      high = mul_f(high, load(scale + LANES));
    }
    return (VI)_mm512_cvtne2ps_pbh(high, low);
  } else
#endif
  {
    VF x = load(p);
    if (scale) x = mul_f(x, load(scale));
    if (Unit::ROUND) x = round_bf16(x);
    return as_i(x);
  }
}

// The same κ-group of LANES neighbouring i; `rows` ≤ GROUP of its κ exist.
template <class Unit, class Source>
inline VI load_columns(const Source* p, int64_t stride_k, const float* scale, int rows) {
  VF x = load(p);
  if (scale) x = mul_f(x, splat(scale[0]));
#if PL_ISA >= 2
  if constexpr (Unit::GROUP == 2) {
    VF y = zero_f();
    if (rows > 1) {
      y = load(p + stride_k);
      if (scale) y = mul_f(y, splat(scale[1]));
    }
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
#endif
  (void)rows;
  (void)stride_k;
  if (Unit::ROUND) x = round_bf16(x);
  return as_i(x);
}

// A vector of groups for κ from k on, of which `valid` exist; the rest are zeros.
template <class Unit, class Source>
inline VI load_row(const Side& side, int64_t i, int64_t k, int64_t valid) {
  constexpr int SPAN = LANES * Unit::GROUP;
  const Source* p = side.at<Source>(i, k);
  const float* scale = side.k_scale ? side.k_scale + k : nullptr;
  if (valid >= SPAN) return load_groups<Unit>(p, scale);
  Source values[SPAN] = {};
  float scales[SPAN] = {};
  for (int64_t j = 0; j < valid; j++) {
    values[j] = p[j];
    if (scale) scales[j] = scale[j];
  }
  return load_groups<Unit>(values, scale ? scales : nullptr);
}

// LANES neighbouring i from i on, of which `valid_i` exist, of the group starting at k.
template <class Unit, class Source>
inline VI load_column_group(const Side& side, int64_t i, int64_t valid_i, int64_t k, int64_t valid_k) {
  const Source* p = side.at<Source>(i, k);
  const float* scale = side.k_scale ? side.k_scale + k : nullptr;
  const int rows = valid_k < Unit::GROUP ? static_cast<int>(valid_k) : Unit::GROUP;
  if (valid_i >= LANES || i + LANES <= side.extent) return load_columns<Unit>(p, side.stride_k, scale, rows);
  Source values[Unit::GROUP * LANES] = {};
  for (int r = 0; r < rows; r++)
    for (int64_t j = 0; j < valid_i; j++) values[r * LANES + j] = p[r * side.stride_k + j];
  return load_columns<Unit>(values, LANES, scale, rows);
}

// One group of a panel. Groups narrower than a vector are stored whole where the next group's store mends what follows.
template <int WIDTH>
inline void store_group(uint32_t* out, VI x, int lanes, bool last) {
  if (lanes == LANES || (WIDTH < LANES && !last)) {
    store_i(out, x);
  } else {
    store_lanes(out, x, lanes);
  }
}

// Packs i in [i0, i0 + count) and κ in [k0, k0 + length) as one panel of WIDTH lanes per group.
template <class Unit, int WIDTH, class Source>
void pack_panel(uint32_t* panel, const Side& side, int64_t i0, int64_t count, int64_t k0, int64_t length) {
  constexpr int GROUP = Unit::GROUP;
  const int64_t groups = (length + GROUP - 1) / GROUP;
  const int64_t padded = (groups + GROUP_STEP<Unit> - 1) / GROUP_STEP<Unit> * GROUP_STEP<Unit>;
  for (int lane = 0; lane < WIDTH; lane += LANES) {
    const int lanes = WIDTH - lane < LANES ? WIDTH - lane : LANES;
    const int64_t valid_i = count - lane < lanes ? count - lane : lanes;
    if (valid_i <= 0) {
      for (int64_t g = 0; g < padded; g++) store_lanes(panel + g * WIDTH + lane, zero_i(), lanes);
      continue;
    }
    if (side.stride_k == 1) {
      for (int64_t g = 0; g < groups; g += LANES) {
        VI block[LANES];
        for (int r = 0; r < LANES; r++)
          block[r] =
              r < valid_i ? load_row<Unit, Source>(side, i0 + lane + r, k0 + g * GROUP, length - g * GROUP) : zero_i();
        transpose(block);
        const int64_t steps = padded - g < LANES ? padded - g : LANES;
        uint32_t* out = panel + g * WIDTH + lane;
        for (int64_t s = 0; s < steps; s++) store_group<WIDTH>(out + s * WIDTH, block[s], lanes, g + s + 1 == padded);
      }
    } else {
      for (int64_t g = 0; g < groups; g++) {
        const VI x = load_column_group<Unit, Source>(side, i0 + lane, valid_i, k0 + g * GROUP, length - g * GROUP);
        store_group<WIDTH>(panel + g * WIDTH + lane, x, lanes, g + 1 == padded);
      }
      for (int64_t g = groups; g < padded; g++) store_lanes(panel + g * WIDTH + lane, zero_i(), lanes);
    }
  }
}

#if PL_ISA >= 3
// The tile unit wants each row's 16 groups side by side: [group / 16][MR][16].
template <class Unit, class Source>
void pack_tile_panel(uint32_t* panel, const Side& side, int64_t i0, int64_t count, int64_t k0, int64_t length) {
  constexpr int GROUP = Unit::GROUP, ROWS = MR<Unit>;
  const int64_t groups = (length + GROUP - 1) / GROUP;
  for (int64_t g = 0; g < groups; g += 16, panel += ROWS * 16) {
    const int64_t k = k0 + g * GROUP, valid_k = length - g * GROUP;
    if (side.stride_k == 1) {
      for (int64_t r = 0; r < ROWS; r++)
        store_i(panel + r * 16, r < count ? load_row<Unit, Source>(side, i0 + r, k, valid_k) : zero_i());
      continue;
    }
    for (int64_t r = 0; r < ROWS; r += 16) {
      const int64_t valid_i = count - r < 16 ? count - r : 16;
      VI block[16];
      for (int s = 0; s < 16; s++)
        block[s] = valid_i > 0 && g + s < groups
                       ? load_column_group<Unit, Source>(side, i0 + r, valid_i, k + s * GROUP, valid_k - s * GROUP)
                       : zero_i();
      transpose(block);
      for (int s = 0; s < 16; s++) store_i(panel + (r + s) * 16, block[s]);
    }
  }
}
#endif

template <class Unit, class Source>
inline void pack_a_from(uint32_t* panel, const Side& side, int64_t i0, int64_t count, int64_t k0, int64_t length) {
#if PL_ISA >= 3
  if constexpr (Unit::TILES) {
    pack_tile_panel<Unit, Source>(panel, side, i0, count, k0, length);
    return;
  }
#endif
  pack_panel<Unit, MR_VECTOR, Source>(panel, side, i0, count, k0, length);
}

template <class Unit>
inline void pack_a(uint32_t* panel, const Side& side, int64_t i0, int64_t count, int64_t k0, int64_t length) {
  if (side.codes) {
    pack_a_from<Unit, int8_t>(panel, side, i0, count, k0, length);
  } else {
    pack_a_from<Unit, float>(panel, side, i0, count, k0, length);
  }
}

template <class Unit>
inline void pack_b(uint32_t* panel, const Side& side, int64_t i0, int64_t count, int64_t k0, int64_t length) {
  if (side.codes) {
    pack_panel<Unit, NR, int8_t>(panel, side, i0, count, k0, length);
  } else {
    pack_panel<Unit, NR, float>(panel, side, i0, count, k0, length);
  }
}

// Integer codes for the int8 unit: `flip` is XORed into each byte (0x80 adds 128).
struct ByteSide {
  const int8_t* data;
  int64_t stride;
  uint8_t flip;
};

template <class Unit = UnitI8>
inline VI load_byte_groups(const int8_t* p, uint8_t flip) {
  return Unit::codes(p, flip);
}

// Bytes past `valid` count as code zero: `flip` after shifting, so that the correction 128·Σa stays right (their
// partner in A is zero either way).
template <class Unit = UnitI8>
inline VI load_byte_row(const ByteSide& side, int64_t i, int64_t k, int64_t valid) {
  constexpr int SPAN = LANES * Unit::GROUP;
  const int8_t* p = side.data + i * side.stride + k;
  if (valid >= SPAN) return load_byte_groups<Unit>(p, side.flip);
  int8_t values[SPAN] = {};
  memcpy(values, p, static_cast<size_t>(valid));
  return load_byte_groups<Unit>(values, side.flip);
}

template <int WIDTH, class Unit = UnitI8>
void pack_byte_panel(uint32_t* panel, const ByteSide& side, int64_t i0, int64_t count, int64_t length) {
  constexpr int GROUP = Unit::GROUP;
  const int64_t groups = (length + GROUP - 1) / GROUP;
  const int64_t padded = (groups + GROUP_STEP<Unit> - 1) / GROUP_STEP<Unit> * GROUP_STEP<Unit>;
  for (int lane = 0; lane < WIDTH; lane += LANES) {
    const int lanes = WIDTH - lane < LANES ? WIDTH - lane : LANES;
    for (int64_t g = 0; g < groups; g += LANES) {
      VI block[LANES];
      for (int r = 0; r < LANES; r++)
        block[r] =
            lane + r < count ? load_byte_row<Unit>(side, i0 + lane + r, g * GROUP, length - g * GROUP) : zero_i();
      transpose(block);
      const int64_t steps = padded - g < LANES ? padded - g : LANES;
      uint32_t* out = panel + g * WIDTH + lane;
      for (int64_t s = 0; s < steps; s++) store_lanes(out + s * WIDTH, block[s], lanes);
    }
  }
}

template <class Unit = UnitI8>
inline void pack_byte_a(uint32_t* panel, const ByteSide& side, int64_t i0, int64_t count, int64_t length) {
#if PL_ISA >= 3
  if constexpr (Unit::TILES) {
    const int64_t groups = (length + 3) / 4;
    for (int64_t g = 0; g < groups; g += 16, panel += MR<UnitI8> * 16)
      for (int64_t r = 0; r < MR<UnitI8>; r++)
        store_i(panel + r * 16, r < count ? load_byte_row(side, i0 + r, g * 4, length - g * 4) : zero_i());
    return;
  }
#endif
  pack_byte_panel<MR_VECTOR, Unit>(panel, side, i0, count, length);
}

inline int32_t sum_bytes(const int8_t* p, int64_t length) {
  int64_t k = 0;
  int32_t sum = 0;
#if PL_ISA >= 2
  VI total = zero_i();
  for (; k + 64 <= length; k += 64) total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), load_i(p + k));
  sum = _mm512_reduce_add_epi32(total);
#elif PL_ISA == 1
  VI total = zero_i();
  const VI ones = _mm256_set1_epi8(1);
  for (; k + 32 <= length; k += 32)
    total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, load_i(p + k)), _mm256_set1_epi16(1)));
  int32_t lanes[8];
  store_i(lanes, total);
  for (int l = 0; l < 8; l++) sum += lanes[l];
#endif
  for (; k < length; k++) sum += p[k];
  return sum;
}

// Groups after which the 16-bit sums of UnitNibbles are widened, for `rows` rows that share a panel: `ends` receives the
// end of each block, the last one `groups`; at most ⌈k / 32⌉ of them, and one where k is 0. Every lane of a sum grows by at
// most 15·(|a| + |a'|) per group; blocks, of whole chunks of 8 groups, end before the sum over groups of the largest such
// growth, over rows, could exceed 32767. A chunk alone adds at most 8·3840 = 30720.
inline void short_blocks(const int8_t* a, int64_t rows, int64_t k, int64_t groups, int32_t* ends) {
#if PL_ISA == 1
  constexpr int64_t CHUNK = 32;
  int32_t bound = 0;
  for (int64_t at = 0; at < k; at += CHUNK) {
    VI most = zero_i();
    for (int64_t r = 0; r < rows; r++) {
      const VI x = load_byte_row<UnitNibbles>({a, k, 0}, r, at, k - at);
      most = _mm256_max_epi16(most, _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_set1_epi8(1)));
    }
    // Sums of the chunk's groups, for the even and the odd pairs.
    __m128i pairs = _mm_add_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    pairs = _mm_add_epi16(pairs, _mm_unpackhi_epi64(pairs, pairs));
    pairs = _mm_add_epi16(pairs, _mm_srli_epi64(pairs, 32));
    const int32_t both = _mm_cvtsi128_si32(pairs), even = both & 0xffff, odd = both >> 16;
    const int32_t growth = 15 * (even > odd ? even : odd);
    if (bound + growth > 32767) {
      *ends++ = static_cast<int32_t>(at / UnitNibbles::GROUP);
      bound = 0;
    }
    bound += growth;
  }
#else
  (void)a;
  (void)rows;
  (void)k;
#endif
  *ends = static_cast<int32_t>(groups);
}

}  // namespace PL_LEVEL
}  // namespace planish
