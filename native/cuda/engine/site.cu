// A site in one pass: from what a block holds to the codes that its linears read. Norm or gate·up or the joining of
// attention's splits, then the Kronecker transform on tensor cores, a scale per token after clipping, rounding, codes.
// Source: docs/methods.md, At run time. A block of threads works on one token at a time.
//
// Precision: a row is divided by a power of two near its largest value, so halves neither overflow nor, where it
// matters, lose bits; matrices are halves in the artifact already. TAIL 1 gives rows and the intermediate product as a
// sum of two halves (22 bits; what is dropped is below 2⁻²² of the row's largest value per term, as in f32); TAIL 0 as
// one (11 bits: an entry errs by at most 2⁻¹¹·Σ|x·P|, so a code on the grid of 2⁻³ of the row's maximum flips in
// some thousandths of cases, by one).
//
// Macros: LEFT, RIGHT: sizes of the row as LEFT×RIGHT; HAS_LEFT, HAS_RIGHT: whether there is a matrix; INPUT 0 plain,
// 1 RMS norm, 2 SiLU(x)·x2, 3 splits of attention; IN16: halves (INPUT 0, 2); TAIL; QMAX 7 or 127; HEIGHT: what rows are
// padded to; BM: rows that a warp computes; SPAN 16 … 128: a scale for that many columns, 0: for the row; ZERO 1: codes of a
// group less its zero point, which fit a byte up to 7 bits; SUMS 16 … 128: sums of that many codes too (gemm_group.cuh).
#include "engine/site.cuh"

// A warp computes BM×32 of the row.
constexpr int WARPS = (ROWS / BM) * (COLS / 32);
constexpr int THREADS = WARPS * 32;
// Elements that a thread loads at once, and how often.
constexpr bool PACKED = IN16 && RIGHT % 8 == 0;
constexpr int V = PACKED ? 8 : !IN16 && RIGHT % 4 == 0 ? 4 : 1;
constexpr int ITEMS = (WIDTH / V + THREADS - 1) / THREADS;
constexpr int LEFT_HALVES = HAS_LEFT ? ROWS * LEFT_STRIDE : 0, RIGHT_HALVES = HAS_RIGHT ? COLS * RIGHT_STRIDE : 0;
// Halves that stay halves: they are only multiplied by a power of two.
constexpr bool DIRECT = PACKED && INPUT == PLAIN && !TAIL;

static_assert(WARPS <= 32 && HEIGHT % BM == 0, "a row of this size does not fit one block");

// With groups, the transformed row lies where its halves lay, in rows of RIGHT + 8 floats.
// Without groups, what would divide by it is not compiled.
constexpr int GROUP_COLUMNS = SPAN ? SPAN : 128;
constexpr int VALUE_STRIDE = RIGHT + 8, VALUE_HALVES = SPAN ? 2 * LEFT * VALUE_STRIDE : 0;
constexpr int TILE_HALVES = (TAIL ? 2 : 1) * TILE > VALUE_HALVES ? (TAIL ? 2 : 1) * TILE : (VALUE_HALVES + 7) / 8 * 8;
constexpr int GROUPS = SPAN ? BLOCKS * 128 / GROUP_COLUMNS : 0, SUM_COUNT = SUMS ? BLOCKS * 128 / (SUMS ? SUMS : 1) : 0;
// Scales of groups, where sums of codes need them; a multiple of 16 bytes.
constexpr int KEPT_SCALES = SPAN && SUMS ? (GROUPS + 3) / 4 * 4 : 0;

// What a thread holds of a row, as it lies in memory.
struct Raw {
  uint4 packed[PACKED ? ITEMS : 1], up[PACKED && INPUT == SILU_UP ? ITEMS : 1];
  float plain[PACKED ? 1 : ITEMS][V], plain_up[!PACKED && INPUT == SILU_UP ? ITEMS : 1][V];
};

__device__ __forceinline__ void load_plain(const void* from, i64 at, float (&v)[V]) {
  if constexpr (V == 4) {
    const f4 w = *(const f4*)((const float*)from + at);
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
  } else {
    v[0] = IN16 ? from_half(((const u16*)from)[at]) : ((const float*)from)[at];
  }
}

