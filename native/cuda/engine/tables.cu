// Embedding and head as codes with a scale, and perhaps an offset, for groups of columns: an entry is scale·code (+ offset).
//
// Codes become halves, exactly, and meet rows that are sums of two halves; a group's products are summed by the matrix
// units, scaled, and added in f32 in the order of columns, so that a logit does not depend on the other rows of a step.
//
// Macros: BITS 8: codes + 128 in bytes; 4: codes + 8 in nibbles, a word having columns 2p in nibbles p, columns 2p + 1 in
// nibbles p + 4, p < 4; SHIFT: what a stored code lacks of the one beside an offset; SPAN: columns of a group, 16 … 128; SCALE16 1: scales and offsets are halves, else f32; OFFSETS 1;
// NT: eights of tokens per block of `head_codes`.
#include "engine/engine.cuh"

#ifndef BITS
#define BITS 8
#endif
#ifndef SPAN
#define SPAN 64
#endif
#ifndef SCALE16
#define SCALE16 1
#endif
#ifndef OFFSETS
#define OFFSETS 0
#endif
#ifndef SHIFT
#define SHIFT 0
#endif
#ifndef NT
#define NT 1
#endif

#if SCALE16
typedef u16 Scale;
__device__ __forceinline__ float scale_of(Scale s) { return from_half(s); }
#else
typedef float Scale;
__device__ __forceinline__ float scale_of(Scale s) { return s; }
#endif

__device__ __forceinline__ float offset_of(Scale scale, Scale offset) {
  return __fmaf_rn(scale_of(scale), (float)SHIFT, scale_of(offset));
}

// x[row] = table[ids[row]] · factor, and the row's rotary tables, [rows][half], from its position (double, as on the host).
extern "C" __global__ void __launch_bounds__(256)
    embed_codes(const u8* codes, const Scale* scales, const Scale* offsets, const int* ids, const int* positions,
                i64 cols, double factor, const double* frequencies, i64 half, float* x, float* cosine, float* sine) {
  release_next();
  wait_for_earlier();
  const i64 row = blockIdx.x, id = ids[row], groups = cols / SPAN;
  for (i64 i = threadIdx.x; i < cols; i += 256) {
    int code;
    if (BITS == 8) {
      code = (int)codes[id * cols + i] - 128;
    } else {
      const u32 word = ((const u32*)codes)[(id * cols + i) / 8];
      code = (int)(word >> (4 * (i % 8 / 2 + i % 2 * 4)) & 15) - 8;
    }
    const i64 group = id * groups + i / SPAN;
    const float value = OFFSETS
                            ? __fmaf_rn(scale_of(scales[group]), (float)code, offset_of(scales[group], offsets[group]))
                            : scale_of(scales[group]) * (float)code;
    x[row * cols + i] = value * (float)factor;
  }
  for (i64 i = threadIdx.x; i < half; i += 256) {
    const double angle = positions[row] * frequencies[i];
    cosine[row * half + i] = (float)cos(angle);
    sine[row * half + i] = (float)sin(angle);
  }
}

// A warp has 16 rows of the table, straight from memory to registers: thread (g, t) takes a quarter of a group's columns,
// four at a step of mma, since the order of columns within a step is free as long as both operands have it.
constexpr int WARPS = 8, TOKENS = 8 * NT;
constexpr int CHUNK = NT == 1 ? 512 : NT == 2 ? 256 : 128;
// 32 bytes beyond a multiple of 128: sixteen lanes of an 8-byte read meet no bank twice.
constexpr int ROW = CHUNK + 16;
constexpr int QUARTER = SPAN / 4, STEPS = QUARTER / 4;
// Words of codes of a quarter; with groups of 16 and nibbles two threads share one.
constexpr int WORDS = QUARTER * BITS / 32 > 0 ? QUARTER * BITS / 32 : 1;
static_assert(CHUNK % SPAN == 0, "groups lie within a chunk");

struct Quarter {
  u32 words[WORDS];
};

// A quarter of a group; `row` begins at a multiple of 4 bytes, and groups at one of WORDS words.
__device__ __forceinline__ Quarter quarter(const u8* row, i64 column, int t) {
  Quarter q;
  const u32* const from = (const u32*)(row + column * BITS / 8) + (QUARTER * BITS >= 32 ? t * WORDS : t / 2);
  if constexpr (WORDS % 4 == 0) {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) {
      const uint4 w = *(const uint4*)(from + i);
      q.words[i] = w.x, q.words[i + 1] = w.y, q.words[i + 2] = w.z, q.words[i + 3] = w.w;
    }
  } else if constexpr (WORDS == 2) {
    const uint2 w = *(const uint2*)from;
    q.words[0] = w.x, q.words[1] = w.y;
  } else {
    q.words[0] = *from;
    if (QUARTER * BITS < 32) q.words[0] >>= 8 * (t % 2);
  }
  return q;
}

