// Decode attention's arithmetic: what a warp does with one page of one KV head. The same whichever way the page came, to the
// bit, since fused products are written out.
//
// Tokens and columns of values are the rows of mma, heads its columns: with up to four heads, a head and its tail (queries
// and weights are sums of two halves, so the products are as good as f32's) fill one tile of eight columns, and no row is
// wasted. Codes less their zero point are small integers, exact as halves.
//
// A thread (g = lane / 4, t = lane % 4) has scores of head 4·tile + t at tokens 8i + g, and of that head's sums columns
// 16n + 8h + g: those of the head, and of its tail.
//
// Macros: attention.cuh's, and TILES: groups of four query heads of a block.
#pragma once
#include "engine/attention.cuh"

#ifndef TILES
#define TILES 1
#endif

constexpr int KEY_WORDS = DIM / 32, HEADS = 4 * TILES, HEAD_STRIDE = DIM + 8;

// Operands of a thread, read from where the page lies as they are needed.
struct InPlace {
  const u8* page;

  // 4 bits: the thread's quarter of token 8i + g's key; columns 16n + g and 16n + 8 + g of the values at its tokens.
  __device__ __forceinline__ void key(int i, u32 (&words)[KEY_WORDS]) const {
    const int lane = threadIdx.x % 32;
    const u8* const from = page + Page::KEYS + (8 * i + lane / 4) * (DIM / 2) + lane % 4 * (DIM / 8);
    if constexpr (KEY_WORDS == 4) {
      const uint4 w = *(const uint4*)from;
      words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
    } else if constexpr (KEY_WORDS == 2) {
      const uint2 w = *(const uint2*)from;
      words[0] = w.x, words[1] = w.y;
    } else {
#pragma unroll
      for (int j = 0; j < KEY_WORDS; j++) words[j] = ((const u32*)from)[j];
    }
  }
  __device__ __forceinline__ uint4 values(int n) const {
    return *(const uint4*)(page + Page::VALUES + (n * 32 + threadIdx.x % 32) * 16);
  }
  __device__ __forceinline__ u32 key_zero(int i) const {
    return *(const u16*)(page + Page::KEY_ZERO + (8 * i + threadIdx.x % 32 / 4) * 2);
  }
  __device__ __forceinline__ float key_scale(int i) const {
    return *(const float*)(page + Page::KEY_SCALE + (8 * i + threadIdx.x % 32 / 4) * 4);
  }
  __device__ __forceinline__ float value_scale(int i) const {
    return *(const float*)(page + Page::VALUE_SCALE + (8 * i + threadIdx.x % 32 / 4) * 4);
  }
  // Of tokens 8j + 2t and 8j + 2t + 1.
  __device__ __forceinline__ u32 value_zeros(int j) const {
    return *(const u32*)(page + Page::VALUE_ZERO + (8 * j + threadIdx.x % 4 * 2) * 2);
  }
  // 16 bits: columns 32c + 8t … of token 8i + g's key; tokens 16u + 2t, 16u + 8 + 2t and the ones after them at column 8n + g.
  __device__ __forceinline__ uint4 key_halves(int i, int c) const {
    const int lane = threadIdx.x % 32;
    return *(const uint4*)(page + Page::KEYS + ((8 * i + lane / 4) * DIM + c * 32 + lane % 4 * 8) * 2);
  }
  __device__ __forceinline__ uint2 value_halves(int n, int u) const {
    return *(const uint2*)(page + Page::VALUES + (((n * 2 + u / 2) * 32 + threadIdx.x % 32) * 4 + u % 2 * 2) * 4);
  }
};

// The same in registers, all asked for before anything is needed (4 bits). Scales and zero points are with lanes l of tokens l
// and l + 32, and pairs of values' zero points in order; with every lane that needs them they were more than registers hold.
struct Held {
  u32 words[8][KEY_WORDS], key_zeros[2], value_zero_pairs;
  float key_scales[2], value_scales[2];
  uint4 columns[DIM / 16];