__device__ __forceinline__ void fetch(Raw& raw, const void* x, const void* x2, i64 row) {
#pragma unroll
  for (int it = 0; it < ITEMS; it++) {
    const int e = (threadIdx.x + it * THREADS) * V;
    if (e >= WIDTH) continue;
    if constexpr (PACKED) {
      raw.packed[it] = *(const uint4*)((const u16*)x + row + e);
      if constexpr (INPUT == SILU_UP) raw.up[it] = *(const uint4*)((const u16*)x2 + row + e);
    } else {
      load_plain(x, row + e, raw.plain[it]);
      if constexpr (INPUT == SILU_UP) load_plain(x2, row + e, raw.plain_up[it]);
    }
  }
}

__device__ __forceinline__ void spread_halves(const uint4& w, float (&v)[V]) {
  if constexpr (V == 8) {
    v[0] = low_half(w.x), v[1] = high_half(w.x), v[2] = low_half(w.y), v[3] = high_half(w.y);
    v[4] = low_half(w.z), v[5] = high_half(w.z), v[6] = low_half(w.w), v[7] = high_half(w.w);
  }
}

// Attention's splits joined. `tops`: their largest weight and total, [head][split], in shared memory.
__device__ __forceinline__ void join_splits(const float* x, i64 token, int splits, const float2* tops, int e,
                                            float (&v)[V]) {
  const int head = e / RIGHT;
  const float* const from = x + (token * LEFT + head) * splits * (RIGHT + 2) + e % RIGHT;
  const float2* const mine = tops + head * splits;
  float most = -INFINITE, total = 0.f;
  for (int s = 0; s < splits; s++) most = fmaxf(most, mine[s].x);
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    const float weight = mine[s].x == -INFINITE ? 0.f : power_of2(mine[s].x - most);
    total += weight * mine[s].y;
    const float* const part = from + s * (RIGHT + 2);
    if constexpr (V == 4 && RIGHT % 2 == 0) {
      const float2 a = *(const float2*)part, b = *(const float2*)(part + 2);
      v[0] += weight * a.x, v[1] += weight * a.y, v[2] += weight * b.x, v[3] += weight * b.y;
    } else {
#pragma unroll
      for (int i = 0; i < V; i++) v[i] += weight * part[i];
    }
  }
  const float inverse = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
  for (int i = 0; i < V; i++) v[i] *= inverse;
}