// The four codes of a step as two pairs of halves.
__device__ __forceinline__ void pairs(const Quarter& q, int step, u32& low, u32& high) {
  if (BITS == 8) {
    const u32 w = q.words[step];
    low = sub_half2(__byte_perm(w, 0x64646464u, 0x4140), 0x64806480u);
    high = sub_half2(__byte_perm(w, 0x64646464u, 0x4342), 0x64806480u);
  } else {
    // Less 8: 1024 + 8, and −(64 + 8).
    const u32 w = q.words[step / 2];
    low = nibble_pair(w, step % 2 * 2, 0x64086408u, 0xd480d480u);
    high = nibble_pair(w, step % 2 * 2 + 1, 0x64086408u, 0xd480d480u);
  }
}

// out[row][v] = Σ x[row][k]·table[v][k], or `cap` times the hyperbolic tangent of its `cap`th part; x as `final_rows` left it,
// [2][rows][cols] halves.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    head_codes(const u16* x, const u8* codes, const Scale* scales, const Scale* offsets, i64 rows, i64 vocab, i64 cols,
               double cap, float* out) {
  __shared__ __align__(16) u16 tile[2 * TOKENS * ROW];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 token0 = (i64)blockIdx.y * TOKENS, v0 = ((i64)blockIdx.x * WARPS + warp) * 16;
  // Rows beyond the table repeat its last one and are not written.
  const i64 last_row = vocab - 1, groups = cols / SPAN;
  const i64 va = v0 + g < last_row ? v0 + g : last_row, vb = v0 + g + 8 < last_row ? v0 + g + 8 : last_row;
  const u8 *const row_a = codes + va * cols * BITS / 8, *const row_b = codes + vb * cols * BITS / 8;
  float acc[NT][4];
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) acc[n][c] = 0.f;
  release_next();
  wait_for_earlier();
  for (i64 k0 = 0; k0 < cols; k0 += CHUNK) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * TOKENS * (CHUNK / 4); i += WARPS * 32) {
      const int piece = i % (CHUNK / 4), row = i / (CHUNK / 4) % TOKENS, part = i / (CHUNK / 4) / TOKENS;
      uint2 word = make_uint2(0, 0);
      if (token0 + row < rows && k0 + 4 * piece < cols)
        word = *(const uint2*)(x + ((i64)part * rows + token0 + row) * cols + k0 + 4 * piece);
      // Steps of a group, and then the quarters.
      const int group = piece / (SPAN / 4), t = piece % (SPAN / 4) / STEPS, step = piece % STEPS;
      *(uint2*)(tile + (part * TOKENS + row) * ROW + group * SPAN + (step * 4 + t) * 4) = word;
    }
    __syncthreads();
    const int here = (int)((cols - k0 < CHUNK ? cols - k0 : CHUNK) / SPAN);
#pragma unroll 2
    for (int group = 0; group < here; group++) {
      const i64 column = k0 + group * SPAN, at = column / SPAN;
      const Quarter a = quarter(row_a, column, t4), b = quarter(row_b, column, t4);
      const float of[2] = {scale_of(scales[va * groups + at]), scale_of(scales[vb * groups + at])};
      float offset[2] = {0.f, 0.f};
      if (OFFSETS) {
        offset[0] = offset_of(scales[va * groups + at], offsets[va * groups + at]);
        offset[1] = offset_of(scales[vb * groups + at], offsets[vb * groups + at]);
      }
      float sums[NT][4], totals[NT][4];
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) sums[n][c] = 0.f, totals[n][c] = 0.f;
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        u32 operand[4];
        pairs(a, step, operand[0], operand[2]);
        pairs(b, step, operand[1], operand[3]);
        const u32 ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int part = 0; part < 2; part++) {
            const uint2 w =
                *(const uint2*)(tile + (part * TOKENS + 8 * n + g) * ROW + group * SPAN + (step * 4 + t4) * 4);
            mma_half(sums[n], operand, w.x, w.y);
            if (OFFSETS) mma_half(totals[n], ones, w.x, w.y);
          }
      }
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          acc[n][c] = __fmaf_rn(sums[n][c], of[c / 2], acc[n][c]);
          if (OFFSETS) acc[n][c] = __fmaf_rn(totals[n][c], offset[c / 2], acc[n][c]);
        }
    }
  }
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const i64 token = token0 + 8 * n + 2 * t4 + c % 2, v = v0 + g + c / 2 * 8;
      if (token < rows && v < vocab)
        out[token * vocab + v] = cap > 0 ? (float)cap * tanhf(acc[n][c] / (float)cap) : acc[n][c];
    }
}

// Signed codes of bytes to what `head_codes` reads: bytes as they are but for 128, or eight of them to a word of nibbles. A
// thread makes a word. `bias`: what is added to a code.
extern "C" __global__ void __launch_bounds__(256) pack_table(const i8* codes, i64 bias, i64 words, u32* packed) {
  wait_for_earlier();
  for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < words; i += gridDim.x * 256ll) {
    u32 word = 0;
    if (BITS == 8) {
#pragma unroll
      for (int k = 0; k < 4; k++) word |= (u32)(u8)(codes[4 * i + k] + (int)bias) << (8 * k);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) word |= (u32)((codes[8 * i + k] + (int)bias) & 15) << (4 * (k / 2 + k % 2 * 4));
    }
    packed[i] = word;
  }
}