  __device__ __forceinline__ void load(const InPlace& from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) from.key(i, words[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int token = 32 * h + lane;
      key_zeros[h] = *(const u16*)(from.page + Page::KEY_ZERO + token * 2);
      key_scales[h] = *(const float*)(from.page + Page::KEY_SCALE + token * 4);
      value_scales[h] = *(const float*)(from.page + Page::VALUE_SCALE + token * 4);
    }
    value_zero_pairs = *(const u32*)(from.page + Page::VALUE_ZERO + lane * 4);
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) columns[n] = from.values(n);
  }
  // Of token 8i + g.
  template <class T>
  static __device__ __forceinline__ T of_token(const T (&each)[2], int i) {
    return __shfl_sync(FULL_MASK, each[i / 4], 8 * (i % 4) + threadIdx.x % 32 / 4);
  }
  __device__ __forceinline__ void key(int i, u32 (&to)[KEY_WORDS]) const {
#pragma unroll
    for (int j = 0; j < KEY_WORDS; j++) to[j] = words[i][j];
  }
  __device__ __forceinline__ uint4 values(int n) const { return columns[n]; }
  __device__ __forceinline__ u32 key_zero(int i) const { return of_token(key_zeros, i); }
  __device__ __forceinline__ float key_scale(int i) const { return of_token(key_scales, i); }
  __device__ __forceinline__ float value_scale(int i) const { return of_token(value_scales, i); }
  __device__ __forceinline__ u32 value_zeros(int j) const {
    return __shfl_sync(FULL_MASK, value_zero_pairs, 4 * j + threadIdx.x % 4);
  }
};

// What a warp has of its pages so far; `total` only of this thread's tokens.
struct Sums {
  float o[DIM / 16][TILES][4], top[TILES], total[TILES];
};

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    sums.top[t] = -INFINITE, sums.total[t] = 0.f;
#pragma unroll
    for (int n = 0; n < DIM / 16; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) sums.o[n][t][c] = 0.f;
  }
}

// Queries as operand B: columns 2h and 2h + 1 of a tile are a head and its tail. Rows are reordered as keys are kept: of step s,
// columns 4s … 4s + 3 of a thread's quarter (4 bits), or of its pieces of eight (16 bits).
__device__ __forceinline__ void load_queries(u32 (&q)[DIM / 16][TILES][2], const float* from, int heads, float scale) {
  const int lane = threadIdx.x % 32, head = lane / 8, t4 = lane % 4;
  const bool tail = lane / 4 % 2;
#pragma unroll
  for (int s = 0; s < DIM / 16; s++)
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const int column = BITS == 4 ? t4 * (DIM / 4) + 4 * s : s / 2 * 32 + t4 * 8 + s % 2 * 4;
      f4 x = {0.f, 0.f, 0.f, 0.f};
      if (4 * t + head < heads) x = *(const f4*)(from + (4 * t + head) * DIM + column);
      // Not to be fused with the tails' differences in one kernel and left alone in another.
      x.x = __fmul_rn(x.x, scale), x.y = __fmul_rn(x.y, scale), x.z = __fmul_rn(x.z, scale),
      x.w = __fmul_rn(x.w, scale);
      const u32 low = pack_half(x.x, x.y), high = pack_half(x.z, x.w);
      q[s][t][0] = tail ? pack_tail(x.x, x.y, low) : low;
      q[s][t][1] = tail ? pack_tail(x.z, x.w, high) : high;
    }
}

// A page of which tokens `hidden` … `here` − 1 are seen.
template <class Source>
__device__ __forceinline__ void attend_page(const Source& page, const u32 (&q)[DIM / 16][TILES][2], Sums& sums,
                                            int here, int hidden) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  float weight[8][TILES], inverse[8], highest[TILES];
  const u32 magic = halves1024();