__device__ __forceinline__ u32 max_half2(u32 a, u32 b) {
  u32 result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

__device__ __forceinline__ u32 mul_half2(u32 a, u32 b) {
  u32 result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Where code e of a row waits in shared memory: 16-byte pieces in the order piece ^ (128-byte block % 8), so that the eight
// rows of a warp's sums are written to different banks.
__device__ __forceinline__ int place_of(int e) { return e ^ (e >> 7 & 7) << 4; }

// The largest over the lanes of a group, each of which has four of its columns.
__device__ __forceinline__ float group_largest(float x) {
#pragma unroll
  for (int lanes = 1; lanes < SPAN / 4; lanes *= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lanes));
  return x;
}

// Four columns of a transformed row, zeros beyond it.
__device__ __forceinline__ void four_values(float (&v)[4], const float* values, int e) {
  if (RIGHT % 4 == 0) {
    f4 w = {0.f, 0.f, 0.f, 0.f};
    if (e < WIDTH) w = *(const f4*)(values + e / RIGHT * VALUE_STRIDE + e % RIGHT);
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = e + i < WIDTH ? values[(e + i) / RIGHT * VALUE_STRIDE + (e + i) % RIGHT] : 0.f;
  }
}

// Codes and scales of a row's groups. `values`: the transformed row; row: its codes, scaled by `kept` of each group.
__device__ __forceinline__ void group_codes(const float* values, float clip_max, float clip_min, i8* row, float* kept,
                                            float* scales, i64 capacity) {
#pragma unroll 1
  for (int e = threadIdx.x * 4; e < up_to(BLOCKS * 128, THREADS * 4); e += THREADS * 4) {
    float v[4];
    four_values(v, values, e);
    float hi = group_largest(fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])), 0.f)) * clip_max;
    float lo = group_largest(fmaxf(fmaxf(fmaxf(-v[0], -v[1]), fmaxf(-v[2], -v[3])), 0.f)) * clip_min;
    u32 q[4];
    float scale;
    if (ZERO) {
      if (hi == 0.f && lo == 0.f) hi = lo = 1.f;
      scale = (hi + lo) / (2 * QMAX + 1);
      const float zero = rintf(lo / scale), inverse = 1.f / scale;
#pragma unroll
      for (int i = 0; i < 4; i++)
        q[i] = __float_as_uint(fminf(fmaxf(rintf(v[i] * inverse), -zero), 2 * QMAX + 1 - zero) + 12582912.f);
    } else {
      const float largest = fmaxf(hi, lo) / QMAX;
      scale = largest == 0.f ? 1.f : largest;
      const float inverse = 1.f / scale;
#pragma unroll
      for (int i = 0; i < 4; i++)
        q[i] = __float_as_uint(fminf(fmaxf(v[i] * inverse, -QMAX - 1.f), (float)QMAX) + 12582912.f);
    }
    if (e >= BLOCKS * 128) continue;
    *(u32*)(row + place_of(e)) = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
    if (e % GROUP_COLUMNS) continue;
    scales[e / GROUP_COLUMNS * capacity] = scale;
    if (SUMS) kept[e / GROUP_COLUMNS] = scale;
  }
}

// Sums of a row's codes, times the scale of their group where there are groups.
__device__ __forceinline__ void code_sums(const i8* row, const float* kept, float* sums, i64 capacity) {
  for (int s = threadIdx.x; s < SUM_COUNT; s += THREADS) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < SUMS; i += 16) {
      const uint4 w = *(const uint4*)(row + place_of(s * SUMS + i));
      sum = __dp4a((int)w.x, 0x01010101, sum), sum = __dp4a((int)w.y, 0x01010101, sum);
      sum = __dp4a((int)w.z, 0x01010101, sum), sum = __dp4a((int)w.w, 0x01010101, sum);
    }
    sums[s * capacity] = SPAN ? (float)sum * kept[s * SUMS / GROUP_COLUMNS] : (float)sum;
  }
}

// x (and x2): [tokens][stride], rows of halves 16-byte aligned. left, right: halves as they lie in shared memory,
// [ROWS][LEFT_STRIDE] and [COLS][RIGHT_STRIDE]. clips: factors σ(c) [sets][2]. codes: [sets][block][capacity][128],
// scales [sets][capacity], or [sets][group][capacity]; sums [sets][sum][capacity]. SPLITS: x is [token][RIGHT-wide heads][splits][RIGHT + 2]: sums, their maximum score and total.
extern "C" __global__ void __launch_bounds__(THREADS, TAIL || THREADS > 512 ? 1 : 1024 / THREADS)
    site(const void* x, const void* x2, i64 tokens, i64 stride, const float* gain, double epsilon, const u16* left,
         const u16* right, const float* clips, i64 sets, i64 capacity, i8* codes, float* scales, i64 splits,
         float* sums) {
  extern __shared__ __align__(16) u16 memory[];
  __shared__ float extremes[4][32];  // per warp: largest and sum of squares before, largest of both signs after
  u16* const tile = memory;
  u16* const matrix_left = tile + TILE_HALVES;
  u16* const matrix_right = matrix_left + LEFT_HALVES;
  float* const kept = (float*)(matrix_right + RIGHT_HALVES);
  i8* const row = (i8*)(kept + KEPT_SCALES);  // codes; before, the tops of splits
  constexpr int tail = TAIL ? TILE : 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int m0 = warp / (COLS / 32) * BM, n0 = warp % (COLS / 32) * 32;
  release_next();
  if (HAS_LEFT)
    for (int i = threadIdx.x; i < ROWS * LEFT_STRIDE / 8; i += THREADS)
      ((uint4*)matrix_left)[i] = ((const uint4*)left)[i];
  if (HAS_RIGHT)
    for (int i = threadIdx.x; i < COLS * RIGHT_STRIDE / 8; i += THREADS)
      ((uint4*)matrix_right)[i] = ((const uint4*)right)[i];
  // What lies outside the row stays zero: an intermediate product has zeros there by itself.
  if (ROWS != LEFT || COLS != RIGHT)
    for (int i = threadIdx.x; i < (TAIL ? 2 : 1) * TILE / 8; i += THREADS) ((uint4*)tile)[i] = make_uint4(0, 0, 0, 0);
  for (int i = WIDTH + threadIdx.x; i < BLOCKS * 128; i += THREADS) row[place_of(i)] = 0;
  // What is read late, and is no kernel's work.
  const float first_clips[2] = {clips[0], clips[1]};
  if constexpr (INPUT == RMS && V == 4) {
    if (threadIdx.x == 0) prefetch(gain, WIDTH * 4);
  }
  wait_for_earlier();
  Raw raw;
  if (INPUT != SPLITS && blockIdx.x < tokens) fetch(raw, x, x2, blockIdx.x * stride);
  if (ROWS != LEFT || COLS != RIGHT) __syncthreads();
  for (i64 token = blockIdx.x; token < tokens; token += gridDim.x) {
    float v[DIRECT ? 1 : ITEMS][V];
    float top = 0.f, square = 0.f;
    if constexpr (DIRECT) {
      u32 largest = 0;
#pragma unroll
      for (int it = 0; it < ITEMS; it++) {
        if ((threadIdx.x + it * THREADS) * V >= WIDTH) continue;
        const uint4 w = raw.packed[it];
        largest = max_half2(largest, max_half2(max_half2(w.x & 0x7fff7fffu, w.y & 0x7fff7fffu),
                                               max_half2(w.z & 0x7fff7fffu, w.w & 0x7fff7fffu)));
      }
      top = fmaxf(low_half(largest), high_half(largest));
    } else {
      if (INPUT == SPLITS) {
        float2* const tops = (float2*)row;
        for (int i = threadIdx.x; i < LEFT * splits; i += THREADS)
          tops[i] = *(const float2*)((const float*)x + (token * LEFT * splits + i) * (RIGHT + 2) + RIGHT);
        __syncthreads();
      }
#pragma unroll
      for (int it = 0; it < ITEMS; it++) {
        const int e = (threadIdx.x + it * THREADS) * V;
#pragma unroll
        for (int i = 0; i < V; i++) v[it][i] = 0.f;
        if (e >= WIDTH) continue;
        if constexpr (INPUT == SPLITS) {
          join_splits((const float*)x, token, (int)splits, (const float2*)row, e, v[it]);
        } else if constexpr (PACKED) {
          spread_halves(raw.packed[it], v[it]);
          if constexpr (INPUT == SILU_UP) {
            float up[V];
            spread_halves(raw.up[it], up);
#pragma unroll
            for (int i = 0; i < V; i++) v[it][i] = v[it][i] * sigmoidf(v[it][i]) * up[i];
          }
        } else {
#pragma unroll
          for (int i = 0; i < V; i++) {
            v[it][i] = raw.plain[it][i];
            if constexpr (INPUT == SILU_UP) v[it][i] = v[it][i] * sigmoidf(v[it][i]) * raw.plain_up[it][i];
          }
        }
        if (INPUT == RMS) {
          float by[V];
          if constexpr (V == 4) {
            const f4 w = *(const f4*)(gain + e);
            by[0] = w.x, by[1] = w.y, by[2] = w.z, by[3] = w.w;
          } else {
#pragma unroll
            for (int i = 0; i < V; i++) by[i] = gain[e + i];
          }
#pragma unroll
          for (int i = 0; i < V; i++) square += v[it][i] * v[it][i], v[it][i] *= by[i];
        }
#pragma unroll
        for (int i = 0; i < V; i++) top = fmaxf(top, fabsf(v[it][i]));
      }
    }
    top = warp_largest(top);
    if (INPUT == RMS) square = warp_reduce<Sum>(square);
    if (lane == 0) extremes[0][warp] = top, extremes[1][warp] = square;
    __syncthreads();
    top = extremes[0][0], square = extremes[1][0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) {
      top = fmaxf(top, extremes[0][i]);
      if (INPUT == RMS) square += extremes[1][i];
    }
    const int exponent = range_of<DIRECT ? 15 : 100>(top);
    const float shrink = __uint_as_float((u32)(127 - exponent) << 23);
    float grow = __uint_as_float((u32)(127 + exponent) << 23);
    if (INPUT == RMS) grow *= rsqrtf(square / WIDTH + (float)epsilon);
    const u32 shrink2 = pack_half(shrink, shrink);
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      const int e = (threadIdx.x + it * THREADS) * V;
      if (e >= WIDTH) continue;
      u16* to = tile + e / RIGHT * TILE_STRIDE + e % RIGHT;
      if constexpr (DIRECT) {
        const uint4 w = raw.packed[it];
        *(uint4*)to = make_uint4(mul_half2(w.x, shrink2), mul_half2(w.y, shrink2), mul_half2(w.z, shrink2),
                                 mul_half2(w.w, shrink2));
      } else if constexpr (V == 1) {
        const float value = v[it][0] * shrink;
        to[0] = to_half(value);
        if (TAIL) to[TILE] = to_half(value - from_half(to[0]));
      } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
          const float a = v[it][i] * shrink, b = v[it][i + 1] * shrink, c = v[it][i + 2] * shrink,
                      d = v[it][i + 3] * shrink;
          const u32 ab = pack_half(a, b), cd = pack_half(c, d);
          *(uint2*)(to + i) = make_uint2(ab, cd);
          if (TAIL) *(uint2*)(to + TILE + i) = make_uint2(pack_tail(a, b, ab), pack_tail(c, d, cd));
        }
      }
    }
    // The next row arrives while this one is multiplied.
    if (INPUT != SPLITS && token + gridDim.x < tokens) fetch(raw, x, x2, (token + gridDim.x) * stride);
    __syncthreads();
    float acc[BM / 16][4][4];