#pragma unroll
  for (int t = 0; t < TILES; t++) highest[t] = -INFINITE;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float c[TILES][4] = {};
    if constexpr (BITS == 4) {
      u32 words[2][KEY_WORDS], zero[2], zero16[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        page.key(2 * j + h, words[h]);
        const u32 z = page.key_zero(2 * j + h);
        zero_forms(z | z << 16, zero[h], zero16[h]);
      }
#pragma unroll
      for (int s = 0; s < DIM / 16; s++) {
        u32 a[4];
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
          for (int h = 0; h < 2; h++)
            a[2 * p + h] = nibble_pair(words[h][s / 2], s % 2 * 2 + p, zero[h], zero16[h], magic);
#pragma unroll
        for (int t = 0; t < TILES; t++) mma_half(c[t], a, q[s][t][0], q[s][t][1]);
      }
    } else {
#pragma unroll
      for (int s = 0; s < DIM / 16; s += 2) {
        const uint4 w = page.key_halves(2 * j, s / 2), x = page.key_halves(2 * j + 1, s / 2);
        const u32 a[2][4] = {{w.x, x.x, w.y, x.y}, {w.z, x.z, w.w, x.w}};
#pragma unroll
        for (int t = 0; t < TILES; t++)
          mma_half(c[t], a[0], q[s][t][0], q[s][t][1]), mma_half(c[t], a[1], q[s + 1][t][0], q[s + 1][t][1]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = 2 * j + h, token = 8 * i + g;
      // What no token wrote may hold anything.
      const bool seen = token < here && token >= hidden;
      float scale = 1.f, shift = 0.f;
      inverse[i] = 1.f;
      if (BITS == 4) {
        const float of = page.value_scale(i);
        scale = page.key_scale(i), shift = __log2f(of), inverse[i] = reciprocal(of);
      }
      if (!seen) inverse[i] = 0.f;
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        const float score = fmaf(c[t][2 * h] + c[t][2 * h + 1], scale, shift);
        weight[i][t] = seen ? score : -INFINITE;
        highest[t] = fmaxf(highest[t], weight[i][t]);
      }
    }
  }
  // Weights as operand B: pairs of tokens of one column, where a thread has a head and its tail of one token.
  u32 p[8][TILES];
#pragma unroll
  for (int t = 0; t < TILES; t++) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
      highest[t] = fmaxf(highest[t], __shfl_xor_sync(FULL_MASK, highest[t], offset));
    const float before = sums.top[t], top = fmaxf(before, highest[t]);
    const float shrink = before == -INFINITE ? 0.f : power_of2(before - top);
    sums.top[t] = top, sums.total[t] *= shrink;
#pragma unroll
    for (int n = 0; n < DIM / 16; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) sums.o[n][t][c] *= shrink;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      weight[i][t] = top == -INFINITE ? 0.f : power_of2(weight[i][t] - top);
      sums.total[t] = fmaf(weight[i][t], inverse[i], sums.total[t]);
    }
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const u32 head = pack_small(weight[i][t], weight[i + 1][t]),
                tail = pack_tail(weight[i][t], weight[i + 1][t], head);
      p[i][t] = transposed(__byte_perm(head, tail, 0x5410));
      p[i + 1][t] = transposed(__byte_perm(head, tail, 0x7632));
    }
  }
  u32 zero[8], zero16[8];
  if (BITS == 4) {
#pragma unroll
    for (int j = 0; j < 8; j++) zero_forms(page.value_zeros(j), zero[j], zero16[j]);
  }
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {
    u32 words[4];
    if (BITS == 4) {
      const uint4 w = page.values(n);
      words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
    }
#pragma unroll
    for (int u = 0; u < 4; u++) {
      u32 a[4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if constexpr (BITS == 4) {
          const u32 word = words[2 * h + u / 2];
          a[h] = nibble_pair(word, 2 * u % 4, zero[2 * u], zero16[2 * u], magic);
          a[2 + h] = nibble_pair(word, 2 * u % 4 + 1, zero[2 * u + 1], zero16[2 * u + 1], magic);
        } else {
          const uint2 w = page.value_halves(2 * n + h, u);
          a[h] = w.x, a[2 + h] = w.y;
          // 0 · infinity must not arise from what nobody wrote.
#pragma unroll
          for (int k = 0; k < 2; k++) {
            const int token = 8 * (2 * u + k) + 2 * t4;
            if (token >= here) a[2 * k + h] = 0;
            else if (token + 1 >= here) a[2 * k + h] &= 0xffffu;
          }
        }
      }
#pragma unroll
      for (int t = 0; t < TILES; t++) mma_half(sums.o[n][t], a, p[2 * u][t], p[2 * u + 1][t]);
    }
  }
}

// A warp's sums to shared memory: [head][HEAD_STRIDE], which keeps heads in banks of their own.
__device__ __forceinline__ void share_sums(const Sums& sums, float* to, float* tops, float* totals, int heads) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    const int head = 4 * t + t4;
    float total = sums.total[t];
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) total += __shfl_xor_sync(FULL_MASK, total, offset);
    if (head >= heads) continue;
    if (g == 0) tops[head] = sums.top[t], totals[head] = total;
#pragma unroll
    for (int n = 0; n < DIM / 16; n++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        to[head * HEAD_STRIDE + 16 * n + 8 * h + g] = sums.o[n][t][2 * h] + sums.o[n][t][2 * h + 1];
  }
}