#pragma unroll
    for (int i = 0; i < BM / 16; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) acc[i][j][c] = 0.f;
    // Visits this warp's pairs of columns: row, column, and the two sums.
    const auto each = [&](auto visit) {
#pragma unroll
      for (int i = 0; i < BM / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int h = 0; h < 2; h++)
            visit(m0 + 16 * i + g + 8 * h, n0 + 8 * j + 2 * t4, acc[i][j][2 * h], acc[i][j][2 * h + 1]);
    };
    if (HAS_LEFT) product<true, ROWS>(acc, matrix_left, LEFT_STRIDE, 0, tile, TILE_STRIDE, tail, m0, n0);
    if (HAS_LEFT && HAS_RIGHT) {
      __syncthreads();
      each([&](int i, int j, float& a, float& b) {
        const u32 head = pack_half(a, b);
        *(u32*)(tile + i * TILE_STRIDE + j) = head;
        if (TAIL) *(u32*)(tile + TILE + i * TILE_STRIDE + j) = pack_tail(a, b, head);
        a = 0.f, b = 0.f;
      });
      __syncthreads();
    }
    if (HAS_RIGHT) product<false, COLS>(acc, tile, TILE_STRIDE, tail, matrix_right, RIGHT_STRIDE, 0, m0, n0);
    if (!HAS_LEFT && !HAS_RIGHT)
      each([&](int i, int j, float& a, float& b) {
        const u16* at = tile + i * TILE_STRIDE + j;
        a = from_half(at[0]) + (TAIL ? from_half(at[TILE]) : 0.f),
        b = from_half(at[1]) + (TAIL ? from_half(at[TILE + 1]) : 0.f);
      });
    if constexpr (SPAN != 0) {
      float* const values = (float*)tile;
      // All have read what these take the place of.
      __syncthreads();
      each([&](int i, int j, float& a, float& b) {
        if ((ROWS != LEFT && i >= LEFT) || (COLS != RIGHT && j >= RIGHT)) return;
        float* const to = values + i * VALUE_STRIDE + j;
        if (RIGHT % 2 == 0) {
          *(float2*)to = make_float2(a * grow, b * grow);
        } else {
          to[0] = a * grow;
          if (j + 1 < RIGHT) to[1] = b * grow;
        }
      });
      __syncthreads();
      for (i64 set = 0; set < sets; set++) {
        group_codes(values, set ? clips[2 * set] : first_clips[0], set ? clips[2 * set + 1] : first_clips[1], row, kept,
                    scales + set * GROUPS * capacity + token, capacity);
        __syncthreads();
        for (int piece = threadIdx.x; piece < BLOCKS * 8; piece += THREADS)
          *(uint4*)(codes + set * BLOCKS * capacity * 128 + code_offset(capacity, token, piece * 16)) =
              *(const uint4*)(row + place_of(piece * 16));
        if constexpr (SUMS != 0) code_sums(row, kept, sums + set * SUM_COUNT * capacity + token, capacity);
        __syncthreads();
      }
      // What lies outside the row is zero again.
      if (ROWS != LEFT || COLS != RIGHT) {
        for (int i = threadIdx.x; i < (TAIL ? 2 : 1) * TILE / 8; i += THREADS)
          ((uint4*)tile)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
      }
      continue;
    }
    // Padding holds zeros, which the extremes include anyway.
    float hi = 0.f, lo = 0.f;
    each([&](int, int, float& a, float& b) { hi = fmaxf(hi, fmaxf(a, b)), lo = fminf(lo, fminf(a, b)); });
    hi = warp_largest(hi), lo = warp_largest(fabsf(lo));
    if (lane == 0) extremes[2][warp] = hi, extremes[3][warp] = lo;
    __syncthreads();
    hi = extremes[2][0], lo = extremes[3][0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) hi = fmaxf(hi, extremes[2][i]), lo = fmaxf(lo, extremes[3][i]);
    hi *= grow, lo *= grow;
    for (i64 set = 0; set < sets; set++) {
      const float largest =
          fmaxf(hi * (set ? clips[2 * set] : first_clips[0]), lo * (set ? clips[2 * set + 1] : first_clips[1])) / QMAX;
      const float scale = largest == 0.f ? 1.f : largest, inverse = grow / scale;
      // Adding 1.5·2²³ rounds to the nearest integer, whose low byte is then the code.
      const auto code = [&](float value) {
        return __float_as_uint(fminf(fmaxf(value * inverse, -QMAX - 1.f), (float)QMAX) + 12582912.f);
      };
      each([&](int i, int j, float& a, float& b) {
        if ((ROWS != LEFT && i >= LEFT) || (COLS != RIGHT && j >= RIGHT)) return;
        const u32 qa = code(a), qb = code(b);
        if (RIGHT % 2 == 0) {
          *(u16*)(row + place_of(i * RIGHT + j)) = (u16)__byte_perm(qa, qb, 0x0040);
        } else {
          row[place_of(i * RIGHT + j)] = (i8)qa;
          if (j + 1 < RIGHT) row[place_of(i * RIGHT + j + 1)] = (i8)qb;
        }
      });
      if (INPUT == SPLITS)
        for (int i = WIDTH + threadIdx.x; i < BLOCKS * 128; i += THREADS) row[place_of(i)] = 0;
      if (threadIdx.x == 0) scales[set * capacity + token] = scale;
      __syncthreads();
      for (int piece = threadIdx.x; piece < BLOCKS * 8; piece += THREADS)
        *(uint4*)(codes + set * BLOCKS * capacity * 128 + code_offset(capacity, token, piece * 16)) =
            *(const uint4*)(row + place_of(piece * 16));
      if constexpr (SUMS != 0) code_sums(row, kept, sums + set * SUM_COUNT * capacity + token, capacity);
      if (set + 1 < sets || INPUT == SPLITS) __syncthreads();
    }
  }
}
